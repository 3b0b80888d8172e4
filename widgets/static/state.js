// The state of a panel in a page: its runs, the queue of messages, and the views that show them.
import { ENDED, say } from "./text.js";
import { appendRows, bokehOfPage, loadBokeh, unpack } from "./page.js";
import { Link } from "./link.js";
import { View } from "./view.js";

const MOST_KEPT = 1500;

const newRun = () => ({
  full: null, facts: null, theme: null, rows: {}, items: new Map(),
  events: [], console: new Map(), samples: [], history: [], marks: [], logged: null, logged_item: null,
});

export class State {
  constructor(model) {
    this.model = model;
    this.views = new Set();
    this.orphans = [];
    this.adopted = new Set(); // views that are shown in place of a picture
    this.runs = [newRun()];
    this.queue = [];
    this.work = Promise.resolve();
    this.link = new Link(model, {
      due: () => this.runs.some(({ facts }) => facts && !ENDED.includes(facts.status)),
      ask: () => this.looked(),
      lacking: () => this.runs.some(({ full }) => !full),
      begin: () => this.hello(),
      changed: () => this.views.forEach((view) => view.cut()),
    });
    this.onMessage = (content, buffers) => {
      this.link.heard();
      // at once: the output that becomes this picture may be gone before what else has come is drawn
      if (content.kind === "picture") return this.watchForPicture(content);
      this.queue.push([content, buffers ?? []]);
      if (this.queue.length === 1) this.later(() => this.drain());
    };
    model.on("msg:custom", this.onMessage);
    this.themes = new MutationObserver(() => this.views.forEach((view) => view.repaint()));
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light", "style"] });
    this.onVisibility = () => this.looked();
    document.addEventListener("visibilitychange", this.onVisibility);
    this.hello();
  }

  tell(content) {
    this.link.send(() => this.model.send(content));
  }

  hello() {
    this.tell({ kind: "hello", have: bokehOfPage.version });
  }

  // Runs act() after all earlier work. An error is shown and does not stop later work.
  later(act) {
    this.work = this.work.then(act).catch((error) => this.trouble(error?.stack ?? String(error)));
    return this.work;
  }

  // Takes all queued messages and draws once, so that a slow page catches up.
  async drain() {
    const changes = new Map();
    const seen = new Map();
    while (this.queue.length) {
      if (this.queue[0][0].kind === "full" && changes.size) break;
      const [content, buffers] = this.queue.shift();
      if (await this.take(content, buffers, changes)) seen.set(content.run, content.seq);
    }
    for (const [number, change] of changes) {
      for (const view of this.views) {
        if (view.number === number) await view.take(change);
        if (view.tab === "compare") view.fillCompare();
      }
    }
    for (const [run, seq] of seen) this.acknowledge(run, seq);
    if (this.queue.length) this.later(() => this.drain());
  }

  acknowledge(run, seq) {
    const tell = () => this.tell({ kind: "ack", run, seq, views: this.looks() });
    if (document.hidden) setTimeout(tell, 0);
    else requestAnimationFrame(() => setTimeout(tell, 0)); // after the page has been drawn
  }

  async take(content, buffers, changes) {
    if (content.kind === "bokeh") await loadBokeh(content.version, buffers[0]);
    else if (content.kind === "full") return this.takeFull(content, buffers);
    else if (content.kind === "delta") return this.takeDelta(content, buffers, changes);
    else if (content.kind === "answer") this.answered(content);
    else if (content.kind === "trouble") this.trouble(content.text, content.detail);
    return false;
  }

  async takeFull(content, buffers) {
    const { run: number } = content;
    while (this.runs.length < content.runs.length) this.runs.push(newRun());
    const run = (this.runs[number] = newRun());
    run.full = content;
    run.seq = content.seq;
    run.facts = content.facts;
    run.theme = content.theme;
    run.rows = unpack(content.columns, buffers);
    this.keep(run, content.extra);
    for (const item of content.compare) run.items.set(item.name, item);
    for (const view of this.views) {
      if (view.number === number) {
        for (const { figures } of view.tabs.values()) figures?.clear();
        view.overview.events.clear();
        view.console.clear();
        await view.fill();
      }
      if (view.tab === "compare") view.fillCompare(); // this tab shows all runs
    }
    return true;
  }

