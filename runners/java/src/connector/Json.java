package connector;

/** The little JSON that the host itself needs: one member of the request, and a quoted string. */
final class Json {

    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /**
     * Returns the string that the top-level object holds under a key; of two such members the last one counts.
     *
     * <p>Nested values are stepped over, not checked: a full parse is the connector's business.
     *
     * @return null when there is no such member, or it is not a string
     * @throws IllegalArgumentException when the text is not one JSON object
     */
    static String topLevelString(String text, String key) {
        return new Json(text).member(key);
    }

    static String quote(String text) {
        StringBuilder quoted = new StringBuilder(text.length() + 16).append('"');
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (c == '"' || c == '\\') {
                quoted.append('\\').append(c);
            } else if (c < ' ' || Character.isSurrogate(c)) {
                quoted.append(String.format("\\u%04x", (int) c));
            } else {
                quoted.append(c);
            }
        }
        return quoted.append('"').toString();
    }

    /** Returns where half a character stands, which would be written as a question mark; -1 when there is none. */
    static int loneSurrogate(String text) {
        for (int i = 0; i < text.length(); i++) {
            if (!Character.isSurrogate(text.charAt(i))) {
                continue;
            }
            if (i + 1 == text.length() || !Character.isSurrogatePair(text.charAt(i), text.charAt(i + 1))) {
                return i;
            }
            i++;
        }
        return -1;
    }

    /** Returns a document on a line of its own. A line break within a text, which JSON does not have, stays what it is. */
    static String line(String document) {
        if (document.indexOf('\n') < 0 && document.indexOf('\r') < 0) {
            return document + '\n';
        }
        StringBuilder line = new StringBuilder(document);
        boolean text = false;
        for (int i = 0; i < line.length(); i++) {
            char c = line.charAt(i);
            if (c == '"') {
                text = !text;
            } else if (text && c == '\\') {
                i++;
            } else if (!text && (c == '\n' || c == '\r')) {
                line.setCharAt(i, ' ');
            }
        }
        return line.append('\n').toString();
    }

    private String member(String key) {
        String found = null;
        expect('{');
        if (!accept('}')) {
            do {
                boolean wanted = string().equals(key);
                expect(':');
                String value = value();
                if (wanted) {
                    found = value;
                }
            } while (accept(','));
            expect('}');
        }
        skipBlanks();
        if (at < text.length()) {
            throw malformed();
        }
        return found;
    }

    /** Steps over a value; returns it when it is a string, else null. */
    private String value() {
        char first = peek();
        if (first == '"') {
            return string();
        }
        if (first == '{' || first == '[') {
            skipNested();
        } else {
            skipScalar();
        }
        return null;
    }

    private void skipNested() {
        int depth = 0;
        do {
            char c = peek();
            if (c == '"') {
                skipString();
                continue;
            }
            if (c == '{' || c == '[') {
                depth++;
            } else if (c == '}' || c == ']') {
                depth--;
            }
            at++;
        } while (depth > 0);
    }

    private void skipScalar() {
        int start = at;
        while (at < text.length() && ",}] \t\r\n".indexOf(text.charAt(at)) < 0) {
            at++;
        }
        if (at == start) {
            throw malformed();
        }
    }

    private void skipString() {
        at++;
        while (at < text.length() && text.charAt(at) != '"') {
            at += text.charAt(at) == '\\' ? 2 : 1;
        }
        if (at >= text.length()) {
            throw malformed();
        }
        at++;
    }

    private String string() {
        if (peek() != '"') {
            throw malformed();
        }
        int start = at + 1;
        skipString();
        String raw = text.substring(start, at - 1);
        return raw.indexOf('\\') < 0 ? raw : unescape(raw);
    }

    private String unescape(String raw) {
        StringBuilder plain = new StringBuilder(raw.length());
        for (int i = 0; i < raw.length(); i++) {
            char c = raw.charAt(i);
            if (c != '\\') {
                plain.append(c);
                continue;
            }
            c = raw.charAt(++i);
            int known = "bfnrt".indexOf(c);
            if (known >= 0) {
                plain.append("\b\f\n\r\t".charAt(known));
            } else if (c != 'u') {
                plain.append(c);
            } else if (i + 4 < raw.length()) {
                plain.append((char) Integer.parseInt(raw.substring(i + 1, i + 5), 16));
                i += 4;
            } else {
                throw malformed();
            }
        }
        return plain.toString();
    }

    private void expect(char wanted) {
        if (!accept(wanted)) {
            throw malformed();
        }
    }

    private boolean accept(char wanted) {
        if (peek() != wanted) {
            return false;
        }
        at++;
        return true;
    }

    private char peek() {
        skipBlanks();
        if (at >= text.length()) {
            throw malformed();
        }
        return text.charAt(at);
    }

    private void skipBlanks() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private IllegalArgumentException malformed() {
        return new IllegalArgumentException("the request is not a JSON object: see character " + at);
    }
}
