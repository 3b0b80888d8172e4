// The tabs Samples (texts sampled from the model) and Console (output of the ranks).
import { make, ranksMeet, ranksOf, say, whole } from "./text.js";

export class Samples {
  constructor(figures) {
    this.node = make("div", "dw-page");
    const head = make("div", "dw-tools", this.node);
    const label = make("label", "", head);
    label.append("Sampled text of ");
    this.select = make("select", "", label, { "aria-label": "Step of the sample" });
    this.select.addEventListener("change", () => this.show());
    this.text = make("pre", "dw-text dw-said", this.node, { tabindex: "0", "aria-label": "Text sampled from the model" });
    this.node.append(figures.node);
    this.list([]);
  }

  list(samples) {
    const follows = this.select.selectedIndex <= 0;
    const before = this.select.value;
    this.samples = [...samples].reverse();
    this.select.replaceChildren();
    for (const sample of this.samples) {
      say(make("option", "", this.select, { value: String(sample.step) }), `step ${whole(sample.step)}`);
    }
    if (!follows) this.select.value = before;
    if (!this.samples.length) say(make("option", "", this.select), "no step yet");
    this.show();
  }

  show() {
    const sample = this.samples[Math.max(0, this.select.selectedIndex)];
    say(this.text, sample?.text ?? "No samples yet. Text is sampled at every evaluation of a recipe that generates text.");
  }
}

const MOST_LINES = 1500;

export class Console {
  constructor() {
    this.node = make("div", "dw-page");
    const tools = make("div", "dw-tools", this.node);
    this.ranks = this.field(tools, "Ranks", "all, or 0-3,7", 9);
    this.search = this.field(tools, "Search", "text", 20);
    const follow = make("label", "dw-check", tools);
    this.follow = make("input", "", follow, { type: "checkbox" });
    this.follow.checked = true;
    follow.append(" follow");
    this.count = make("span", "dw-note", tools, { role: "status" });
    this.lines = make("div", "dw-console", this.node, { tabindex: "0", role: "log", "aria-label": "Output of the ranks" });
    this.entries = new Map();
    this.clear();
  }

  field(parent, label, hint, size) {
    const node = make("label", "", parent);
    node.append(`${label} `);
    const input = make("input", "", node, { type: "text", placeholder: hint, size: String(size) });
    input.addEventListener("input", () => this.filter());
    return input;
  }

  show(entries) {
    if (entries.length && this.nothing.parentElement) this.nothing.remove();
    for (const entry of entries) {
      let line = this.entries.get(entry.id);
      if (!line) {
        const node = make("div", "dw-line", this.lines);
        line = { node, ranks: make("span", "dw-from", node), count: make("span", "dw-times", node), text: make("span", "", node) };
        this.entries.set(entry.id, line);
        if (this.entries.size > MOST_LINES) {
          const [oldest] = this.entries.keys();
          this.entries.get(oldest).node.remove();
          this.entries.delete(oldest);
        }
      }
      line.entry = entry;
      say(line.ranks, entry.ranks);
      line.ranks.title = ranksOf(entry.ranks);
      say(line.count, entry.count > 1 ? `${entry.count}×` : "");
      say(line.text, entry.text);
      this.filterOne(line);
    }
    this.sayCount();
    if (this.follow.checked) this.lines.scrollTop = this.lines.scrollHeight;
  }

  filterOne(line) {
    const text = this.search.value.toLowerCase();
    line.node.hidden = !(ranksMeet(this.ranks.value, line.entry.ranks) && line.entry.text.toLowerCase().includes(text));
  }

  filter() {
    for (const line of this.entries.values()) this.filterOne(line);
    this.sayCount();
    if (this.follow.checked) this.lines.scrollTop = this.lines.scrollHeight;
  }

  sayCount() {
    const shown = [...this.entries.values()].filter((line) => !line.node.hidden).length;
    say(this.count, `${whole(shown)} of ${whole(this.entries.size)} lines; equal lines of several ranks are shown once`);
  }

  clear() {
    this.entries.clear();
    this.lines.replaceChildren();
    this.nothing = make("div", "dw-note", this.lines);
    say(this.nothing, "The ranks have not printed anything.");
  }
}
