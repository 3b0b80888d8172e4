// The controls of a run: buttons in the head of the panel, and the Controls tab with the other controls and the history.
import { ENDED, known, make, plain, say, whole } from "./text.js";

const ANSWER_MS = 8000;
let ids = 0;

// Describes the bounds of a number.
function within({ low, high }) {
  const has = (bound) => (bound ?? null) !== null;
  if (has(low) && has(high)) return ` from ${plain(low)} to ${plain(high)}`;
  return has(low) ? ` of at least ${plain(low)}` : has(high) ? ` of at most ${plain(high)}` : "";
}

// The newest command of a name in the history, or null; and what became of the one that was sent after ``before``.
const newest = (rows, name) => rows.findLast((row) => row.name === name) ?? null;
const outcome = (rows, name, before) => {
  const row = newest(rows, name);
  return row && row.time !== before && row.step !== null ? row : null;
};

// Buttons in the head of the panel, as the controls declare them. Those of one place share a button, which does what the
// run's state allows, and is off from a click until the ranks have done it. They go with the run. send(name, value)
export class Quick {
  constructor(parent, send) {
    this.send = send;
    this.node = make("div", "dw-quick", parent, { role: "group", "aria-label": "Controls" });
    this.places = new Map();
    this.rows = [];
  }

  declare(controls) {
    for (const control of controls) {
      if (!control.button) continue;
      const place = this.places.get(control.button.place) ?? this.place(control.button.place);
      if (!place.controls.some(({ name }) => name === control.name)) place.controls.push(control);
    }
  }

  place(name) {
    const node = make("button", "", this.node, { type: "button" });
    const place = { node, controls: [], control: null, asked: "", before: null, close: null };
    node.addEventListener("click", () => {
      const { button } = place.control;
      if (button.answers.length) this.ask(place, button);
      else this.act(place, place.control.default);
    });
    this.places.set(name, place);
    return place;
  }

  act(place, value) {
    const { control, node } = place;
    if (control.button.asked) {
      place.asked = control.name;
      place.before = newest(this.rows, control.name)?.time;
      node.disabled = true;
      say(node, control.button.asked);
    }
    this.send(control.name, value);
  }

  // The button's question in its place: one button per answer, and one (or Escape) that goes back.
  ask(place, { question, answers, title }) {
    const row = make("span", "dw-question", null, { role: "group", "aria-label": title });
    say(make("span", "", row), question);
    place.close = () => {
      row.remove();
      place.node.hidden = false;
      place.close = null;
    };
    for (const [text, value] of answers) {
      const answer = make("button", "dw-stop", row, { type: "button" });
      say(answer, text);
      answer.addEventListener("click", () => {
        place.close();
        this.act(place, value);
      });
    }
    const back = make("button", "", row, { type: "button" });
    say(back, "Cancel");
    const cancel = () => {
      place.close();
      place.node.focus();
    };
    back.addEventListener("click", cancel);
    row.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
    });
    place.node.hidden = true;
    place.node.after(row);
    row.querySelector("button").focus();
  }

  say(facts) {
    const ended = facts.controls === "ended" || ENDED.includes(facts.status);
    this.node.hidden = facts.controls === "none" || ended;
    const off = ended || Boolean(facts.cut);
    for (const place of this.places.values()) {
      const able = place.controls.find(({ states }) => states.includes(facts.status));
      place.control = able ?? place.controls[0];
      const { button, ends, name } = place.control;
      if (off) place.close?.();
      if (off || place.asked !== name) place.asked = "";
      const asked = place.asked === name;
      place.node.disabled = off || asked || !able;
      place.node.classList.toggle("dw-stop", ends);
      for (const attribute of ["aria-label", "title"]) place.node.setAttribute(attribute, button.title);
      say(place.node, asked ? button.asked : button.text);
    }
  }

  // Takes the history: what the ranks have done can be asked for again, except the end of the run, which is to come.
  history(rows) {
    this.rows = rows;
    for (const place of this.places.values()) {
      const row = place.asked ? outcome(rows, place.asked, place.before) : null;
      if (row && (row.refused || !place.control.ends)) this.release(place);
    }
  }

  release(place) {
    place.asked = "";
    place.node.disabled = false;
    say(place.node, place.control.button.text);
  }

  // The kernel refused what was asked.
  refused(name) {
    for (const place of this.places.values()) if (place.asked === name) this.release(place);
  }
}

export class Controls {
  constructor(send) {
    this.send = send;
    this.node = make("div", "dw-page dw-controls");
    this.off = make("div", "dw-note", this.node, { role: "status" });
    this.acts = make("div", "dw-acts", this.node, { role: "group", "aria-label": "Actions" });
    this.actAnswer = make("span", "dw-answer", null, { role: "status" });
    this.settings = this.part("Settings", "setting");
    this.more = this.part("Actions with a value", "action");
    say(make("div", "dw-label dw-above", this.node), "History");
    const scroll = make("div", "dw-scroll", this.node, { tabindex: "0", "aria-label": "History of controls" });
    const table = make("table", "dw-table", scroll);
    const head = make("tr", "", make("thead", "", table));
    for (const title of ["time", "user", "control", "old value", "new value", "status"]) {
      say(make("th", "", head, { scope: "col" }), title);
    }
    this.body = make("tbody", "", table);
    this.fields = new Map();
    this.titles = new Map();
    this.history([]);
  }

