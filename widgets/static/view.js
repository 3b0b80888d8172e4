// One visible copy of a panel: its head, tabs and pages.
import { duration, ENDED, known, make, say, whole } from "./text.js";
import { isDark } from "./page.js";
import { Figures, Window } from "./figures.js";
import { Overview } from "./overview.js";
import { PhaseLegend, Ranks } from "./ranks.js";
import { Console, Samples } from "./lists.js";
import { Logged } from "./logged.js";
import { Controls, Quick } from "./controls.js";
import { GONE } from "./link.js";

const TABS = [
  ["overview", "Overview"],
  ["ranks", "Ranks"],
  ["gradients", "Gradients"],
  ["inside", "Inside"],
  ["communication", "Communication"],
  ["timeline", "Timeline"],
  ["samples", "Samples"],
  ["console", "Console"],
  ["controls", "Controls"],
  ["compare", "Compare"],
];
const ALIGN = { step: "step", tokens: "tokens (all ranks)", time: "seconds since the first sample" };
let views = 0;

export class View {
  constructor(state) {
    this.state = state;
    this.id = `dw-view-${++views}`;
    this.number = 0;
    this.tab = "overview";
    this.visible = true;
    this.undrawn = false; // whether figures of the tab are left to draw until the view is in the document
    this.root = make("section", "dw", null, { "data-lm-suppress-shortcuts": "true", "aria-label": "Training run" });
    this.window = new Window((from) => this.rangeChanged(from));
    this.head();
    this.tabList();
    this.pages();
    this.repaint();
    this.watcher = new IntersectionObserver((entries) => {
      const seen = entries.at(-1).isIntersecting;
      if (seen && this.undrawn) state.later(() => this.draw());
      if (seen === this.visible) return;
      this.visible = seen;
      state.looked();
    });
    this.watcher.observe(this.root);
  }

  get run() {
    return this.state.runs[this.number];
  }

  head() {
    const head = make("div", "dw-head", this.root);
    const names = make("div", "dw-names", head);
    const title = make("div", "dw-title", names);
    this.name = make("span", "dw-name", title);
    this.runs = make("select", "", title, { "aria-label": "Run that is shown" });
    this.runs.hidden = true;
    this.runs.addEventListener("change", () => this.switchRun(this.runs.selectedIndex));
    this.lineage = make("span", "dw-note", title);
    this.about = make("div", "dw-about", names, { role: "status" });
    this.alerts = make("button", "dw-alerts", head, { type: "button" });
    this.alerts.hidden = true;
    this.alerts.addEventListener("click", () => this.showEvents());
    this.pill = make("span", "dw-pill", head, { role: "status" });
    this.notice = make("div", "dw-notice", this.root, { role: "status" });
    this.notice.hidden = true;
    this.quick = new Quick(head, (name, value) => this.state.control(this.number, name, value));
    const progress = make("div", "dw-progress", this.root);
    this.bar = make("div", "dw-bar", progress, { role: "progressbar", "aria-label": "Steps", "aria-valuemin": "0" });
    this.fillBar = make("div", "dw-fill", this.bar);
    this.count = make("span", "dw-count", progress);
    this.clock = make("span", "dw-clock", progress);
  }

  tabList() {
    const line = make("div", "dw-tabline", this.root);
    const list = make("div", "dw-tabs", line, { role: "tablist", "aria-label": "Parts of the panel" });
    this.tabs = new Map();
    for (const [tab, title] of TABS) {
      const attributes = { type: "button", role: "tab", id: `${this.id}-${tab}`, "aria-controls": `${this.id}-${tab}-page` };
      const button = make("button", "dw-tab", list, attributes);
      say(button, title);
      button.addEventListener("click", () => this.open(tab));
      this.tabs.set(tab, { button, page: null, figures: null });
    }
    list.addEventListener("keydown", (event) => this.moveTab(event));
    this.tabs.get("compare").button.hidden = true;
    this.chip = make("button", "dw-chip", line, { type: "button", title: "Show all steps" });
    this.chip.addEventListener("click", () => this.window.set(null));
    this.chip.hidden = true;
  }

