import { marked } from 'marked';
import sanitizeHtml from 'sanitize-html';

export const describe = {
  MarkdownToHtml: {
    description: 'Renders Markdown (GitHub flavour) as HTML without scripts, styles and event handlers.',
    parameters: {
      markdown: { type: 'str', required: true, description: 'The Markdown text' },
      breaks: { type: 'bool', default: false, description: 'Whether a single line break is one in the HTML too' },
      images: { type: 'bool', default: true, description: 'Whether images are kept' },
    },
  },
  MarkdownToText: {
    description: 'Takes the mark-up out of a Markdown text, as for the plain part of a mail.',
    parameters: {
      markdown: { type: 'str', required: true, description: 'The Markdown text' },
    },
  },
};

export function MarkdownToHtml({ markdown, breaks = false, images = true }) {
  const { allowedTags, allowedAttributes } = sanitizeHtml.defaults;
  const html = sanitizeHtml(marked.parse(markdown, { gfm: true, breaks }), {
    allowedTags: images ? [...allowedTags, 'img'] : allowedTags,
    allowedAttributes: { ...allowedAttributes, code: ['class'] },
  });
  return { html };
}

export function MarkdownToText({ markdown }) {
  const text = sanitizeHtml(marked.parse(markdown), { allowedTags: [], allowedAttributes: {} });
  return { text: unescapeHtml(text).trim() };
}

/** sanitize-html gives text that is still escaped for HTML. */
function unescapeHtml(text) {
  const letters = { '&lt;': '<', '&gt;': '>', '&quot;': '"', '&amp;': '&' };
  return text.replace(/&(?:lt|gt|quot|amp);/g, (entity) => letters[entity]);
}
