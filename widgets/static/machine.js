// The panel of this machine: cores, memory, GPUs and ranks, with the last two minutes of each.
import { fixed, known, make, say, whole } from "./text.js";
import { isDark } from "./page.js";
import { Link } from "./link.js";
import { watchLostOutputs } from "./reload.js";

const MOST_POINTS = 120;
const gibOf = (bytes) => (bytes / 2 ** 30).toFixed(1);

// A value with an area chart of its latest values, in percent.
class Meter {
  constructor(parent, label) {
    this.node = make("div", "dw-meter", parent, { role: "listitem" });
    const line = make("div", "dw-rank-line", this.node);
    say(make("span", "dw-rank-name", line), label);
    this.value = make("span", "dw-note", line);
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.svg.setAttribute("viewBox", `0 0 ${MOST_POINTS - 1} 100`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("aria-hidden", "true");
    this.area = document.createElementNS("http://www.w3.org/2000/svg", "path");
    this.svg.append(this.area);
    this.node.append(this.svg);
    this.points = [];
  }

  say(percent, text) {
    this.points.push(Math.min(100, Math.max(0, percent ?? 0)));
    if (this.points.length > MOST_POINTS) this.points.shift();
    const begin = MOST_POINTS - this.points.length;
    const line = this.points.map((value, place) => `L${begin + place} ${100 - value}`).join("");
    this.area.setAttribute("d", `M${begin} 100${line}L${MOST_POINTS - 1} 100Z`);
    say(this.value, text);
  }
}

class MachineView {
  constructor(state) {
    this.state = state;
    this.root = make("section", "dw dw-machine", null, { "data-lm-suppress-shortcuts": "true", "aria-label": "This machine" });
    const head = make("div", "dw-head", this.root);
    const names = make("div", "dw-names", head);
    this.name = make("div", "dw-name", names);
    this.about = make("div", "dw-about", names, { role: "status" });
    this.meters = new Map();
    this.grid = make("div", "dw-meters", this.root, { role: "list", "aria-label": "Cores, memory and GPUs" });
    say(make("div", "dw-label dw-machine-label", this.root), "Ranks");
    const table = make("table", "dw-table", make("div", "dw-scroll", this.root, { tabindex: "0" }));
    const line = make("tr", "", make("thead", "", table));
    for (const title of ["rank", "pid", "device", "cores", "memory", "state", "step"]) say(make("th", "", line, { scope: "col" }), title);
    this.body = make("tbody", "", table);
    this.repaint();
  }

  meter(key, label) {
    if (!this.meters.has(key)) this.meters.set(key, new Meter(this.grid, label));
    return this.meters.get(key);
  }

  say(seen) {
    say(this.name, seen.host);
    const load = seen.load.map((value) => value.toFixed(2)).join(", ");
    this.about.dataset.level = "";
    say(this.about, seen.warnings[0] ?? `load ${load} · ${seen.run ? `training ${seen.run}` : "no training"}`);
    const mean = seen.cores.reduce((sum, value) => sum + value, 0) / seen.cores.length;
    this.meter("cpu", `CPU, ${seen.cores.length} cores`).say(mean, `${fixed(mean, 0)} %`);
    const { used, total } = seen.memory;
    this.meter("memory", "Memory").say((100 * used) / total, `${gibOf(used)} of ${gibOf(total)} GiB`);
    if (seen.cores.length <= 32) {
      for (const [place, value] of seen.cores.entries()) this.meter(`core ${place}`, `core ${place}`).say(value, `${fixed(value, 0)} %`);
    }
    for (const [place, gpu] of seen.gpus.entries()) {
      const power = known(gpu.power) ? ` · ${fixed(gpu.power, 0)} W` : "";
      const heat = known(gpu.temperature) ? ` · ${gpu.temperature} °C` : "";
      this.meter(`gpu ${place}`, `GPU ${place} ${gpu.name}`).say(gpu.busy, `${fixed(gpu.busy, 0)} %${heat}${power}`);
      const share = (100 * gpu.used) / gpu.total;
      this.meter(`gpu ${place} memory`, `GPU ${place} memory`).say(share, `${gibOf(gpu.used)} of ${gibOf(gpu.total)} GiB`);
    }
    this.list(seen);
  }