  moveTab(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const names = [...this.tabs].filter(([, { button }]) => !button.hidden).map(([tab]) => tab);
    const next = names[(names.indexOf(this.tab) + step + names.length) % names.length];
    this.open(next);
    this.tabs.get(next).button.focus();
    event.preventDefault();
    event.stopPropagation();
  }

  pages() {
    const body = make("div", "dw-body", this.root);
    const figures = {};
    this.legends = { phase_bars: new PhaseLegend({ straggler: true }), timeline: new PhaseLegend() };
    const beside = {
      ranks: { after: { phase_bars: this.legends.phase_bars.node } },
      gradients: { before: { histogram: this.layerChoice() } },
      timeline: { before: { timeline: this.legends.timeline.node } },
    };
    for (const [tab, entry] of this.tabs) {
      entry.page = make("div", "dw-tabpage", body, { role: "tabpanel", id: `${this.id}-${tab}-page`, "aria-labelledby": `${this.id}-${tab}` });
      if (tab !== "console" && tab !== "controls") {
        entry.figures = figures[tab] = new Figures(tab, () => this.run, this.window, beside[tab]);
      }
    }
    this.overview = new Overview(figures.overview);
    this.ranks = new Ranks(figures.ranks, (rank) => this.state.choose(this.number, { rank }));
    this.logged = new Logged((logged) => this.state.choose(this.number, { logged }));
    this.samples = new Samples(figures.samples, this.logged.node);
    this.console = new Console();
    this.controls = new Controls((name, value) => this.state.control(this.number, name, value));
    for (const tab of ["overview", "ranks", "samples", "console", "controls"]) this.tabs.get(tab).page.append(this[tab].node);
    this.alignment(this.tabs.get("compare").page);
    for (const tab of ["gradients", "inside", "communication", "timeline", "compare"]) this.tabs.get(tab).page.append(figures[tab].node);
    this.open("overview", false);
  }

  layerChoice() {
    const label = make("label", "dw-tools dw-wide", null);
    label.append("Layer ");
    this.layer = make("select", "", label, { "aria-label": "Layer of the histogram" });
    this.layer.addEventListener("change", () => this.state.choose(this.number, { layer: this.layer.value }));
    return label;
  }

  alignment(page) {
    const label = make("label", "dw-tools", page);
    label.append("Align runs by ");
    this.align = make("select", "", label, { "aria-label": "Align runs by" });
    for (const name of Object.keys(ALIGN)) say(make("option", "", this.align, { value: name }), name);
    this.align.addEventListener("change", () => this.realign());
  }

  open(tab, tell = true) {
    this.tab = tab;
    this.root.dataset.tab = tab;
    for (const [name, { button, page }] of this.tabs) {
      button.setAttribute("aria-selected", String(name === tab));
      button.tabIndex = name === tab ? 0 : -1;
      page.hidden = name !== tab;
    }
    if (!tell) return;
    this.state.looked();
    this.state.later(() => this.draw());
  }

  switchRun(number) {
    this.number = number;
    for (const { figures } of this.tabs.values()) if (figures && figures.tab !== "compare") figures.clear();
    this.overview.events.clear();
    this.console.clear();
    this.ranks.chosen = null;
    this.layer.replaceChildren();
    this.state.looked();
    this.state.later(() => this.fill());
  }

  // Draws everything, after the page was loaded or the kernel sent its full state.
  async fill() {
    const { run } = this;
    if (!run?.full) return;
    this.declare(run.full.controls);
    this.say(run.facts);
    this.overview.list(run.events);
    this.console.show([...run.console.values()]);
    this.samples.list(run.samples);
    this.logged.show(run.logged, run.logged_item);
    this.takeHistory(run.history);
    const names = this.state.runs[0].full?.runs ?? [];
    this.tabs.get("compare").button.hidden = this.runs.hidden = names.length < 2;
    this.name.hidden = names.length > 1; // the selection shows the name
    if (names.length > 1 && !this.runs.length) for (const name of names) say(make("option", "", this.runs), name);
    await this.draw();
  }

