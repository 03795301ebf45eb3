package connector;

/**
 * What a Java connector implements. JSON travels as text, so that the connector is free to choose its JSON library.
 *
 * <p>The class needs a constructor without arguments. It is constructed before the request is read.
 */
public interface Connector {

    /** Returns {@code {"commands": [{"name", "description"?, "parameters": [...], "async"}], "auths": []}}. */
    String describe() throws Exception;

    /**
     * Runs one request and returns its result, any JSON document.
     *
     * <p>A {@link Failure} is an answer with a code that callers can act on; anything else thrown is a fault.
     *
     * @param request the whole request: {@code {"command": "Send", "params": {...}, "config": {...}, ...}}
     */
    String execute(String request) throws Exception;
}