  // A group of rows under a line of column titles.
  part(label, title) {
    const node = make("div", "dw-form", this.node, { role: "group", "aria-label": label });
    const titles = make("div", "dw-control dw-titles", node, { "aria-hidden": "true" });
    for (const [name, text] of [["control-name", title], ["now", "current value"], ["new", title === "setting" ? "new value" : "value"]]) {
      if (name !== "now" || title === "setting") say(make("span", `dw-${name}`, titles), text);
    }
    return node;
  }

  declare(controls) {
    for (const control of controls) {
      this.titles.set(control.name, control.title);
      if (control.button || this.fields.has(control.name)) continue;
      this.fields.set(control.name, control.widget === "button" ? this.plainAct(control) : this.field(control));
    }
    this.acts.append(this.actAnswer);
  }

  // A control without a value: one button, whose tooltip is the control's help.
  plainAct(control) {
    const button = make("button", "", this.acts, { type: "button", title: control.help });
    say(button, control.title);
    const field = { control, button, input: null, now: null, answer: this.actAnswer, isSent: false };
    button.addEventListener("click", () => this.act(field));
    return field;
  }

  field(control) {
    const id = `dw-control-${++ids}`;
    const row = make("div", "dw-control", control.setting ? this.settings : this.more);
    row.dataset.control = control.name;
    const label = make("label", "dw-control-name", row, { for: id });
    label.title = control.setting ? `%dist_set ${control.name}=…` : `%dist_${control.name}`;
    say(label, control.title + (control.unit ? ` (${control.unit})` : ""));
    const field = { control, input: this.input(control, id, row), isSent: false };
    const act = () => this.act(field);
    field.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") act();
    });
    field.input.addEventListener("input", () => this.reply(field, ""));
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
    if (control.widget === "choice") {
      const select = make("select", "", row, { id });
      for (const choice of control.choices ?? []) say(make("option", "", select, { value: String(choice) }), String(choice));
      return select;
    }
    const input = make("input", "", row, { id, type: "text" });
    input.placeholder = known(control.default) ? String(control.default) : control.hint;
    if (control.widget === "number") {
      input.inputMode = "decimal";
      input.placeholder = within(control).replace(" of ", "").trim() || "number";
    }
    return input;
  }

  // Sends the value of a field. An invalid number is rejected here, before it is sent.
  act(field) {
    const { control, input } = field;
    let value = input ? input.value.trim() : null;
    if (control.widget === "number") {
      const typed = value;
      value = typed === "" ? null : Number(typed);
      const low = control.low ?? -Infinity;
      const high = control.high ?? Infinity;
      if (value !== null && !(Number.isFinite(value) && value >= low && value <= high)) {
        this.reply(field, `${typed} is not a number${within(control)}`, "error");
        return;
      }
    }
    field.isSent = true;
    field.before = newest(this.rows, control.name)?.time;
    this.reply(field, "Sending…", "waiting");
    this.send(control.name, value);
  }

  // The kernel has sent a command to the ranks, or says why not.
  answered(name, error) {
    const field = this.fields.get(name);
    if (!field?.isSent) return; // the ranks were faster
    field.isSent = !error;
    this.reply(field, error ?? "Waits for the end of the step", error ? "error" : "waiting");
  }

  // Takes the answers of the ranks.
  settle(field) {
    const { control } = field;
    const row = field.isSent ? outcome(this.rows, control.name, field.before) : null;
    if (!row) return;
    field.isSent = false;
    const { refused, step } = row;
    const name = control.widget === "button" ? `${control.title}: done` : "Done";
    this.reply(field, refused ? `Refused: ${refused}` : `${name} after step ${whole(step)}`, refused ? "error" : "");
  }

  // Shows a reply in place of the help: success for some seconds, an error until the field is edited.
  reply(field, text, level = "") {
    const { answer } = field;
    answer.dataset.level = level;
    say(answer, text);
    clearTimeout(answer.dwTimer);
    if (!level) answer.dwTimer = setTimeout(() => say(answer, ""), ANSWER_MS);
  }

  say(facts) {
    const off = facts.controls !== "ready" || Boolean(facts.cut);
    const ended = facts.controls === "ended" || ENDED.includes(facts.status);
    const why = ended ? "The run has ended. These were its settings." : `This panel only shows the run. %dist_watch ${facts.name} also controls it.`;
    say(this.off, facts.controls === "ready" ? "" : why);
    this.off.hidden = facts.controls === "ready";
    this.node.classList.toggle("dw-read-only", facts.controls !== "ready");
    for (const [name, field] of this.fields) {
      const { control, input, button, now } = field;
      const unable = off || !control.states.includes(facts.status);
      button.disabled = unable;
      if (off && field.isSent) this.reply(field, "");
      if (off) field.isSent = false;
      if (input) input.disabled = unable;
      if (!now) continue;
      now.title = facts.in_force?.[name] ?? "";
      say(now, now.title);
    }
  }

  history(rows) {
    this.rows = rows;
    this.body.replaceChildren();
    for (const row of [...rows].reverse()) {
      const line = make("tr", "", this.body);
      const status = row.step === null ? "waits for the end of the step" : row.refused ? `refused: ${row.refused}` : `done after step ${whole(row.step)}`;
      const when = new Date(1000 * row.time).toLocaleTimeString("en-GB");
      for (const text of [when, row.who || "–", this.titles.get(row.name) ?? row.name, plain(row.old), plain(row.value), status]) {
        say(make("td", "", line), text);
      }
    }
    if (!rows.length) say(make("td", "dw-note", make("tr", "", this.body), { colspan: "6" }), "No changes.");
    for (const field of this.fields.values()) this.settle(field);
  }
}
