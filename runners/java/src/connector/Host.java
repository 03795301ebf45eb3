package connector;

import java.io.BufferedInputStream;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.UnsupportedEncodingException;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.UndeclaredThrowableException;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;

/**
 * Runs one request against one {@link Connector}: {@code java -cp ... connector.Host [--fd3 | --lines] CLASS}.
 *
 * <p>The result is one line, and goes to the standard output as it was at the start, or to file descriptor 3 (a pipe) with {@code --fd3}.
 * System.out is log. Only {@code --fd3} also keeps apart what native code and inherited children write to descriptor 1.
 *
 * <p>With {@code --lines} one object serves many requests, one after the other: a line each on the standard input, a line
 * each on file descriptor 3, until the input ends.
 */
public final class Host {

    /** What one request came to: the exit status, and one JSON document. */
    private static final class Answer {
        final int status;
        final String document;
        /** The virtual machine itself failed: it should serve nobody else. */
        final boolean fatal;

        Answer(int status, String document, boolean fatal) {
            this.status = status;
            this.document = document;
            this.fatal = fatal;
        }
    }

    private final String className;
    private Connector connector;
    private Throwable broken;

    private Host(String className) {
        this.className = className;
    }

    public static void main(String[] args) throws IOException {
        String option = args.length == 2 ? args[0] : "";
        boolean lines = option.equals("--lines");
        boolean fd3 = lines || option.equals("--fd3");
        if (args.length != 1 && !fd3) {
            System.err.println("usage: connector.Host [--fd3 | --lines] CLASS");
            System.exit(64);
        }
        // Buffered, since FileInputStream.readAllBytes seeks and so fails on a pipe (seen on Java 17).
        InputStream requests = new BufferedInputStream(new FileInputStream(FileDescriptor.in));
        OutputStream results = fd3
                ? new FileOutputStream("/proc/self/fd/3")
                : new FileOutputStream(FileDescriptor.out);
        protectStandardStreams();

        Host host = new Host(args[args.length - 1]);
        host.load();
        rehearse();
        // Threads that the connector left behind end here; its shutdown hooks run.
        System.exit(lines ? host.serveLines(requests, results) : host.serveOne(requests, results));
    }

    private int serveOne(InputStream requests, OutputStream results) throws IOException {
        Answer answer = answer(new String(requests.readAllBytes(), StandardCharsets.UTF_8));
        System.out.flush();
        results.write(Json.line(answer.document).getBytes(StandardCharsets.UTF_8));
        results.flush();
        return answer.status;
    }

    private int serveLines(InputStream requests, OutputStream results) throws IOException {
        BufferedReader lines = new BufferedReader(new InputStreamReader(requests, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            Answer answer = answer(line);
            System.out.flush();
            results.write(Json.line(answer.document).getBytes(StandardCharsets.UTF_8));
            results.flush();
            if (answer.fatal) {
                return answer.status;
            }
        }
        return 0;
    }

    private static void protectStandardStreams() throws UnsupportedEncodingException {
        PrintStream log = new PrintStream(new FileOutputStream(FileDescriptor.err), true, "UTF-8");
        System.setIn(InputStream.nullInputStream());
        System.setOut(log);
        System.setErr(log);
    }

    /** Constructs the connector ahead of the request, so that a process on standby has booted. Faults wait for the request. */
    private void load() {
        try {
            Object made = Class.forName(className).getDeclaredConstructor().newInstance();
            if (!(made instanceof Connector)) {
                throw new ClassCastException(className + " does not implement " + Connector.class.getName());
            }
            connector = (Connector) made;
        } catch (Throwable fault) {
            broken = fault;
        }
    }

    /** Goes the host's own way through a request, so that its code is loaded when one comes. The connector is not asked. */
    private static void rehearse() {
        Json.topLevelString("{\"protocol\": 1, \"op\": \"execute\", \"params\": {\"text\": \"\\n\"}}", "op");
        Json.line(told("", "").document).getBytes(StandardCharsets.UTF_8);
        unwrap(Failure.commandNotFound(""));
    }

    private Answer answer(String request) {
        String op;
        try {
            op = Json.topLevelString(request, "op");
        } catch (IllegalArgumentException malformed) {
            return told("invalid_request", malformed.getMessage());
        }
        if (!"describe".equals(op) && !"execute".equals(op)) {
            return told("invalid_request", "op must be describe or execute");
        }
        if (broken != null) {
            return raised(broken);
        }
        try {
            String document = String.valueOf(op.equals("describe") ? connector.describe() : connector.execute(request));
            int half = Json.loneSurrogate(document);
            return half < 0 ? new Answer(0, document, false) : failed("connector_invalid_output",
                    "its document holds a lone surrogate (character " + half + "), which has no UTF-8 form",
                    ", \"invalid_output\": true", false);
        } catch (Throwable fault) {
            return raised(fault);
        }
    }

    private static Answer raised(Throwable thrown) {
        Throwable fault = unwrap(thrown);
        if (fault instanceof Failure) {
            return told(((Failure) fault).code(), fault.getMessage());
        }
        fault.printStackTrace();
        String message = fault.getMessage() == null ? fault.toString() : fault.getMessage();
        if (isOutOfMemory(thrown)) {
            return failed(simpleName(fault), message, ", \"raised\": true, \"out_of_memory\": true", true);
        }
        String more = isUnloadable(fault) ? ", \"raised\": true, \"unloadable\": true" : ", \"raised\": true";
        return failed(simpleName(fault), message, more, fault instanceof VirtualMachineError);
    }

    /** For want of a class or of native code, or since there is another one than the code was made for. */
    private static boolean isUnloadable(Throwable fault) {
        return fault instanceof LinkageError || fault instanceof ReflectiveOperationException
                || fault instanceof ClassCastException;
    }

    /** Whatever it was wrapped in. Causes may go round in a circle. */
    private static boolean isOutOfMemory(Throwable thrown) {
        Throwable fault = thrown;
        for (int depth = 0; fault != null && depth < 20; depth++) {
            if (fault instanceof OutOfMemoryError) {
                return true;
            }
            fault = fault.getCause();
        }
        return false;
    }

    private static Answer told(String code, String message) {
        return failed(code, message, "", false);
    }

    private static Answer failed(String code, String message, String more, boolean fatal) {
        return new Answer(1, "{\"error\": {\"error_code\": " + Json.quote(code)
                + ", \"message\": " + Json.quote(String.valueOf(message)) + more + "}}", fatal);
    }

    /** The cause, of exceptions that only say that something else was thrown. */
    private static Throwable unwrap(Throwable thrown) {
        boolean wraps = thrown instanceof InvocationTargetException
                || thrown instanceof ExceptionInInitializerError
                || thrown instanceof UndeclaredThrowableException
                || thrown instanceof CompletionException
                || thrown instanceof ExecutionException;
        return wraps && thrown.getCause() != null ? unwrap(thrown.getCause()) : thrown;
    }

    private static String simpleName(Throwable fault) {
        Class<?> named = fault.getClass();
        while (named.isAnonymousClass()) {
            named = named.getSuperclass();
        }
        return named.getSimpleName();
    }
}
