// Keeps a live log short, and its end in sight unless somebody has scrolled up.
"use strict";

const MOST = 1000; // lines

document.addEventListener("htmx:sseBeforeMessage", (event) => {
  const log = event.target.closest("[role=log]");
  if (log) log.dataset.follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
});

document.addEventListener("htmx:sseMessage", (event) => {
  const log = event.target.closest("[role=log]");
  if (!log) return;
  while (log.children.length > MOST) log.firstElementChild.remove();
  if (log.dataset.follows === "true") log.scrollTop = log.scrollHeight;
});