  takeDelta(content, buffers, changes) {
    const run = this.runs[content.run];
    if (content.epoch !== run?.full?.epoch || run.lost) return false;
    if (content.seq !== run.seq + 1) {
      run.lost = true; // messages were lost with the connection: request the full state
      this.hello();
      return false;
    }
    run.seq = content.seq;
    if (!changes.has(content.run)) changes.set(content.run, { news: {}, replaced: new Set(), drawn: false, extra: {} });
    const change = changes.get(content.run);
    const replace = new Set(content.replace);
    for (const [name, columns] of Object.entries(unpack(content.columns, buffers))) {
      if (replace.has(name)) {
        run.rows[name] = columns;
        change.news[name] = columns;
        change.replaced.add(name);
      } else {
        appendRows((run.rows[name] ??= {}), columns);
        if (change.replaced.has(name)) continue; // the complete content is filled in anyway
        appendRows((change.news[name] ??= {}), columns);
      }
    }
    for (const item of content.figures ?? []) run.items.set(item.name, item);
    change.drawn ||= Boolean(content.figures?.length);
    Object.assign(run.facts, content.facts);
    this.keep(run, content.extra);
    for (const [name, entries] of Object.entries(content.extra)) {
      const adds = name === "events" || name === "console";
      change.extra[name] = adds ? [...(change.extra[name] ?? []), ...entries] : entries;
    }
    return true;
  }

  keep(run, extra) {
    const byId = new Map(run.events.map((entry) => [entry.id, entry]));
    for (const entry of extra.events ?? []) byId.set(entry.id, entry);
    run.events = [...byId.values()].slice(-200);
    for (const entry of extra.console ?? []) run.console.set(entry.id, entry);
    while (run.console.size > MOST_KEPT) run.console.delete(run.console.keys().next().value);
    for (const name of ["samples", "history", "marks", "logged", "logged_item"]) run[name] = extra[name] ?? run[name];
  }

  looks() {
    return [...this.views].map((view) => ({ run: view.number, tab: view.tab, visible: view.visible && !document.hidden }));
  }

  looked() {
    this.tell({ kind: "look", views: this.looks() });
  }

  choose(run, what) {
    this.tell({ kind: "choose", run, ...what });
  }

  control(run, name, value) {
    this.tell({ kind: "control", run, name, value });
  }

  answered({ run, name, error }) {
    for (const view of this.views) {
      if (view.number !== run) continue;
      view.controls.answered(name, error);
      if (error) {
        view.quick.refused(name);
        say(view.about, error);
        view.about.dataset.level = "error";
      }
    }
  }

  trouble(text, detail = "") {
    console.error("panel:", text, detail);
    for (const view of this.views) {
      say(view.about, text);
      view.about.dataset.level = "error";
    }
  }

  add(view) {
    this.views.add(view);
    this.later(() => view.fill());
    this.looked();
    return view;
  }

  show(element) {
    const view = this.add(new View(this));
    element.append(view.root);
    return () => {
      if (!this.picture) this.drop(view);
      else if (!this.adopted.has(view)) this.orphans.push(view); // the picture replaced its output; adopt() puts it back
    };
  }

  drop(view) {
    this.views.delete(view);
    view.dispose();
    this.looked();
  }

  // The run has ended and its outputs become pictures: show the live panel in their place while this page is open.
  watchForPicture(picture) {
    if (this.picture) return;
    this.picture = picture;
    this.adopt(document);
    // an observer is called before the page is painted: the picture is never seen in place of the panel
    this.pictures = new MutationObserver((records) => {
      for (const { target, addedNodes } of records) {
        for (const node of target.nodeName === "IMG" ? [target.parentNode] : addedNodes) this.adopt(node);
      }
    });
    this.pictures.observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["src"] });
  }

  adopt(node) {
    const { length, at, part } = this.picture;
    const wanted = 'img[src^="data:image/png;base64,"]:not([data-dw-hidden])';
    const images = node?.querySelectorAll ? [...node.querySelectorAll(wanted)] : [];
    if (node?.matches?.(wanted)) images.push(node);
    for (const image of images) {
      const data = image.src.slice("data:image/png;base64,".length);
      if (data.length !== length || data.slice(at, at + part.length) !== part) continue;
      image.dataset.dwHidden = "true";
      image.style.display = "none";
      const view = this.orphans.shift() ?? this.detached() ?? this.add(new View(this));
      this.adopted.add(view);
      image.parentElement.insertBefore(view.root, image);
      this.later(() => view.fill());
    }
  }

  // A view whose output was removed, and whose end the front end has not told yet.
  detached() {
    return [...this.views].find((view) => !view.root.isConnected);
  }

  dispose() {
    this.link.dispose();
    this.model.off("msg:custom", this.onMessage);
    document.removeEventListener("visibilitychange", this.onVisibility);
    this.themes.disconnect();
    this.pictures?.disconnect();
    for (const view of this.views) view.dispose();
    document.querySelectorAll("img[data-dw-hidden]").forEach((image) => {
      if (!image.previousElementSibling?.classList.contains("dw")) image.style.display = "";
    });
  }
}
