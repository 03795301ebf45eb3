/** How a command is called: one that has a parameter `callback` says its result to that, as Node's own functions do. */

const COMMENT_OR_TEXT = /\/\*[\s\S]*?\*\/|\/\/.*|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`(?:\\.|[^`\\])*`/g;
const CALLBACK = /^(?:callback|cb|done|next)$/i;

/** Calls a command, as `(params, host)`, `(params, callback)` or `(params, host, callback)`; what it throws is a rejection. */
export async function called(command, params, host) {
  const names = parameterNames(command);
  if (CALLBACK.test(names[1])) return told((callback) => command(params, callback, host));
  if (CALLBACK.test(names[2])) return told((callback) => command(params, host, callback));
  return command(params, host);
}

function told(call) {
  return new Promise((resolve, reject) => {
    const returned = call((fault, value) => (fault ? reject(fault) : resolve(value)));
    // A function that is async may do without its callback. What another one returns is a timer, a request, or the like.
    if (typeof returned?.then === 'function') returned.then((value) => value !== undefined && resolve(value), reject);
  });
}

/** The names of a function's parameters, in order; undefined for one that is taken apart. */
function parameterNames(command) {
  const source = Function.prototype.toString.call(command).replace(COMMENT_OR_TEXT, '');
  const start = source.indexOf('(');
  const arrow = source.indexOf('=>');
  if (start < 0 || (arrow >= 0 && arrow < start)) return [];
  return topLevelParts(source, start + 1).map((part) => /^[\p{ID_Start}$_][\p{ID_Continue}$]*/u.exec(part.trim())?.[0]);
}

/** What stands between commas, up to the bracket that closes. */
function topLevelParts(source, start) {
  const parts = [];
  let depth = 0;
  let from = start;
  for (let at = start; at < source.length; at++) {
    const letter = source[at];
    if (depth === 0 && (letter === ',' || letter === ')')) {
      parts.push(source.slice(from, at));
      if (letter === ')') break;
      from = at + 1;
    }
    depth += { '(': 1, '[': 1, '{': 1, ')': -1, ']': -1, '}': -1 }[letter] ?? 0;
  }
  return parts;
}
