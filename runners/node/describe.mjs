/** What a module offers: its commands, and how they are described. */

const TYPES = { string: 'str', boolean: 'bool', integer: 'int', int: 'int' };

/**
 * @param {string} name of the module, for problems
 * @param {object} exported what it exports
 * @param {function} readSource gives its text; called only when the JSDoc is needed
 * @returns {{commands: Map, description: object}} the functions by command name, and the answer to `describe`;
 *   reading description is what costs, so that executing does not pay for it
 */
export function describeModule(name, exported, readSource) {
  const functions = Object.entries(exported).filter(([, value]) => isCommand(value));
  if (isMapping(exported.describe)) return declared(name, exported.describe, new Map(functions));
  return {
    commands: new Map(functions),
    get description() {
      const comments = jsdocComments(readSource());
      return answer(functions.map(([command]) => fromJsdoc(command, comments.get(command))));
    },
  };
}

function declared(name, mapping, functions) {
  const named = Object.entries(mapping);
  const commands = new Map(named.filter(([command]) => functions.has(command)).map(([command]) => [command, functions.get(command)]));
  const problems = named
    .filter(([command]) => !functions.has(command))
    .map(([command]) => ({ module: name, message: `describe names ${command}, but no such function is exported` }));
  const listed = named.filter(([command]) => commands.has(command));
  return { commands, description: answer(listed.map(([command, declaration]) => fromMapping(command, declaration ?? {})), problems) };
}

function answer(commands, problems = []) {
  return { commands, auths: [], ...(problems.length > 0 && { problems }) };
}

function fromMapping(name, { parameters, ...rest }) {
  const listed = Object.entries(parameters ?? {}).map(([id, facts]) => ({ id, type: 'any', required: false, ...facts }));
  return { async: false, ...rest, name, parameters: listed };
}

/** Without a comment nothing is known about the parameters, so all are let through. */
function fromJsdoc(name, comment) {
  if (comment === undefined) return { name, parameters: [], additional_parameters: true, async: false };
  const [description, ...tags] = withoutStars(comment).split(/^\s*(?=@)/m);
  const parameters = tags.map(parameter).filter((found) => found !== null);
  return { name, ...described(description), parameters: membersOnly(parameters), async: false };
}

/** The comments that stand right above a function, or above what one is assigned to, by name. */
function jsdocComments(source) {
  const above =
    /\/\*\*((?:[^*]|\*(?!\/))*)\*\/\s*(?:export\s+)?(?:async\s+)?(?:function\s*\*?\s*|(?:const|let|var)\s+|(?:module\.)?exports\.)([\p{ID_Start}$_][\p{ID_Continue}$]*)/gu;
  return new Map([...source.matchAll(above)].map(([, comment, name]) => [name, comment]));
}

function withoutStars(comment) {
  return comment.replace(/^[ \t]*\*[ \t]?/gm, '');
}

/** `@param {type} name - text`, `[name]` and `[name=default]` for what may be left out; null for any other tag, and a callback. */
function parameter(tag) {
  const start = /^@(?:param|arg|argument)\s+/.exec(tag);
  if (start === null) return null;
  const { type, rest } = splitType(tag.slice(start[0].length));
  if (/^[?!]?function\b/i.test(type)) return null;
  const parts = /^(\[)?\s*([\p{ID_Continue}$.-]+)\s*(?:=\s*((?:"[^"]*"|'[^']*'|[^\]])*))?\]?\s*(?:-\s*)?([\s\S]*)$/u.exec(rest);
  if (parts === null) return null;
  const [, bracket, id, fallback, text] = parts;
  const optional = bracket !== undefined || /^\?|=$/.test(type);
  return { id, ...typed(type), required: !optional, ...defaulted(fallback), ...described(text) };
}

/** Takes the `{type}` off the front; a type may itself contain braces. */
function splitType(text) {
  if (!text.startsWith('{')) return { type: '', rest: text };
  let depth = 0;
  const end = [...text].findIndex((letter) => {
    depth += { '{': 1, '}': -1 }[letter] ?? 0;
    return depth === 0;
  });
  return end < 0 ? { type: '', rest: text } : { type: text.slice(1, end).trim(), rest: text.slice(end + 1).trimStart() };
}

function typed(type) {
  const bare = type.replace(/^[?!]|=$/g, '');
  if (bare === 'number') return { type: 'any', schema: { type: 'number' } };
  return { type: TYPES[bare] ?? 'any' };
}

function defaulted(text) {
  if (text === undefined) return {};
  try {
    return { default: JSON.parse(text.trim()) };
  } catch {
    return { default: text.trim().replace(/^'(.*)'$/s, '$1') };
  }
}

function described(text) {
  const description = text.replace(/\s+/g, ' ').trim();
  return description === '' ? {} : { description };
}

/** Of `params`, `params.to` and `host.config`, what is documented under the first name: `to`. */
function membersOnly(parameters) {
  const root = parameters[0]?.id;
  const members = parameters.filter(({ id }) => id.startsWith(`${root}.`));
  if (members.length === 0) return parameters;
  return members.map((member) => ({ ...member, id: member.id.slice(root.length + 1) }));
}

/** Classes are exported for other code, and cannot be called. */
function isCommand(value) {
  return typeof value === 'function' && !/^class\b/.test(Function.prototype.toString.call(value));
}

function isMapping(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
