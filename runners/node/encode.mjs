/** A result in JSON: also values that JSON.stringify refuses or loses. */

export class InvalidOutput extends Error {}

const LONE_SURROGATE = /\p{Surrogate}/gu;

/** A text with a question mark for each half of a character. */
export function printable(text) {
  return text.replace(LONE_SURROGATE, '?');
}

/**
 * Dates become ISO 8601, bytes base64, Map an object (or pairs, when a key is not a string), Set a list, a large BigInt
 * its digits, an error its name and message, nothing at all null.
 *
 * @throws {InvalidOutput} naming the path of a circle, of NaN, of an infinity or of half a character
 */
export function encode(value) {
  try {
    return JSON.stringify(plain(value, 'result', new Set())) ?? 'null';
  } catch (fault) {
    if (fault instanceof InvalidOutput) throw fault;
    const tooDeep = fault instanceof RangeError && fault.message.includes('call stack');
    throw new InvalidOutput(tooDeep ? 'result is nested too deeply' : `result cannot be read: ${fault}`);
  }
}

function plain(value, path, ancestors) {
  switch (typeof value) {
    case 'bigint':
      return Number.isSafeInteger(Number(value)) ? Number(value) : value.toString();
    case 'number':
      if (!Number.isFinite(value)) throw new InvalidOutput(`${path} is ${value}, which JSON cannot hold`);
      return value;
    case 'string':
      return whole(value, path);
    case 'object':
      return value === null ? null : plainObject(value, path, ancestors);
    default:
      return value;
  }
}

function whole(text, path) {
  if (text.search(LONE_SURROGATE) >= 0) throw new InvalidOutput(`${path} holds a lone surrogate, which has no UTF-8 form`);
  return text;
}

function plainObject(value, path, ancestors) {
  if (ancestors.has(value)) throw new InvalidOutput(`${path} refers back to an object that contains it`);
  ancestors.add(value);
  const encoded = plainUnseen(value, path, ancestors);
  ancestors.delete(value);
  return encoded;
}

function plainUnseen(value, path, ancestors) {
  const bytes = asBytes(value);
  if (bytes !== null) return bytes.toString('base64');
  if (typeof value.toJSON === 'function') return plain(value.toJSON(''), path, ancestors);
  if (value instanceof Error) return plainMembers(Object.entries({ name: value.name, message: value.message }), path, ancestors);
  if (value instanceof Set) return plainList([...value], path, ancestors);
  if (value instanceof Map) {
    const keyed = [...value.keys()].every((key) => typeof key === 'string');
    return keyed ? plainMembers([...value], path, ancestors) : plainList([...value], path, ancestors);
  }
  if (value instanceof Number || value instanceof String || value instanceof Boolean) return plain(value.valueOf(), path, ancestors);
  if (Array.isArray(value) || ArrayBuffer.isView(value)) return plainList(value, path, ancestors);
  return plainMembers(Object.entries(value), path, ancestors);
}

function plainList(items, path, ancestors) {
  return Array.from(items, (item, index) => plain(item, `${path}[${index}]`, ancestors));
}

function plainMembers(entries, path, ancestors) {
  // Defined, not assigned: a member may be called __proto__.
  return Object.fromEntries(entries.map(([key, item]) => [whole(key, `${path}: a key`), plain(item, `${path}.${key}`, ancestors)]));
}

/** Buffers and their kin; not a list of numbers that happens to be typed, such as Float64Array. */
function asBytes(value) {
  if (value instanceof ArrayBuffer) return Buffer.from(value);
  if (value instanceof Uint8Array || value instanceof DataView) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  return null;
}
