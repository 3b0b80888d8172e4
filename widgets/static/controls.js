// Everything that can be set while it trains: the declared controls, and what was set so far.
import { duration, ENDED, known, make, plain, say, whole } from "./text.js";

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
    this.form = make("div", "dw-form", this.node, { role: "group", "aria-label": "Settings" });
    const titles = make("div", "dw-control dw-titles", this.form, { "aria-hidden": "true" });
    for (const [name, title] of [["control-name", "what"], ["now", "in force"], ["new", "new value"]]) {
      say(make("span", `dw-${name}`, titles), title);
    }
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

  declare(controls) {
    if (this.fields.size) return;
    for (const control of controls) this.fields.set(control.name, this.field(control));
  }

  field(control) {
    const id = `dw-control-${++ids}`;
    const row = make("div", "dw-control", this.form);
    const label = make("label", "dw-control-name", row, { for: id });
    say(label, control.name + (control.unit ? ` (${control.unit})` : ""));
    const field = { row, control, input: null };
    const act = () => this.act(field);
    if (control.kind === "button") {
      label.remove();
      row.classList.add("dw-act");
    } else {
      field.input = this.input(control, id, row);
      field.input.addEventListener("keydown", (event) => {
        if (event.key === "Enter") act();
      });
      field.input.setAttribute("aria-describedby", `${id}-now ${id}-help ${id}-answer`);
    }
    const text = control.setting ? `Set ${control.name}` : control.name;
    field.button = make("button", "", row, { type: "button", "aria-label": text, "aria-describedby": `${id}-help` });
    say(field.button, control.setting ? "Set" : control.kind === "button" ? control.name : "Go");
    field.button.addEventListener("click", act);
    say(make("span", "dw-note dw-help", row, { id: `${id}-help` }), control.help);
    field.now = make("span", "dw-now", row, { id: `${id}-now` });
    field.answer = make("span", "dw-answer", row, { id: `${id}-answer`, role: "status" });
    return field;
  }

  input(control, id, row) {
    if (control.kind === "choice") {
      const select = make("select", "", row, { id });
      for (const choice of control.choices ?? []) say(make("option", "", select, { value: String(choice) }), String(choice));
      return select;
    }
    const input = make("input", "", row, { id, type: "text" });
    if (known(control.default)) input.placeholder = String(control.default);
    if (control.kind === "number") {
      input.inputMode = "decimal";
      input.placeholder = within(control).replace(" of ", "").trim() || "number";
    }
    return input;
  }

  // A wrong value is refused where it is typed, before it is sent.
  act({ control, input, answer }) {
    let value = input ? input.value.trim() : null;
    if (control.kind === "number") {
      const typed = value;
      value = typed === "" ? null : Number(typed);
      const low = control.low ?? -Infinity;
      const high = control.high ?? Infinity;
      if (value !== null && !(Number.isFinite(value) && value >= low && value <= high)) {
        answer.dataset.level = "error";
        say(answer, `${typed} is not a number${within(control)}`);
        return;
      }
    }
    answer.dataset.level = "";
    say(answer, "asked…");
    this.send(control.name, value);
  }

  answered(name, error) {
    const answer = this.fields.get(name)?.answer;
    if (!answer) return;
    answer.dataset.level = error ? "error" : "";
    say(answer, error ?? "asked; the ranks apply it at their next step");
  }

  say(facts) {
    const off = facts.controls !== "ready" || Boolean(facts.cut);
    for (const { input, button } of this.fields.values()) {
      button.disabled = off;
      if (input) input.disabled = off;
    }
    for (const [name, { now }] of this.fields) {
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
