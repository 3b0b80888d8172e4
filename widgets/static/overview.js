// The Overview tab: failure, tiles with numbers, verdict, four figures, and the list of events.
import { duration, known, make, milliseconds, NONE, number, percent, ranksOf, say, whole } from "./text.js";

// Of each tile: its key, label, and from the facts its value ("" while there is none), its note, and the note's tooltip.
const TILES = [
  ["loss", "Loss", (f) => [number(f.loss), `step ${whole(f.step)}`]],
  ["validation", "Validation loss", (f) => [number(f.validation?.value), validationNote(f)]],
  ["lr", "Learning rate", (f) => [number(f.lr, 3), ""]],
  ["norm", "Gradient norm", (f) => [number(f.grad_norm), "before clipping"]],
  ["tps", "Throughput", (f) => [whole(f.tps), `${f.unit}/s/device`, `${whole(known(f.tps) ? f.tps * f.world : null)} ${f.unit}/s on all devices`]],
  ["time", "Step time", (f) => [milliseconds(f.step_time_ms), "slowest rank"]],
  ["mfu", "MFU", (f) => [percent(f.mfu), "of peak FLOPS"]],
  ["ranks", "Ranks", (f) => [whole(f.world), statesNote(f)]],
];

function validationNote(facts) {
  if (facts.metric) return facts.metric.text;
  return facts.validation ? `step ${whole(facts.validation.step)}` : "";
}

const statesNote = (facts) =>
  Object.entries(facts.states ?? {})
    .map(([state, count]) => `${count} ${state}`)
    .join(", ");

export class Overview {
  constructor(figures) {
    this.node = make("div", "dw-page");
    this.failure = make("details", "dw-failure", this.node);
    this.failureTitle = make("summary", "", this.failure);
    this.trace = make("pre", "dw-text", this.failure, { tabindex: "0", "aria-label": "Traceback" });
    this.failure.hidden = true;
    const tiles = (this.row = make("div", "dw-tiles", this.node, { role: "list" }));
    this.tiles = {};
    for (const [key, label] of TILES) {
      const tile = make("div", "dw-tile", tiles, { role: "listitem" });
      say(make("div", "dw-label", tile), label);
      this.tiles[key] = { tile, value: make("div", "dw-value", tile), note: make("div", "dw-note", tile) };
    }
    this.verdict = make("p", "dw-verdict", this.node, { role: "status", "aria-label": "Verdict" });
    this.node.append(figures.node);
    this.events = new EventList(this.node);
  }

  say(facts) {
    for (const [key, , text] of TILES) {
      const [value, note, more = note] = text(facts);
      this.tiles[key].tile.hidden = value === NONE;
      say(this.tiles[key].value, value);
      say(this.tiles[key].note, note);
      this.tiles[key].note.title = more;
    }
    const count = this.row.querySelectorAll(".dw-tile:not([hidden])").length;
    this.row.style.setProperty("--dw-columns", Math.max(4, count));
    this.row.style.setProperty("--dw-half", count > 6 ? Math.ceil(count / 2) : Math.max(4, count));
    say(this.verdict, facts.verdict);
    this.verdict.hidden = !facts.verdict;
    this.verdict.title = facts.verdict;
    this.sayFailure(facts.failure);
  }

  sayFailure(failure) {
    if (failure && this.failure.hidden) this.failure.open = true;
    this.failure.hidden = !failure;
    if (!failure) return;
    const { who, error, traceback } = failure;
    say(this.failureTitle, `${who}: ${error}`);
    say(this.trace, traceback);
    this.trace.hidden = !traceback;
    this.failure.classList.toggle("dw-closed", !traceback);
  }

  list(entries) {
    this.events.show(entries);
  }
}

// Kinds of events as the list names them, where that is not their own name.
const KIND_NAMES = { nonfinite: "non-finite", loss_scale: "loss scale", gpu: "GPU" };

// The list of events, newest first by their time; an entry replaces an earlier one with the same id.
class EventList {
  constructor(parent) {
    say(make("div", "dw-label dw-above", parent), "Events");
    this.node = make("ol", "dw-events", parent, { tabindex: "0", "aria-label": "Events, newest first" });
    this.lines = new Map();
    this.nothing = make("li", "dw-note", this.node);
    say(this.nothing, "No events yet.");
  }

  show(entries) {
    for (const entry of entries) {
      let line = this.lines.get(entry.id);
      if (!line) {
        line = { node: make("li") };
        for (const part of ["when", "step", "ranks", "kind", "what"]) line[part] = make("span", `dw-${part}`, line.node);
        this.lines.set(entry.id, line);
        line.node.dataset.id = entry.id;
        this.nothing.remove();
      }
      this.place(line, entry.time);
      if (this.lines.size > 200) {
        const oldest = this.node.lastElementChild;
        this.lines.delete(Number(oldest.dataset.id));
        oldest.remove();
      }
      line.node.dataset.level = entry.level;
      say(line.when, duration(Math.max(0, entry.time)));
      say(line.step, `step ${whole(entry.step)}`);
      say(line.ranks, entry.ranks === "-1" ? "session" : ranksOf(entry.ranks));
      say(line.kind, KIND_NAMES[entry.kind] ?? entry.kind);
      say(line.what, entry.count > 1 ? `${entry.text} (changed ${entry.count} times)` : entry.text);
    }
  }

  place(line, time) {
    if (line.time === time && line.node.parentNode) return;
    line.time = line.node.dataset.time = time;
    line.node.remove();
    let after = this.node.firstElementChild; // most entries are the newest, and so the first
    while (after && Number(after.dataset.time) > time) after = after.nextElementSibling;
    this.node.insertBefore(line.node, after);
  }

  clear() {
    this.lines.clear();
    this.node.replaceChildren(this.nothing);
  }
}
