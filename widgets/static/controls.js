// Everything that can be set while it trains: the declared controls, and what was set so far.
import { duration, ENDED, known, make, plain, say, whole } from "./text.js";

const ANSWER_MS = 8000;
let ids = 0;

// The bounds of a number in words.
function within({ low, high }) {
  const has = (bound) => (bound ?? null) !== null;
  if (has(low) && has(high)) return ` from ${plain(low)} to ${plain(high)}`;
  return has(low) ? ` of at least ${plain(low)}` : has(high) ? ` of at most ${plain(high)}` : "";
}

// Buttons in the head of the panel. send(name, value)
export class Quick {
  constructor(parent, send) {
    this.send = send;
    this.node = make("div", "dw-quick", parent, { role: "group", "aria-label": "Controls" });
    this.pause = this.button("Pause", "Pause training", () => this.send(this.paused ? "resume" : "pause", null));
    this.step = this.button("Step", "Take one step, then pause", () => this.send("step", 1));
    this.checkpoint = this.button("Checkpoint", "Write a checkpoint now", () => this.send("checkpoint", null));
    this.stop = this.button("Stop", "Stop training", () => {
      this.asked = true;
      this.stop.disabled = true;
      say(this.stop, "Stopping…");
      this.send("stop", null);
    });
    this.stop.classList.add("dw-stop");
  }

  button(text, label, act) {
    const node = make("button", "", this.node, { type: "button", "aria-label": label, title: label });
    say(node, text);
    node.addEventListener("click", act);
    return node;
  }

  say(facts) {
    this.node.hidden = facts.controls === "none";
    const ended = facts.controls === "ended" || ENDED.includes(facts.status);
    const off = ended || Boolean(facts.cut);
    this.paused = facts.status === "paused";
    say(this.pause, this.paused ? "Resume" : "Pause");
    this.pause.setAttribute("aria-label", this.paused ? "Resume training" : "Pause training");
    for (const node of [this.pause, this.step, this.checkpoint]) node.disabled = off;
    if (off) this.asked = false;
    this.stop.disabled = off || this.asked;
    say(this.stop, ended ? "Ended" : this.asked ? "Stopping…" : "Stop");
  }

  refused() {
    this.asked = false;
  }
}

export class Controls {
  constructor(send) {
    this.send = send;
    this.node = make("div", "dw-page dw-controls");
    this.acts = make("div", "dw-acts", this.node, { role: "group", "aria-label": "Acts" });
    this.actAnswer = make("span", "dw-answer", null, { role: "status" });
    this.settings = this.part("Settings", "setting");
    this.more = this.part("Acts with a value", "act");
    say(make("div", "dw-label dw-above", this.node), "History");
    const scroll = make("div", "dw-scroll", this.node, { tabindex: "0", "aria-label": "History of controls" });
    const table = make("table", "dw-table", scroll);
    const head = make("tr", "", make("thead", "", table));
    for (const title of ["asked at", "by", "what", "old value", "new value", "effect after step"]) {
      say(make("th", "", head, { scope: "col" }), title);
    }
    this.body = make("tbody", "", table);
    this.fields = new Map();
    this.history([]);
  }

  // Rows of one kind under a line of titles.
  part(label, title) {
    const node = make("div", "dw-form", this.node, { role: "group", "aria-label": label });
    const titles = make("div", "dw-control dw-titles", node, { "aria-hidden": "true" });
    for (const [name, text] of [["control-name", title], ["now", "in force"], ["new", title === "setting" ? "new value" : "value"]]) {
      if (name !== "now" || title === "setting") say(make("span", `dw-${name}`, titles), text);
    }
    return node;
  }

  declare(controls) {
    for (const control of controls) {
      if (this.fields.has(control.name)) continue;
      this.fields.set(control.name, control.kind === "button" ? this.plainAct(control) : this.field(control));
    }
    this.acts.append(this.actAnswer);
  }

  // A button alone; its help is what the mouse and a screen reader find.
  plainAct(control) {
    const button = make("button", "", this.acts, { type: "button", title: control.help });
    say(button, control.name);
    const field = { control, button, input: null, now: null, answer: this.actAnswer };
    button.addEventListener("click", () => this.act(field));
    return field;
  }

