/** A result in JSON: also values that JSON.stringify refuses or loses. */

export class InvalidOutput extends Error {}

const LONGEST = 1_000_000; // values that are yielded: nobody knows whether there is an end
const LONE_SURROGATE = /\p{Surrogate}/gu;

/** A text with a question mark for each half of a character. */
export function printable(text) {
  return text.replace(LONE_SURROGATE, '?');
}

/**
 * Dates become ISO 8601, bytes base64, Map an object (or pairs, when a key is not a string), Set and what else is iterable a
 * list, a large BigInt its digits, an error its name and message, nothing at all null. Methods are left out, as JSON does it.
 *
 * @throws {InvalidOutput} naming the path of a circle, of NaN, of an infinity, of half a character, or of what has no JSON
 *   form: a function, a symbol, a promise, a response that nobody has read
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
    case 'boolean':
    case 'undefined':
      return value;
    default:
      throw new InvalidOutput(`${path} is a ${typeof value}, which has no JSON form`);
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
  if ([Number, String, Boolean, BigInt].some((boxed) => value instanceof boxed)) return plain(value.valueOf(), path, ancestors);
  if (Array.isArray(value) || ArrayBuffer.isView(value)) return plainList(value, path, ancestors);
  if (typeof value[Symbol.asyncIterator] === 'function') throw new InvalidOutput(`${path} is ${kind(value)} that nobody has read`);
  const entries = Object.entries(value);
  if (entries.length > 0 || isOrdinary(value)) {
    return plainMembers(entries.filter(([, item]) => typeof item !== 'function'), path, ancestors);
  }
  if (typeof value[Symbol.iterator] === 'function') return plainList(bounded(value, path), path, ancestors);
  throw new InvalidOutput(`${path} is ${kind(value)}, which has no JSON form`);
}

/** Not an object of a kind that keeps what it holds to itself: a Promise, a RegExp, a Response. */
function isOrdinary(value) {
  return Object.prototype.toString.call(value) === '[object Object]' && typeof value[Symbol.iterator] !== 'function';
}

function kind(value) {
  const name = value.constructor?.name || Object.prototype.toString.call(value).slice(8, -1);
  return `${/^[aeiou]/i.test(name) ? 'an' : 'a'} ${name}`;
}

function plainList(items, path, ancestors) {
  return Array.from(items, (item, index) => plain(item, `${path}[${index}]`, ancestors));
}

function* bounded(items, path) {
  let count = 0;
  for (const item of items) {
    if (++count > LONGEST) throw tooMany(path);
    yield item;
  }
}

function tooMany(path) {
  return new InvalidOutput(`${path} yields more than ${LONGEST} values`);
}

/** What a command gives piece by piece, read to its end: a list, or the bytes or the text of a stream. */
export async function collected(value) {
  if (!isPiecewise(value)) return value;
  const pieces = [];
  for await (const piece of value) {
    if (pieces.length === LONGEST) throw tooMany('result');
    pieces.push(piece);
  }
  if (!isStream(value)) return pieces;
  return pieces.every((piece) => typeof piece === 'string') ? pieces.join('') : asBytesOfStream(pieces);
}

function isPiecewise(value) {
  if (typeof value !== 'object' || value === null) return false;
  const isIterator = typeof value.next === 'function' && typeof value[Symbol.iterator] === 'function';
  return isIterator || typeof value[Symbol.asyncIterator] === 'function';
}

/** One whose pieces are parts of a whole, cut anywhere. */
function isStream(value) {
  return value.readableObjectMode === false || value instanceof ReadableStream;
}

function asBytesOfStream(pieces) {
  return pieces.every((piece) => piece instanceof Uint8Array) ? Buffer.concat(pieces) : pieces;
}

/** Has the bytes of a version 1 result go out as they are: JSON has no form for them. */
export function withBytes(result) {
  const isLegacy = typeof result === 'object' && result !== null && 'mimetype' in result && typeof result.response === 'object';
  return isLegacy && result.response !== null && asBytes(result.response) ? { ...result, encoding: 'base64' } : result;
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
