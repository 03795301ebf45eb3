package pdf;

import connector.Failure;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import org.apache.pdfbox.pdmodel.PDDocument;
import org.apache.pdfbox.pdmodel.PDPage;
import org.apache.pdfbox.pdmodel.PDPageContentStream;
import org.apache.pdfbox.pdmodel.common.PDRectangle;
import org.apache.pdfbox.pdmodel.font.PDFont;
import org.apache.pdfbox.pdmodel.font.PDType0Font;

/** Text set on A4 pages in the font that PDFBox ships. Its standard 14 fonts know Western European letters only. */
final class TextDocument {

    private static final String FONT = "/org/apache/pdfbox/resources/ttf/LiberationSans-Regular.ttf";
    private static final PDRectangle PAPER = PDRectangle.A4;
    private static final float MARGIN = 56;
    private static final float TEXT_SIZE = 11;
    private static final float TITLE_SIZE = 18;
    private static final float LEADING = 1.35f;

    private PDDocument document;
    private PDFont font;
    private PDPageContentStream page;
    private float baseline;
    private int pages;

    byte[] write(String title, String text) throws IOException, Failure {
        try (PDDocument opened = new PDDocument();
                InputStream shipped = PDDocument.class.getResourceAsStream(FONT)) {
            document = opened;
            font = PDType0Font.load(document, shipped);
            startPage();
            if (!title.isEmpty()) {
                document.getDocumentInformation().setTitle(title);
                paragraph(title, TITLE_SIZE);
                baseline -= TEXT_SIZE;
            }
            body(text);
            page.close();
            ByteArrayOutputStream bytes = new ByteArrayOutputStream();
            document.save(bytes);
            return bytes.toByteArray();
        }
    }

    int pages() {
        return pages;
    }

    private void body(String text) throws IOException, Failure {
        String[] sheets = text.replace("\t", "    ").split("\f", -1);
        for (int i = 0; i < sheets.length; i++) {
            if (i > 0) {
                startPage();
            }
            for (String line : sheets[i].split("\r\n|\r|\n", -1)) {
                paragraph(line, TEXT_SIZE);
            }
        }
    }

    /** Sets one paragraph; breaks lines at spaces, and inside a word only when it is wider than the page. */
    private void paragraph(String text, float size) throws IOException, Failure {
        float width = PAPER.getWidth() - 2 * MARGIN;
        int start = 0;
        int space = -1;
        float used = 0;
        for (int at = 0; at < text.length(); ) {
            int letter = text.codePointAt(at);
            used += width(letter, size);
            if (letter == ' ') {
                space = at;
            } else if (used > width && at > start) {
                int end = space > start ? space : at;
                line(text.substring(start, end), size);
                start = space > start ? space + 1 : at;
                at = start;
                space = -1;
                used = 0;
                continue;
            }
            at += Character.charCount(letter);
        }
        line(text.substring(start), size);
    }

    private float width(int letter, float size) throws IOException, Failure {
        String text = new String(Character.toChars(letter));
        try {
            return font.getStringWidth(text) / 1000 * size;
        } catch (IllegalArgumentException unknown) {
            throw new Failure("unsupported_character",
                    String.format("the font has no character U+%04X (%s)", letter, Character.getName(letter)));
        }
    }

    private void line(String text, float size) throws IOException {
        if (baseline - size * LEADING < MARGIN) {
            startPage();
        }
        baseline -= size * LEADING;
        page.beginText();
        page.setFont(font, size);
        page.newLineAtOffset(MARGIN, baseline);
        page.showText(text);
        page.endText();
    }

    private void startPage() throws IOException {
        if (page != null) {
            page.close();
        }
        PDPage sheet = new PDPage(PAPER);
        document.addPage(sheet);
        page = new PDPageContentStream(document, sheet);
        baseline = PAPER.getHeight() - MARGIN;
        pages++;
    }
}