  field(control) {
    const id = `dw-control-${++ids}`;
    const row = make("div", "dw-control", control.setting ? this.settings : this.more);
    const label = make("label", "dw-control-name", row, { for: id });
    say(label, control.name + (control.unit ? ` (${control.unit})` : ""));
    const field = { control, input: this.input(control, id, row) };
    const act = () => this.act(field);
    field.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") act();
    });
    field.input.addEventListener("input", () => say(field.answer, ""));
    field.input.setAttribute("aria-describedby", `${id}-now ${id}-help ${id}-answer`);
    const text = control.setting ? `Set ${control.name}` : control.name;
    field.button = make("button", "", row, { type: "button", "aria-label": text, "aria-describedby": `${id}-help` });
    say(field.button, control.setting ? "Set" : "Go");
    field.button.addEventListener("click", act);
    field.now = make("span", "dw-now", row, { id: `${id}-now` });
    const said = make("div", "dw-said-here", row);
    say(make("span", "dw-note dw-help", said, { id: `${id}-help` }), control.help);
    field.answer = make("span", "dw-answer", said, { id: `${id}-answer`, role: "status" });
    return field;
  }

  input(control, id, row) {
    if (control.kind === "choice") {
      const select = make("select", "", row, { id });
      for (const choice of control.choices ?? []) say(make("option", "", select, { value: String(choice) }), String(choice));
      return select;
    }
    const input = make("input", "", row, { id, type: "text" });
    input.placeholder = known(control.default) ? String(control.default) : control.hint;
    if (control.kind === "number") {
      input.inputMode = "decimal";
      input.placeholder = within(control).replace(" of ", "").trim() || "number";
    }
    return input;
  }

  // A wrong value is refused where it is typed, before it is sent.
  act(field) {
    const { control, input } = field;
    let value = input ? input.value.trim() : null;
    if (control.kind === "number") {
      const typed = value;
      value = typed === "" ? null : Number(typed);
      const low = control.low ?? -Infinity;
      const high = control.high ?? Infinity;
      if (value !== null && !(Number.isFinite(value) && value >= low && value <= high)) {
        this.reply(field, `${typed} is not a number${within(control)}`, "error");
        return;
      }
    }
    this.reply(field, "asked…");
    this.send(control.name, value);
  }

  answered(name, error) {
    const field = this.fields.get(name);
    if (field) this.reply(field, error ?? `${name} is asked; the ranks apply it at their next step`, error ? "error" : "");
  }

  // In the place of the help: what is well for some seconds, what is wrong until it is typed anew.
  reply(field, text, level = "") {
    const { answer } = field;
    answer.dataset.level = level;
    say(answer, text);
    clearTimeout(answer.dwTimer);
    if (!level) answer.dwTimer = setTimeout(() => say(answer, ""), ANSWER_MS);
  }

  say(facts) {
    const off = facts.controls !== "ready" || Boolean(facts.cut);
    for (const { control, input, button } of this.fields.values()) {
      button.disabled = off || Boolean(control.unavailable);
      if (input) input.disabled = button.disabled;
    }
    for (const [name, { now }] of this.fields) {
      if (!now) continue;
      const text = name === "lr" ? (known(facts.lr) ? plain(facts.lr) : "") : facts.in_force?.[name] ?? "";
      say(now, text);
      now.title = text;
    }
  }

  history(rows, began = 0) {
    this.body.replaceChildren();
    for (const row of [...rows].reverse()) {
      const line = make("tr", "", this.body);
      const effect = row.step === null ? "waiting" : row.refused ? `refused: ${row.refused}` : whole(row.step);
      const when = began ? duration(Math.max(0, row.time - began)) : new Date(1000 * row.time).toLocaleTimeString("en-GB");
      for (const text of [when, row.who || "–", row.name, plain(row.old), plain(row.value), effect]) {
        say(make("td", "", line), text);
      }
    }
    if (!rows.length) say(make("td", "dw-note", make("tr", "", this.body), { colspan: "6" }), "Nothing was set yet.");
  }
}