  declare(controls) {
    this.quick.declare(controls);
    this.controls.declare(controls);
  }

  takeHistory(rows) {
    this.quick.history(rows);
    this.controls.history(rows);
  }

  async draw() {
    const { figures } = this.tabs.get(this.tab);
    if (!this.run?.full) return;
    this.undrawn = (await figures?.draw()) === false;
    if (this.undrawn) {
      this.watcher.unobserve(this.root);
      this.watcher.observe(this.root); // tells when it is in the document, also if it is by now
    }
    figures?.seenAgain();
    this.sayPoints();
    if (this.tab === "compare") this.fillCompare();
    if (this.tab === "ranks" && this.run.rows.rank_table) this.ranks.say(this.run.rows.rank_table, this.run.facts, this.run.theme);
    if (this.tab === "gradients") this.listLayers();
    this.sayLegends();
  }

  // The phases that figures show, with their colours.
  sayLegends() {
    const { rows, theme, facts } = this.run;
    for (const [figure, legend] of Object.entries(this.legends)) legend.say(rows[figure]?.phase ?? [], theme, facts);
  }

  // Takes changes of the run that is shown: rows, replaced figures, changed facts, events and other lists.
  async take({ news, replaced, drawn, extra }) {
    const { run } = this;
    this.say(run.facts);
    for (const { figures } of this.tabs.values()) figures?.feed(news, replaced);
    if (drawn) await this.draw();
    if (extra.events) this.overview.list(extra.events);
    if (extra.console) this.console.show(extra.console);
    if (extra.samples) this.samples.list(extra.samples);
    if (extra.logged || extra.logged_item) this.logged.show(run.logged, run.logged_item);
    if (extra.controls) {
      run.full.controls = extra.controls;
      this.declare(extra.controls);
      this.say(run.facts);
    }
    if (extra.history) this.takeHistory(extra.history);
    if (extra.marks) for (const { figures } of this.tabs.values()) figures?.markAll();
    if (news.rank_table) this.ranks.say(run.rows.rank_table, run.facts, run.theme);
    if (news.gradients && this.tab === "gradients") this.listLayers();
    if (Object.keys(this.legends).some((figure) => news[figure])) this.sayLegends();
    this.sayPoints();
  }

  sayPoints() {
    const rows = this.run.rows.loss?.step ?? [];
    const drawn = this.tabs.get("overview").figures.boxes.get("loss")?.source?.get_length() ?? 0;
    this.root.dataset.points = drawn;
    this.root.dataset.step = rows.at(-1) ?? 0;
  }

  // Shows that the kernel is gone, or that it responds again.
  cut() {
    for (const { figures } of this.tabs.values()) figures?.cut(this.state.link.trouble);
    if (this.run?.facts) this.say(this.run.facts);
    else this.warn(this.state.link.trouble);
  }

  // A line of its own, as long as it needs to be.
  warn(text) {
    say(this.notice, text);
    this.notice.hidden = !text;
  }

  // What became of a run whose kernel is gone, and what to do.
  farewell(facts) {
    const { cut, name, own, saved, step } = facts;
    if (!cut) return "";
    if (cut !== GONE || !own || ENDED.includes(facts.status)) return `${cut}. %dist_watch ${name} shows the run again`;
    const next = known(saved)
      ? `%dist_train --resume ${name}@${saved} continues it`
      : "No checkpoint was written, so it can only start anew";
    return `${cut}, and the training ended with it at step ${whole(step)}. ${next}`;
  }

