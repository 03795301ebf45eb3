/** Why a module could not be loaded: for want of code, or of what only its commands need. */

const CODE = /^(?:ERR_.*(?:MODULE|REQUIRE|PACKAGE|IMPORT|DLOPEN|EXTENSION|ESM|TYPESCRIPT).*|MODULE_NOT_FOUND)$/;
// Loaders of native code throw plain errors, each with words of its own.
const WORDS = /\bnative (?:build|binding|module)|\bbindings file\b|\.node['"]?\b|is not defined in ES module scope/i;

/**
 * Whether a fault is of the code as it lies there: a file or package that is missing, text that does not parse, a module of the
 * other kind, native code that is not there or made for another node. What is there only when it serves (variables, other
 * machines) is no such thing.
 */
export function isUnloadable(fault, depth = 0) {
  if (!(fault instanceof Error) || depth > 4) return false;
  const { code, message, cause } = fault;
  if (CODE.test(String(code)) || WORDS.test(message) || (fault instanceof SyntaxError && isOfTheLoader(fault))) return true;
  return isUnloadable(cause, depth + 1);
}

/** Not thrown by JSON.parse, or by a RegExp, of what it was given. */
function isOfTheLoader({ stack }) {
  const [first] = String(stack).match(/^ {4}at .*$/m) ?? [''];
  return first === '' || first.includes('node:internal/') || first.includes('node:vm');
}
