package pdf;

import connector.Connector;
import connector.Failure;
import java.io.IOException;
import java.util.Base64;
import org.apache.pdfbox.Loader;
import org.apache.pdfbox.pdmodel.PDDocument;
import org.apache.pdfbox.pdmodel.encryption.InvalidPasswordException;
import org.apache.pdfbox.text.PDFTextStripper;
import org.json.JSONArray;
import org.json.JSONObject;

/** Two commands: TextToPdf and PdfToText. PDFs travel as base64. */
public final class PdfConnector implements Connector {

    @Override
    public String describe() {
        JSONArray commands = new JSONArray()
                .put(command("TextToPdf", "Sets a text on A4 pages; long lines wrap, a form feed starts a page.")
                        .put("parameters", new JSONArray()
                                .put(parameter("text", true, "The text: Latin, Greek and Cyrillic letters."))
                                .put(parameter("title", false, "The title, as a heading and in the document's properties."))))
                .put(command("PdfToText", "Reads the text of a PDF that is not encrypted.")
                        .put("parameters", new JSONArray().put(parameter("pdf", true, "The PDF in base64."))));
        return new JSONObject().put("commands", commands).put("auths", new JSONArray()).toString();
    }

    @Override
    public String execute(String request) throws Exception {
        JSONObject asked = new JSONObject(request);
        JSONObject params = asked.getJSONObject("params");
        switch (asked.getString("command")) {
            case "TextToPdf":
                return textToPdf(params.getString("text"), params.optString("title", ""));
            case "PdfToText":
                return pdfToText(params.getString("pdf"));
            default:
                throw Failure.commandNotFound(asked.getString("command"));
        }
    }

    private static String textToPdf(String text, String title) throws IOException, Failure {
        TextDocument document = new TextDocument();
        byte[] pdf = document.write(title, text);
        return new JSONObject()
                .put("pdf", Base64.getEncoder().encodeToString(pdf))
                .put("pages", document.pages())
                .toString();
    }

    private static String pdfToText(String base64) throws IOException, Failure {
        try (PDDocument document = Loader.loadPDF(decode(base64))) {
            return new JSONObject()
                    .put("text", new PDFTextStripper().getText(document))
                    .put("pages", document.getNumberOfPages())
                    .toString();
        } catch (InvalidPasswordException encrypted) {
            throw new Failure("pdf_encrypted", "the PDF asks for a password");
        } catch (IOException broken) {
            throw new Failure("pdf_unreadable", "this is not a readable PDF: " + broken.getMessage());
        }
    }

    private static byte[] decode(String base64) throws Failure {
        try {
            return Base64.getMimeDecoder().decode(base64);
        } catch (IllegalArgumentException broken) {
            throw new Failure("invalid_base64", "pdf is not base64: " + broken.getMessage());
        }
    }

    private static JSONObject command(String name, String description) {
        return new JSONObject().put("name", name).put("description", description).put("async", false);
    }

    private static JSONObject parameter(String id, boolean required, String description) {
        return new JSONObject().put("id", id).put("type", "str").put("required", required).put("description", description);
    }
}