  say(told) {
    const cut = this.state.link.trouble;
    const facts = { ...told, cut };
    const ended = ENDED.includes(facts.status);
    const { notice } = facts;
    this.warn(this.farewell(facts));
    this.root.setAttribute("aria-label", `Training run ${facts.name}`);
    this.root.dataset.status = cut && !ended ? "cut" : facts.status;
    say(this.name, facts.name);
    say(this.lineage, facts.lineage);
    this.lineage.title = facts.lineage;
    say(this.about, notice?.text ?? `${facts.recipe} · ${facts.plan} · ${facts.precision}`);
    this.about.title = this.about.textContent;
    this.about.dataset.level = notice?.level ?? "";
    say(this.pill, !cut || ended ? facts.status : cut === GONE && facts.own ? "lost" : "no kernel");
    this.sayAlerts(facts.alerts ?? []);
    this.quick.say(facts);
    this.controls.say(facts);
    const { share } = facts;
    const of = facts.steps ? ` of ${whole(facts.steps)}` : "";
    const epoch = facts.epoch ? ` · ${facts.epoch}` : "";
    this.fillBar.style.width = `${100 * share}%`;
    this.bar.setAttribute("aria-valuemax", facts.steps || facts.step);
    this.bar.setAttribute("aria-valuenow", facts.step);
    say(this.count, `step ${whole(facts.step)}${of}${epoch} · ${Math.floor(100 * share)} %`);
    const left = known(facts.eta) && !cut ? ` · about ${duration(facts.eta)} left` : "";
    say(this.clock, known(facts.elapsed) ? `${duration(facts.elapsed)} elapsed${left}` : "");
    this.overview.say(facts);
  }

  // How many alerts are on; the list of events explains them.
  sayAlerts(alerts) {
    this.alerts.hidden = !alerts.length;
    say(this.alerts, `${alerts.length} ${alerts.length === 1 ? "alert" : "alerts"}`);
    this.alerts.title = alerts.join("\n");
    this.alerts.setAttribute("aria-label", `${this.alerts.textContent}: ${alerts.join("; ")}`);
  }

  showEvents() {
    this.open("overview");
    this.overview.events.node.focus();
  }

  listLayers() {
    const { layer = [], row = [] } = this.run.rows.gradients ?? {};
    const places = new Map(layer.map((name, place) => [name, row[place]]));
    const names = [...places.keys()].sort((a, b) => places.get(a) - places.get(b)); // in model order
    if (names.length === this.layer.length) return;
    const before = this.layer.value || this.run.rows.histogram?.layer?.[0];
    this.layer.replaceChildren();
    for (const name of names) say(make("option", "", this.layer, { value: name }), name || "(root)");
    if (before) this.layer.value = before;
  }

  rangeChanged(from) {
    const { steps } = this.window;
    this.chip.hidden = !steps;
    if (steps) say(this.chip, `steps ${whole(steps[0])} to ${whole(steps[1])} ✕`);
    for (const { figures } of this.tabs.values()) figures?.showAll(from);
  }

  // Fills the sources run0, run1, ... of the figures that compare runs.
  fillCompare() {
    const units = [...new Set(this.state.runs.map(({ facts }) => facts?.unit).filter(Boolean))].join(" or ");
    for (const { plot, about } of this.tabs.get("compare").figures.boxes.values()) {
      if (plot && about.name === "compare_tps") plot.left[0].axis_label = `${units} / s / device`;
      for (const [place, { rows }] of this.state.runs.entries()) {
        const source = plot?.document?.get_model_by_name(`run${place}`);
        if (source && rows.spine?.step?.length) source.data = structuredClone(rows.spine);
      }
    }
  }

  realign() {
    const x = this.align.value;
    for (const { plot } of this.tabs.get("compare").figures.boxes.values()) {
      if (!plot) continue;
      for (const renderer of plot.renderers) renderer.glyph.x = { field: x };
      for (const axis of plot.below) axis.axis_label = ALIGN[x];
      plot.x_range.reset();
    }
    this.fillCompare();
  }

  repaint() {
    const mode = isDark() ? "dark" : "light";
    this.root.dataset.mode = mode;
    for (const { figures } of this.tabs.values()) figures?.repaint(mode);
  }

  dispose() {
    this.watcher.disconnect();
    for (const { figures } of this.tabs.values()) figures?.clear();
    this.root.remove();
  }
}