  // Shows that the kernel is gone; trouble "": it responds again.
  cut(trouble) {
    this.about.dataset.level = trouble ? "error" : "";
    if (trouble) say(this.about, `${trouble}. %dist_watch shows the machine again`);
  }

  // The kernel could not look; what it says next stands here.
  trouble(text) {
    this.about.dataset.level = "error";
    say(this.about, text);
  }

  list(seen) {
    this.body.replaceChildren();
    for (const rank of seen.ranks) {
      const line = make("tr", "", this.body);
      const cores = rank.cores.length ? rank.cores.join(",") : "not pinned";
      const memory = `${(rank.memory_bytes / 2 ** 30).toFixed(2)} GiB`;
      const step = known(rank.step) ? whole(rank.step) : "–";
      for (const text of [rank.rank, rank.pid, rank.device, cores, memory, rank.warning || rank.state, step]) {
        say(make("td", "", line), String(text));
      }
      line.firstChild.style.borderLeft = `4px solid ${seen.theme.ranks[rank.rank % seen.theme.ranks.length]}`;
    }
    if (!seen.ranks.length) say(make("td", "dw-note", make("tr", "", this.body), { colspan: "7" }), "No ranks are up: %dist_up starts them.");
  }

  repaint() {
    this.root.dataset.mode = isDark() ? "dark" : "light";
  }
}

class MachineState {
  constructor(model) {
    this.model = model;
    this.views = new Set();
    this.link = new Link(model, {
      due: () => !document.hidden && this.views.size > 0,
      ask: () => model.send({ kind: "look", views: this.looks() }),
      changed: (trouble) => this.views.forEach((view) => view.cut(trouble)),
      lacking: () => !this.seen,
      begin: () => model.send({ kind: "hello" }),
    });
    this.onMessage = (content) => {
      this.link.heard();
      if (content.kind === "trouble") this.views.forEach((view) => view.trouble(content.text));
      if (content.kind !== "machine") return;
      this.seen = content;
      for (const view of this.views) view.say(content);
      const tell = () => this.tell({ kind: "ack", seq: content.seq, views: this.looks() });
      if (document.hidden) setTimeout(tell, 0);
      else requestAnimationFrame(tell);
    };
    model.on("msg:custom", this.onMessage);
    this.themes = new MutationObserver(() => this.views.forEach((view) => view.repaint()));
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light", "style"] });
    this.onVisibility = () => this.tell({ kind: "look", views: this.looks() });
    document.addEventListener("visibilitychange", this.onVisibility);
    this.tell({ kind: "hello" });
  }

  tell(content) {
    this.link.send(() => this.model.send(content));
  }

  looks() {
    return [...this.views].map(() => ({ visible: !document.hidden }));
  }

  show(element) {
    const view = new MachineView(this);
    this.views.add(view);
    element.append(view.root);
    if (this.seen) view.say(this.seen);
    return () => {
      this.views.delete(view);
      view.root.remove();
    };
  }

  dispose() {
    this.link.dispose();
    this.model.off("msg:custom", this.onMessage);
    document.removeEventListener("visibilitychange", this.onVisibility);
    this.themes.disconnect();
  }
}

const machineStates = new Map();

function machineOf(model) {
  const id = model.get("panel_id");
  if (!machineStates.has(id)) machineStates.set(id, new MachineState(model));
  return machineStates.get(id);
}

export default {
  initialize({ model }) {
    const state = machineOf(model);
    const endWatch = watchLostOutputs(model);
    return () => {
      endWatch();
      machineStates.delete(model.get("panel_id"));
      state.dispose();
    };
  },
  render({ model, el }) {
    return machineOf(model).show(el);
  },
};
