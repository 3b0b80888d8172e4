// The Overview tab: failure, tiles with numbers, verdict, four figures, and the list of events.
import { duration, known, make, milliseconds, number, percent, ranksOf, say, whole } from "./text.js";

const TILES = [
  ["loss", "Loss", (f) => [number(f.loss), `step ${whole(f.step)}`]],
  ["validation", "Validation", (f) => [number(f.validation?.value), validationNote(f)]],
  ["lr", "Learning rate", (f) => [number(f.lr, 3), f.precision]],
  ["norm", "Grad norm", (f) => [number(f.grad_norm), "before clipping"]],
  ["tps", "Throughput", (f) => [whole(f.tps), `${f.unit}/s/device`, `${whole(known(f.tps) ? f.tps * f.world : null)} ${f.unit}/s of all ranks`]],
  ["time", "Step time", (f) => [milliseconds(f.step_time_ms), "slowest rank"]],
  ["mfu", "MFU", (f) => [percent(f.mfu), known(f.mfu) ? "of peak FLOPS" : "peak unknown"]],
  ["ranks", "Ranks", (f) => [whole(f.world), statesNote(f)]],
];

function validationNote(facts) {
  if (!facts.validation) return "none yet";
  if (known(facts.accuracy?.value)) return `${percent(facts.accuracy.value)} accuracy`;
  return `step ${whole(facts.validation.step)}`;
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
    const tiles = make("div", "dw-tiles", this.node, { role: "list" });
    this.tiles = {};
    for (const [key, label] of TILES) {
      const tile = make("div", "dw-tile", tiles, { role: "listitem" });
      say(make("div", "dw-label", tile), label);
      this.tiles[key] = { value: make("div", "dw-value", tile), note: make("div", "dw-note", tile) };
    }
    this.verdict = make("p", "dw-verdict", this.node, { role: "status", "aria-label": "Verdict" });
    this.node.append(figures.node);
    this.events = new EventList(this.node);
  }

  say(facts) {
    for (const [key, , text] of TILES) {
      const [value, note, more = note] = text(facts);
      say(this.tiles[key].value, value);
      say(this.tiles[key].note, note);
      this.tiles[key].note.title = more;
    }
    say(this.verdict, facts.verdict || "No verdict: phase timing is off, or has not begun.");
    this.verdict.title = this.verdict.textContent;
    this.failure.hidden = !facts.failure;
    if (facts.failure) {
      const { who, error, traceback } = facts.failure;
      say(this.failureTitle, `${who}: ${error}`);
      say(this.trace, traceback || "no traceback was recorded");
    }
  }

  list(entries) {
    this.events.show(entries);
  }
}

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
      say(line.kind, entry.kind);
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
