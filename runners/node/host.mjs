/**
 * Runs one request against one module: `node host.mjs [--fd3 | --lines] /abs/path/connector.mjs`.
 *
 * The module's exported functions are its commands: `fn(params, {config, task_data, context})`, which return a value, a promise
 * or an iterator, or have a parameter `callback`. They are described by an exported `describe` mapping (which is then the
 * whole list) or by the JSDoc above them.
 *
 * The result is one line, and goes to descriptor 1, or to descriptor 3 with `--fd3`. process.stdout and console are log. Node cannot move
 * descriptor 1, so only `--fd3` also keeps apart what inherited children, addons and fs.writeSync(1) write there.
 *
 * With `--lines` the module serves many requests, one after the other: a line each on stdin, a line each on descriptor 3,
 * until stdin ends.
 */
import { readFileSync, writeSync } from 'node:fs';
import { basename } from 'node:path';
import { Readable } from 'node:stream';
import { pathToFileURL } from 'node:url';

import { called } from './calling.mjs';
import { describeModule } from './describe.mjs';
import { isUnloadable } from './unloadable.mjs';
import { InvalidOutput, collected, encode, printable, withBytes } from './encode.mjs';

async function main(args) {
  const option = ['--fd3', '--lines'].includes(args[0]) ? args.shift() : null;
  const [path] = args;
  if (path === undefined) {
    process.stderr.write('usage: node host.mjs [--fd3 | --lines] MODULE\n');
    process.exit(64);
  }
  protectStandardOutput();
  if (option === '--lines') return serveLines(path);
  return serveOne(path, option === '--fd3' ? 3 : 1);
}

async function serveOne(path, results) {
  const finish = (answer) => {
    process.off('exit', early);
    writeAll(results, Buffer.from(`${answer.document}\n`));
    process.exit(answer.status);
  };
  // The module may fail outside of any promise that we hold: in a timer, an emitter, a rejection nobody awaits.
  process.on('uncaughtException', (fault) => finish(raised(fault)));
  process.on('unhandledRejection', (fault) => finish(raised(fault)));
  process.on('beforeExit', () => finish(raised(new UnsettledPromise('the connector waits for something that never comes'))));

  // The module is loaded ahead of the request, so that a process on standby has booted. Faults wait for the request.
  const loading = load(path);
  const early = (status) => writeAll(results, Buffer.from(`${raised(new ProcessExit(status)).document}\n`));
  const loaded = () => process.off('exit', early);
  process.on('exit', early);
  loading.then(loaded, loaded);
  await rehearse();
  const request = await readAll(process.stdin);
  finish(await answer(loading, request));
}

/** Goes the host's own way through a request, so that its code is warm when one comes. The module is not asked. */
async function rehearse() {
  const module = { commands: new Map([['Echo', (params) => params]]) };
  const request = Buffer.from('{"op": "execute", "command": "Echo", "params": {"text": ""}, "context": {}}');
  await answer(module, await readAll([request]));
}

/** Serves a request a line; what fails outside of any promise ends the process, and the request that it was serving. */
async function serveLines(path) {
  const requests = process.stdin;
  // The connector must not read the next request.
  Object.defineProperty(process, 'stdin', { value: Readable.from([]), configurable: true, enumerable: true });
  let serving = false;
  const reply = (answer) => {
    if (serving) writeAll(3, Buffer.from(`${answer.document}\n`));
    serving = false;
  };
  const finish = (answer) => {
    reply(answer);
    process.exit(answer.status);
  };
  process.on('uncaughtException', (fault) => finish(raised(fault)));
  process.on('unhandledRejection', (fault) => finish(raised(fault)));

  const loading = load(path);
  loading.catch(() => {});
  for await (const line of lines(requests)) {
    serving = true;
    reply(await answer(loading, line));
  }
  process.exit(0);
}

/** Splits at line feeds alone: a JSON text may hold U+2028, where node:readline would split too. */
async function* lines(stream) {
  let parts = [];
  for await (const chunk of stream) {
    let start = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, start)) {
      yield Buffer.concat([...parts, chunk.subarray(start, end)]).toString('utf8');
      parts = [];
      start = end + 1;
    }
    parts.push(chunk.subarray(start));
  }
}

