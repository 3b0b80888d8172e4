// The table of runs: rows come from the kernel; the page sorts and filters them and edits tags and notes. Messages: see
// widgets/runs.py. Text from a run is set as textContent only.

import { Link } from "./link.js";
import { watchLostOutputs } from "./reload.js";

const ALIVE_MS = 20_000;

function make(tag, name, parent, attributes = {}) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent?.append(node);
  return node;
}

const text = (row, column) => row.cells[column.at];

function order(a, b, column, descending) {
  const [x, y] = [a.keys[column.name], b.keys[column.name]];
  if (x === null || y === null) return (x === null) - (y === null); // unknown values come last
  const sign = typeof x === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
  return descending ? -sign : sign;
}

class Table {
  constructor(model, el) {
    this.model = model;
    this.rows = [];
    this.columns = [];
    this.sort = { name: "when", descending: true };
    this.chosen = new Set();
    this.root = make("section", "dw-runs", el, { "aria-label": "Runs", "data-lm-suppress-shortcuts": "true" });
    const bar = make("div", "dw-runs-bar", this.root);
    this.filter = make("input", "", bar, { type: "search", placeholder: "filter, for example: llama finished", "aria-label": "Filter" });
    this.filter.addEventListener("input", () => this.draw());
    this.state = make("select", "", bar, { "aria-label": "State" });
    this.state.addEventListener("change", () => this.draw());
    this.count = make("span", "dw-runs-count", bar, { role: "status" });
    const scroll = make("div", "dw-runs-scroll", this.root, { tabindex: "0", role: "region", "aria-label": "Table of runs" });
    const table = make("table", "", scroll);
    this.head = make("tr", "", make("thead", "", table));
    this.body = make("tbody", "", table);
    this.line = make("code", "dw-runs-line", this.root);
    this.trouble = make("div", "dw-runs-trouble", this.root, { role: "alert" });
    this.link = new Link(model, {
      due: () => false, // rows come only when something changes, so silence means nothing
      ask: () => model.send({ kind: "here" }),
      changed: (trouble) => (this.trouble.textContent = trouble && `${trouble}. %dist_runs shows the table again`),
      lacking: () => !this.columns.length,
      begin: () => model.send({ kind: "hello" }),
    });
    this.onMessage = (content) => {
      this.link.heard();
      if (content.kind === "rows") this.take(content);
      else if (content.kind === "trouble") this.trouble.textContent = content.text;
    };
    model.on("msg:custom", this.onMessage);
    this.tell({ kind: "hello" });
    this.alive = setInterval(() => document.visibilityState === "visible" && this.tell({ kind: "here" }), ALIVE_MS);
  }

  tell(content) {
    this.link.send(() => this.model.send(content));
  }

  take(content) {
    if (!this.columns.length) {
      this.columns = content.columns.map((column, at) => ({ ...column, at }));
      this.heads();
    }
    this.rows = content.rows;
    const states = ["", ...new Set(this.rows.map((row) => row.keys.state))].sort();
    const now = this.state.value;
    this.state.replaceChildren(...states.map((state) => new Option(state || "all states", state, false, state === now)));
    this.draw();
  }

  heads() {
    make("th", "", this.head, { scope: "col" }).setAttribute("aria-label", "Compare");
    for (const column of this.columns) {
      const cell = make("th", column.number ? "dw-n" : "", this.head, { scope: "col", "data-column": column.name });
      column.cell = cell;
      const button = make("button", "", cell, { type: "button" });
      button.textContent = column.title.replaceAll("/", "/\u200b"); // long heads break into lines
      button.addEventListener("click", () => {
        const again = this.sort.name === column.name;
        this.sort = { name: column.name, descending: again ? !this.sort.descending : Boolean(column.number) };
        this.draw();
      });
    }
  }

  visible() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const column = this.columns.find((each) => each.name === this.sort.name);
    return this.rows
      .filter((row) => !this.state.value || row.keys.state === this.state.value)
      .filter((row) => words.every((word) => row.cells.some((cell) => cell.toLowerCase().includes(word))))
      .sort((a, b) => order(a, b, column, this.sort.descending));
  }

  draw() {
    if (this.editing) return; // redrawing would remove the row that is being edited
    const shown = this.visible();
    for (const { name, cell } of this.columns) {
      const mine = name === this.sort.name;
      cell.setAttribute("aria-sort", mine ? (this.sort.descending ? "descending" : "ascending") : "none");
    }
    this.body.replaceChildren(...shown.map((row) => this.drawn(row)));
    this.count.textContent = `${shown.length} of ${this.rows.length} runs`;
    this.say();
  }

  drawn(row) {
    const line = make("tr", "");
    line.dataset.state = row.keys.state;
    const name = row.keys.directory;
    const box = make("input", "", make("td", "", line), { type: "checkbox", "aria-label": `compare ${name}` });
    box.checked = this.chosen.has(name);
    box.addEventListener("change", () => {
      if (box.checked) this.chosen.add(name);
      else this.chosen.delete(name);
      this.say();
    });
    for (const column of this.columns) {
      const cell = make("td", column.number ? "dw-n" : "", line);
      const name = column.name;
      cell.textContent = name === "when" ? text(row, column).replace(`${new Date().getFullYear()}-`, "") : text(row, column);
      cell.title = name === "directory" ? row.keys.directory : text(row, column);
      cell.dataset.column = name;
      if (column.name === "tags" || column.name === "notes") this.editable(cell, row, column.name);
    }
    return line;
  }

  editable(cell, row, name) {
    cell.classList.add("dw-edit");
    cell.tabIndex = 0;
    cell.setAttribute("aria-label", `${name} of ${row.keys.directory}: press Enter to edit`);
    const begin = () => {
      if (this.editing || this.link.trouble) return;
      this.editing = true;
      const input = make("input", "", null, { "aria-label": name });
      input.value = row.labels[name];
      const end = (keep) => {
        if (!this.editing) return;
        this.editing = false;
        if (keep && input.value !== row.labels[name]) {
          this.trouble.textContent = "";
          this.tell({ kind: "label", directory: row.keys.directory, name, text: input.value });
          row.labels[name] = row.cells[this.columns.find((each) => each.name === name).at] = input.value;
        }
        this.draw();
      };
      input.addEventListener("keydown", (event) => {
        event.stopPropagation();
        if (event.key === "Enter") end(true);
        if (event.key === "Escape") end(false);
      });
      input.addEventListener("blur", () => end(true));
      cell.replaceChildren(input);
      input.focus();
    };
    cell.addEventListener("dblclick", begin);
    cell.addEventListener("keydown", (event) => event.key === "Enter" && begin());
  }

  say() {
    const names = this.rows.map((row) => row.keys.directory).filter((name) => this.chosen.has(name));
    this.line.textContent = names.length > 1 ? `%dist_compare ${names.join(" ")}` : "";
    this.line.hidden = names.length < 2;
  }

  dispose() {
    clearInterval(this.alive);
    this.link.dispose();
    this.model.off("msg:custom", this.onMessage);
    this.root.remove();
  }
}

export default {
  initialize({ model }) {
    return watchLostOutputs(model);
  },
  render({ model, el }) {
    const table = new Table(model, el);
    return () => table.dispose();
  },
};
