// The figures of one tab. BokehJS draws them when the tab is first opened; new rows are then streamed to them. A figure
// without rows is not shown; a tab without figures says why. All figures of a view share one range of steps: selecting a
// range in one sets it in all, including figures over time.
import { make, say } from "./text.js";
import { bokehOfPage, carryOver, paint, rowsOf } from "./page.js";

const WAITING = "Waiting for the kernel…";

export class Figures {
  // run(): the state of the run that is shown; window: the view's shared range of steps. Elements that belong to a
  // figure stand ``before`` or ``after`` it (figure -> element) while it is shown.
  constructor(tab, run, window, { before = {}, after = {} } = {}) {
    Object.assign(this, { tab, run, window, before, after });
    this.node = make("div", "dw-figures");
    this.boxes = new Map();
    this.waiting = make("div", "dw-waiting", this.node);
    this.nothing = make("div", "dw-nothing", null, { role: "status" });
    say(this.waiting, WAITING);
  }

  // Says why figures are missing when the kernel is gone; trouble "": the kernel responds.
  cut(trouble) {
    say(this.waiting, trouble ? "The kernel ended before these figures were drawn." : WAITING);
  }

  // Draws the figures that are not drawn yet, in the order given by the kernel. BokehJS draws in the document only: a
  // view that is outside it (before its output is attached, or while the output becomes a picture) is drawn when it is
  // there. Returns false if figures are left for then.
  async draw() {
    if (!bokehOfPage.api) return true;
    const items = [...this.run().items.values()].filter(({ tab }) => tab === this.tab);
    for (const about of items) {
      if (!this.node.isConnected) return false;
      if (this.boxes.get(about.name)?.about === about) continue;
      this.remove(about.name);
      if (about.missing) continue;
      const box = make("div", `dw-figure${about.wide ? " dw-wide" : ""}`, null, { role: "img", "aria-label": about.title });
      box.dataset.figure = about.name;
      box.style.height = `${about.height}px`;
      const entry = { about, box, plot: null, source: null };
      this.place(entry, items);
      this.nothing.remove(); // drawing takes its time on a busy machine
      if (about.failed) this.sayFailed(entry, about.failed);
      else await this.embed(entry).catch((error) => this.failed(entry, error));
    }
    if (items.length) this.waiting.remove();
    this.sayNothing(items);
    this.fillRows();
    return true;
  }

  // A narrow figure that has no other beside it takes the whole row.
  fillRows() {
    let alone = null;
    const end = () => alone?.classList.add("dw-alone");
    for (const box of this.node.children) {
      if (box.classList.contains("dw-wide") || !box.classList.contains("dw-figure")) {
        end();
        alone = null;
      } else {
        box.classList.remove("dw-alone");
        alone = alone ? null : box;
      }
    }
    end();
  }

  failed(entry, error) {
    if (entry.box.isConnected) this.sayFailed(entry, String(error));
    else this.remove(entry.about.name);
  }

  // Inserts a figure before those that follow it.
  place(entry, items) {
    const { name } = entry.about;
    const later = items.slice(items.indexOf(entry.about) + 1).find((about) => this.boxes.has(about.name));
    const next = later ? (this.before[later.name] ?? this.boxes.get(later.name).box) : null;
    this.boxes.set(name, entry);
    for (const node of [this.before[name], entry.box, this.after[name]]) if (node) this.node.insertBefore(node, next);
  }

  remove(name) {
    const entry = this.boxes.get(name);
    if (!entry) return;
    this.boxes.delete(name);
    entry.plot?.document?.clear();
    for (const node of [this.before[name], entry.box, this.after[name]]) node?.remove();
  }

  sayNothing(items) {
    const first = this.boxes.size ? null : items.find(({ missing }) => missing);
    say(this.nothing, first?.missing ?? "");
    if (first) this.node.append(this.nothing);
    else this.nothing.remove();
  }

  // In the figure's place: why it is not there. The other figures go on.
  sayFailed({ about, box }, why) {
    console.error(`figure ${about.name}:`, why);
    box.setAttribute("role", "note");
    box.dataset.failed = "true";
    const message = make("div", "dw-failed", null);
    say(make("strong", "", message), about.title);
    say(make("span", "", message), `This figure cannot be drawn: ${why}`);
    box.replaceChildren(message);
  }

