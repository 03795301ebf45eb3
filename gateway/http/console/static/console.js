// Keeps a live log short, and its end in sight unless somebody has scrolled up; follows nothing that nobody can see.
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

// An EventSource that is open while its page can be seen: a browser has six connections to a gateway, for all tabs.
class SeenSource extends EventTarget {
  constructor(url) {
    super();
    this.url = url;
    this.names = new Set();
    this.closed = false;
    this.look = () => (document.hidden ? this.pause() : this.open());
    this.pass = (event) => this.dispatchEvent(new MessageEvent(event.type, { data: event.data }));
    document.addEventListener("visibilitychange", this.look);
    this.look();
  }

  get readyState() {
    return this.closed ? EventSource.CLOSED : (this.source?.readyState ?? EventSource.CONNECTING);
  }

  addEventListener(name, listener) {
    super.addEventListener(name, listener);
    if (this.names.has(name)) return;
    this.names.add(name);
    this.source?.addEventListener(name, this.pass);
  }

  open() {
    if (this.source) return;
    this.source = new EventSource(this.url);
    this.source.onopen = (event) => this.onopen?.(event);
    this.source.onerror = (event) => {
      if (this.source?.readyState === EventSource.CLOSED) this.close(); // whoever hears of it makes another one
      this.onerror?.(event);
    };
    for (const name of this.names) this.source.addEventListener(name, this.pass);
  }

  pause() {
    this.source?.close();
    this.source = undefined;
  }

  close() {
    this.closed = true;
    this.pause();
    document.removeEventListener("visibilitychange", this.look);
  }
}

htmx.createEventSource = (url) => new SeenSource(url);
