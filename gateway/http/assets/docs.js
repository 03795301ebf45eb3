// Fetches the OpenAPI document, with the key that is typed where one is needed, and has Swagger UI show it.
'use strict';

const ask = document.getElementById('ask');
const input = document.getElementById('key');
const told = document.getElementById('told');
const MANY = 30; // operations that are still shown unfolded
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
  const ui = SwaggerUIBundle({
    spec: found,
    dom_id: '#document',
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
