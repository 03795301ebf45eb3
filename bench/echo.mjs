/**
 * Answer at once: what is measured is node.
 * @param {object} params
 * @param {string} params.text - Any text
 */
export function Go({ text }) {
  return { bytes: text.length };
}
