// The Ranks tab: one tile per rank (a small square with more than 32 ranks), of which one can be selected, and figures.
import { fixed, gib, known, make, say, whole } from "./text.js";

const STATES = ["finished", "starting", "running", "paused", "restarting", "stopped", "failed", "died"];
const MOST_TILES = 32;
const CROWD = 256;

export class Ranks {
  constructor(figures, choose) {
    this.choose = choose;
    this.chosen = null;
    this.node = make("div", "dw-page");
    this.grid = make("div", "dw-ranks", this.node, { role: "listbox", "aria-label": "Ranks", tabindex: "0" });
    this.grid.addEventListener("keydown", (event) => this.move(event));
    this.about = make("div", "dw-about dw-chosen", this.node, { role: "status" });
    this.node.append(figures.node);
    this.tiles = [];
  }

  say(table, facts, theme) {
    const size = table.rank?.length ?? 0;
    if (this.tiles.length !== size) this.build(size, theme);
    this.table = table;
    const small = size > MOST_TILES;
    for (const [rank, tile] of this.tiles.entries()) {
      const state = STATES[table.state[rank]];
      const slow = facts.straggler === rank;
      tile.node.dataset.state = state;
      tile.node.dataset.slow = slow ? "true" : "";
      const words = this.words(rank, slow);
      if (tile.node.title !== words) {
        tile.node.title = words;
        tile.node.setAttribute("aria-label", words);
      }
      if (small) continue;
      say(tile.state, slow && state === "running" ? "straggler" : state);
      say(tile.step, `step ${whole(table.step[rank])}`);
      say(tile.busy, `${table.gpu[rank] ? "GPU" : "CPU"} ${fixed(table.busy[rank], 0)} %`);
      say(tile.memory, gib(table.memory[rank]));
    }
    this.straggler = facts.straggler;
    this.sayChosen();
  }

  words(rank, slow = false) {
    const t = this.table;
    const parts = [`rank ${rank} on ${t.device[rank]}: ${STATES[t.state[rank]]} ${t.phase[rank]}`.trim()];
    parts.push(`step ${whole(t.step[rank])}`, `${t.gpu[rank] ? "GPU" : "CPU"} ${fixed(t.busy[rank], 0)} %`);
    parts.push(gib(t.memory[rank]));
    if (t.throttle[rank]) parts.push(`slowed by ${t.throttle[rank]}`);
    if (known(t.lag[rank])) parts.push(`work time ${t.lag[rank] >= 0 ? "+" : ""}${t.lag[rank]} % against the other ranks`);
    return parts.join(" · ") + (slow ? " · straggler" : "");
  }

  sayChosen() {
    const many = this.tiles.length > MOST_TILES;
    const hint = many ? "Bands reach from the lowest to the highest rank. Click a rank to draw its line." : "";
    say(this.about, this.chosen === null || !this.table ? hint : this.words(this.chosen, this.straggler === this.chosen));
  }

  build(size, theme) {
    const small = size > MOST_TILES;
    this.grid.replaceChildren();
    this.grid.classList.toggle("dw-many", small);
    this.grid.classList.toggle("dw-crowd", size > CROWD);
    this.tiles = Array.from({ length: size }, (_, rank) => {
      const node = make("div", small ? "dw-square" : "dw-rank", this.grid, { role: "option", "aria-selected": "false" });
      node.style.setProperty("--dw-rank", theme.ranks[rank % theme.ranks.length]);
      node.addEventListener("click", () => this.select(rank === this.chosen ? null : rank));
      if (small) return { node };
      const line = make("div", "dw-rank-line", node);
      say(make("span", "dw-rank-name", line), `rank ${rank}`);
      const tile = { node, state: make("span", "dw-rank-state", line) };
      const rest = make("div", "dw-rank-line dw-note", node);
      for (const key of ["step", "busy", "memory"]) tile[key] = make("span", "", rest);
      return tile;
    });
  }

  select(rank) {
    this.tiles[this.chosen]?.node.setAttribute("aria-selected", "false");
    this.chosen = rank;
    this.tiles[rank]?.node.setAttribute("aria-selected", "true");
    this.tiles[rank]?.node.scrollIntoView({ block: "nearest" });
    this.sayChosen(); // immediately, as a run that has ended sends no further table
    this.choose(rank);
  }

  move(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") this.select(null);
    else if (step) this.select(Math.min(this.tiles.length - 1, Math.max(0, (this.chosen ?? -step) + step)));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

// The phases of a figure with their colours, and with ``straggler`` the mark of a straggler.
export class PhaseLegend {
  constructor({ straggler = false } = {}) {
    this.node = make("div", "dw-legend dw-wide");
    this.marks = straggler;
    this.shown = "";
  }

  say(phases, theme, facts) {
    const seen = new Set(phases);
    const names = Object.keys(theme.phases).filter((name) => seen.has(name));
    const marked = this.marks && (facts.straggler ?? null) !== null;
    if (this.shown === `${names} ${marked}`) return;
    this.shown = `${names} ${marked}`;
    this.node.replaceChildren();
    for (const name of names) {
      const item = make("span", "dw-key", this.node);
      make("i", "", item).style.background = theme.phases[name];
      item.append(name);
    }
    if (marked) say(make("span", "dw-key dw-straggler", this.node), "▶ straggler");
  }
}