/** Answers one request with an exit status and one JSON document; never rejects. */
async function answer(loading, text) {
  const request = parse(text);
  if (request === null) return told('invalid_request', 'the request is not a JSON object with op describe or execute');
  let module;
  try {
    module = await loading;
  } catch (fault) {
    return raised(fault, isUnloadable(fault) ? { unloadable: true } : {});
  }
  try {
    return request.op === 'describe' ? succeeded(module.description) : await execute(module, request);
  } catch (fault) {
    return raised(fault);
  }
}

async function execute(module, request) {
  const command = module.commands.get(request.command);
  if (command === undefined) return told('command_not_found', `there is no command ${request.command}`);
  const { params = {}, config = {}, task_data = {}, context = {} } = request;
  try {
    const result = await collected(await called(command, params, { config, task_data, context }));
    return succeeded(withBytes(result));
  } catch (fault) {
    if (!(fault instanceof InvalidOutput)) throw fault;
    return failed({ error_code: 'connector_invalid_output', message: printable(fault.message), invalid_output: true });
  }
}

async function load(path) {
  const namespace = await import(pathToFileURL(path));
  // A CommonJS module is its default export; an ES module may hold its commands in one.
  const exported = { ...(isMapping(namespace.default) ? namespace.default : {}), ...namespace };
  delete exported.default;
  delete exported['module.exports'];
  return describeModule(basename(path), exported, () => readFileSync(path, 'utf8'));
}

function parse(text) {
  try {
    const request = JSON.parse(text);
    return isMapping(request) && ['describe', 'execute'].includes(request.op) ? request : null;
  } catch {
    return null;
  }
}

function succeeded(value) {
  return { status: 0, document: encode(value) };
}

function told(code, message) {
  return failed({ error_code: code, message: printable(message) });
}

function raised(fault, more = {}) {
  process.stderr.write(`${story(fault)}\n`);
  const marks = isOutOfMemory(fault) ? { out_of_memory: true } : more;
  return failed({ error_code: printable(faultName(fault)), message: printable(faultMessage(fault)), raised: true, ...marks });
}

/** Of a worker: when the heap of the process itself is full it ends, and says so in its log. */
function isOutOfMemory(fault, depth = 0) {
  if (!isMapping(fault)) return false;
  return fault.code === 'ERR_WORKER_OUT_OF_MEMORY' || causesOf(fault, depth).some((cause) => isOutOfMemory(cause, depth + 1));
}

function failed(error) {
  return { status: 1, document: encode({ error }) };
}

class UnsettledPromise extends Error {}

class ProcessExit extends Error {
  constructor(status) {
    super(`the module ended its process with status ${status} when it was loaded`);
  }
}

/** The name that the author gave to the error, or else that of its class. */
function faultName(fault) {
  const { constructor } = Object(fault);
  if (!isMapping(fault) || typeof constructor !== 'function') return 'Error';
  const named = [fault, constructor.prototype].some((owner) => Object.hasOwn(owner, 'name'));
  // Node's own errors are instances of one nameless kind of class.
  const name = named || constructor.name === 'NodeError' ? fault.name : constructor.name;
  return String(name || 'Error');
}

/** `fetch failed` alone helps nobody: the causes are part of the message. */
function faultMessage(fault, depth = 0) {
  if (!isMapping(fault)) return String(fault);
  const causes = causesOf(fault, depth).map((cause) => faultMessage(cause, depth + 1));
  return [fault.message, causes.join('; ')].filter(Boolean).join(': ') || faultName(fault);
}

/** Stacks only: the further properties of an error are where HTTP libraries keep headers with credentials. */
function story(fault, depth = 0) {
  if (!isMapping(fault)) return `thrown: ${String(fault)}`;
  const causes = causesOf(fault, depth).map((cause) => `caused by: ${story(cause, depth + 1)}`);
  return [fault.stack ?? faultMessage(fault), ...causes].join('\n');
}

/** What an error says to be due to; not endlessly, since errors can be each other's cause. */
function causesOf({ cause, errors }, depth) {
  if (depth > 4) return [];
  return [...(Array.isArray(errors) ? errors : []), ...(cause === undefined ? [] : [cause])];
}

function isMapping(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function protectStandardOutput() {
  // console looks process.stdout up when it is first used, which is after this.
  Object.defineProperty(process, 'stdout', { get: () => process.stderr, configurable: true, enumerable: true });
}

async function readAll(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
}

/** Writes at once and in full, since process.exit() does not wait for streams. */
function writeAll(fd, bytes) {
  for (let written = 0; written < bytes.length; ) {
    try {
      written += writeSync(fd, bytes, written);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

await main(process.argv.slice(2));
