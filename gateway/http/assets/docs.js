// Fetches the OpenAPI document, with the key that is typed where one is needed, and has Swagger UI show it.
'use strict';

const ask = document.getElementById('ask');
const input = document.getElementById('key');
const told = document.getElementById('told');
const choose = document.getElementById('choose');
const connector = document.getElementById('connector');
const MANY = 30; // operations that are still shown unfolded
const LARGE = 500; // paths that Swagger UI reads at once: of a thousand connectors, it would for a minute
const NEEDED = 'This gateway needs a key.';

const dark = matchMedia('(prefers-color-scheme: dark)');
const paint = () => document.documentElement.classList.toggle('dark-mode', dark.matches);
dark.addEventListener('change', paint);
paint();

function asking(why) {
  ask.hidden = false;
  input.focus();
  return new Error(why);
}

async function fetched(key) {
  if (!key && 'keyed' in document.documentElement.dataset) throw asking(NEEDED);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch('openapi.json', { headers, cache: 'no-store' });
  if (answer.status === 401) throw asking(key ? 'This key is not known here.' : NEEDED);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error.message);
  return found;
}

function shown(found, key) {
  // The page's own folder is what all paths begin with, whatever a proxy puts before it.
  found.servers = [{ url: new URL('.', location.href).href.replace(/\/$/, '') }];
  ask.hidden = found.security.length === 0;
  choose.hidden = Object.keys(found.paths).length <= LARGE;
  connector.replaceChildren(...found.tags.map((tag) => new Option(tag.name)));
  connector.onchange = () => drawn(of(connector.value, found), key);
  drawn(choose.hidden ? found : of(connector.value, found), key);
}

function of(name, found) {
  const isOf = ([, operations]) => Object.values(operations).some((one) => one.tags.includes(name));
  const paths = Object.fromEntries(Object.entries(found.paths).filter(isOf));
  return { ...found, paths, tags: found.tags.filter((tag) => tag.name === name) };
}

function drawn(found, key) {
  const domNode = document.createElement('div');
  document.getElementById('document').replaceChildren(domNode);
  const ui = SwaggerUIBundle({
    spec: found,
    domNode,
    docExpansion: Object.keys(found.paths).length > MANY ? 'none' : 'list',
    filter: true,
    defaultModelsExpandDepth: 0,
    validatorUrl: null,
    onComplete: () => { if (key) ui.preauthorizeApiKey('bearer', key); },
  });
}

async function show(key) {
  told.textContent = 'Loading …';
  try {
    if (!window.SwaggerUIBundle) throw new Error('Swagger UI is not installed here: it comes with the wheel.');
    shown(await fetched(key), key);
    told.textContent = '';
  } catch (problem) {
    told.textContent = problem.message;
  }
}

ask.addEventListener('submit', (event) => {
  event.preventDefault();
  show(input.value.trim());
});
show('');