  async embed(entry) {
    const views = await bokehOfPage.api.embed.embed_item(structuredClone(entry.about.item), entry.box);
    if (this.boxes.get(entry.about.name) !== entry) return;
    entry.plot = [...views.roots][0].model;
    entry.box.dwPlot = entry.plot; // for the browser's console and for tests
    entry.source = entry.plot.document.get_model_by_name("rows");
    entry.plot.subscribed_events = new Set(["rangesupdate"]); // the events that the plot passes to its document
    entry.plot.document.on_event("rangesupdate", () => this.brushed(entry));
    this.fill(entry);
    this.mark(entry);
    this.show(entry);
    paint(entry.plot, this.colours());
  }

  fill(entry) {
    const rows = this.run().rows[entry.about.name];
    if (entry.source && rowsOf(rows)) entry.source.data = structuredClone(rows); // Bokeh fails on columns without rows
    else if (entry.source && entry.source.get_length()) entry.source.clear();
  }

  // Appends new rows, and replaces the content of the figures named in ``replaced``.
  feed(news, replaced) {
    for (const entry of this.boxes.values()) {
      const { name } = entry.about;
      if (!entry.source) continue;
      if (replaced.has(name)) this.fill(entry);
      else if (rowsOf(news[name])) {
        if (entry.source.get_length()) entry.source.stream(news[name]);
        else this.fill(entry);
      }
    }
  }

  markAll() {
    for (const entry of this.boxes.values()) this.mark(entry);
  }

  mark(entry) {
    const source = entry.plot?.document?.get_model_by_name("marks");
    const { marks } = this.run();
    if (!source || !marks.length) return;
    source.data = { step: marks.map((m) => m.step), time: marks.map((m) => m.time), label: marks.map((m) => m.label) };
  }

  // The user selected or reset the range of one figure: apply it to all, in steps.
  brushed(entry) {
    const { axis } = entry.about;
    if (!axis) return;
    const range = entry.plot.x_range;
    if (!range.have_updated_interactively) this.window.set(null, entry);
    else this.window.set([this.toSteps(range.start, axis), this.toSteps(range.end, axis)], entry);
  }

  toSteps(x, axis) {
    const { spine } = this.run().rows;
    return axis === "time" ? carryOver(x, spine?.time, spine?.step) : x;
  }

  show(entry) {
    const { axis } = entry.about;
    if (!entry.plot || !axis) return;
    const range = entry.plot.x_range;
    const { spine } = this.run().rows;
    if (!this.window.steps) {
      if (range.have_updated_interactively) {
        range.reset();
        entry.source.change.emit(); // makes Bokeh recompute the range from the data
      }
      return;
    }
    const [start, end] = this.window.steps.map((step) => (axis === "time" ? carryOver(step, spine?.step, spine?.time) : step));
    range.have_updated_interactively = true;
    if (range.start !== start || range.end !== end) range.setv({ start, end });
  }

  // The tab became visible: recompute ranges that were reset meanwhile, as Bokeh does so for visible figures only.
  seenAgain() {
    for (const entry of this.boxes.values()) if (entry.about.axis && !this.window.steps) entry.source?.change.emit();
  }

  showAll(except) {
    for (const entry of this.boxes.values()) if (entry !== except) this.show(entry);
  }

  colours() {
    return this.run().theme.colours[this.mode ?? "light"];
  }

  repaint(mode) {
    this.mode = mode;
    if (!this.run()?.theme) return;
    for (const entry of this.boxes.values()) if (entry.plot) paint(entry.plot, this.colours());
  }

  clear() {
    for (const entry of this.boxes.values()) entry.plot?.document?.clear();
    this.boxes.clear();
    this.node.replaceChildren(this.waiting);
  }
}

// The range of steps that all figures of a view share; null: every figure shows all its data.
export class Window {
  constructor(changed) {
    this.steps = null;
    this.changed = changed;
  }

  set(steps, from = null) {
    const next = steps?.every(Number.isFinite) ? steps : null;
    if (String(next) === String(this.steps)) return;
    this.steps = next;
    this.changed(from);
  }
}
