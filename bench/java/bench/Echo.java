package bench;

import connector.Connector;

/** Answers at once: what is measured is the JVM. */
public final class Echo implements Connector {

    @Override
    public String describe() {
        return "{\"commands\": [{\"name\": \"Go\", \"parameters\": [{\"id\": \"text\", \"type\": \"str\"}]}]}";
    }

    @Override
    public String execute(String request) {
        return "{\"bytes\": " + request.length() + "}";
    }
}
