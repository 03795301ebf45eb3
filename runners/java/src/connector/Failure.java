package connector;

/** The command cannot be done, and the connector says why with a code of its own. No stack trace is logged. */
public class Failure extends Exception {

    private static final long serialVersionUID = 1L;

    private final String code;

    public Failure(String code, String message) {
        super(message, null, false, false);
        this.code = code;
    }

    public static Failure commandNotFound(String command) {
        return new Failure("command_not_found", "there is no command " + command);
    }

    public String code() {
        return code;
    }
}
