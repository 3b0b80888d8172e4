// The live panel: asks the kernel for everything (BokehJS too), draws it, appends what comes. No network, no state kept
// in the notebook. Messages: see widgets/wire.py. Text from a run is only ever set as textContent.

const bokehOfPage = (globalThis.__distWorkbenchBokeh ??= { version: null, api: null });

async function loadBokeh(version, view) {
  if (bokehOfPage.version === version) return bokehOfPage.api;
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const code = await new Response(unzipped).text();
  const root = {}; // BokehJS puts itself on `this`: ours, so that another version in the page stays as it is
  new Function("define", "module", "exports", code).call(root);
  bokehOfPage.api = root.Bokeh ?? globalThis.Bokeh;
  bokehOfPage.version = version;
  return bokehOfPage.api;
}

function unpack(described, buffers) {
  const news = {};
  for (const [figure, columns] of Object.entries(described)) {
    news[figure] = {};
    for (const [name, kind, place] of columns) {
      if (kind === "text") news[figure][name] = [...place];
      else {
        const view = buffers[place];
        const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
        news[figure][name] = Array.from(kind === "f8" ? new Float64Array(bytes) : new Float32Array(bytes));
      }
    }
  }
  return news;
}

// ---------------------------------------------------------------------------------------------------- text helpers

const NONE = "–";
const known = (value) => value !== null && value !== undefined;
const fixed = (value, digits) => (known(value) ? value.toFixed(digits) : NONE);
const whole = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : NONE);
const gib = (bytes) => (known(bytes) ? `${(bytes / 2 ** 30).toFixed(2)} GiB` : NONE);

function number(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
  return size >= 100 ? value.toFixed(1) : value.toFixed(size >= 10 ? 2 : 4);
}

function duration(seconds) {
  if (!known(seconds)) return NONE;
  const all = Math.round(seconds);
  const [h, m, s] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

function make(tag, name, parent, attributes = {}) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent?.append(node);
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// ------------------------------------------------------------------------------------------------------- the theme

function isDark() {
  const { body } = document;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  if (/vscode-(dark|high-contrast)(?!-light)/.test(body.className)) return true;
  const [r, g, b, a = 1] = (getComputedStyle(body).backgroundColor.match(/[\d.]+/g) ?? [255, 255, 255]).map(Number);
  return a > 0 && 0.299 * r + 0.587 * g + 0.114 * b < 110;
}

function paint(plot, colours) {
  if (plot.title) plot.title.text_color = colours.text;
  for (const part of [...plot.above, ...plot.below, ...plot.left, ...plot.right]) {
    if ("axis_line_color" in part) {
      part.axis_label_text_color = part.major_label_text_color = colours.muted;
      part.axis_line_color = part.major_tick_line_color = colours.line;
    } else if ("label_text_color" in part) part.label_text_color = colours.text;
    else if ("color_mapper" in part) part.major_label_text_color = colours.muted;
  }
  for (const part of plot.center) if ("grid_line_color" in part && part.dimension === 1) part.grid_line_color = colours.grid;
}

// --------------------------------------------------------------------------------------------------- one panel view

const TILES = [
  ["loss", "Loss", (f) => [number(f.loss), `step ${f.step}`]],
  ["validation", "Validation", (f) => [number(f.validation?.value), f.validation ? `step ${f.validation.step}` : "none yet"]],
  ["tps", "Tokens/s/device", (f) => [whole(f.tps), `all ${whole(known(f.tps) ? f.tps * f.world : null)}`]],
  ["time", "Step time", (f) => [known(f.step_time_ms) ? `${fixed(f.step_time_ms, 1)} ms` : NONE, "slowest rank"]],
  ["norm", "Grad norm", (f) => [number(f.grad_norm), "before clip"]],
  ["lr", "Learning rate", (f) => [number(f.lr), f.precision]],
];
const STOP = { ready: "Stop", asked: "Stopping…", ended: "Ended", none: "" };

class View {
  constructor(state) {
    this.state = state;
    this.sources = {};
    this.plots = [];
    this.drawn = 0;
    this.root = make("section", "dw", null, { "data-lm-suppress-shortcuts": "true" });
    this.head();
    this.tiles = {};
    const tiles = make("div", "dw-tiles", this.root, { role: "list" });
    for (const [key, label] of TILES) {
      const tile = make("div", "dw-tile", tiles, { role: "listitem" });
      say(make("div", "dw-label", tile), label);
      this.tiles[key] = { value: make("div", "dw-value", tile), note: make("div", "dw-note", tile) };
    }
    this.ranks = make("div", "dw-ranks", this.root, { role: "list", "aria-label": "Ranks", tabindex: "0" });
    this.rankTiles = new Map();
    this.figures = make("div", "dw-figures", this.root);
    this.waiting = make("div", "dw-waiting", this.figures);
    say(this.waiting, "Waiting for the kernel…");
    const sample = make("div", "dw-sample", this.root);
    this.sampleLabel = make("div", "dw-label", sample);
    this.sample = make("pre", "dw-text", sample, { tabindex: "0", "aria-label": "Text sampled from the model" });
    this.repaint();
  }

  head() {
    const head = make("div", "dw-head", this.root);
    const names = make("div", "dw-names", head);
    this.name = make("div", "dw-name", names);
    this.about = make("div", "dw-about", names, { role: "status" });
    this.pill = make("span", "dw-pill", head, { role: "status" });
    this.stop = make("button", "dw-stop", head, { type: "button", "aria-label": "Stop training" });
    this.stop.addEventListener("click", () => {
      this.stop.disabled = true;
      say(this.stop, STOP.asked);
      this.state.model.send({ kind: "stop" });
    });
    const progress = make("div", "dw-progress", this.root);
    this.bar = make("div", "dw-bar", progress, { role: "progressbar", "aria-label": "Steps", "aria-valuemin": "0" });
    this.fill = make("div", "dw-fill", this.bar);
    this.count = make("span", "dw-count", progress);
    this.clock = make("span", "dw-clock", progress);
  }

  say(facts) {
    this.root.setAttribute("aria-label", `Training run ${facts.name}`);
    this.root.dataset.status = facts.status;
    say(this.name, facts.name);
    say(this.about, facts.notice?.text ?? `${facts.recipe} · ${facts.plan} · ${facts.precision}`);
    this.about.title = this.about.textContent;
    this.about.dataset.level = facts.notice?.level ?? "";
    say(this.pill, facts.status);
    this.stop.hidden = facts.stop === "none";
    this.stop.disabled = facts.stop !== "ready";
    say(this.stop, STOP[facts.stop]);
    const share = Math.min(1, facts.step / facts.steps);
    this.fill.style.width = `${100 * share}%`;
    this.bar.setAttribute("aria-valuemax", facts.steps);
    this.bar.setAttribute("aria-valuenow", facts.step);
    say(this.count, `step ${whole(facts.step)} of ${whole(facts.steps)} · ${Math.floor(100 * share)} %`);
    const left = known(facts.eta) ? ` · about ${duration(facts.eta)} left` : "";
    say(this.clock, known(facts.elapsed) ? `${duration(facts.elapsed)} elapsed${left}` : "");
    for (const [key, , text] of TILES) {
      const [value, note] = text(facts);
      say(this.tiles[key].value, value);
      say(this.tiles[key].note, note);
    }
    this.sayRanks(facts);
    say(this.sampleLabel, facts.sample ? `Sample at step ${facts.sample.step}` : "Sample: none yet");
    say(this.sample, facts.sample?.text ?? "");
  }

  sayRanks(facts) {
    for (let rank = 0; rank < Math.min(facts.world, 64); rank++) {
      if (!this.rankTiles.has(rank)) this.rankTiles.set(rank, this.rankTile(rank));
    }
    for (const rank of facts.ranks) {
      const tile = this.rankTiles.get(rank.rank);
      if (!tile) continue;
      tile.node.dataset.state = rank.state;
      say(tile.state, rank.state);
      say(tile.step, `step ${whole(rank.step)}`);
      const gpu = known(rank.gpu);
      say(tile.busy, gpu ? `GPU ${fixed(rank.gpu, 0)} %` : `CPU ${fixed(rank.cpu, 0)} %`);
      say(tile.memory, gib(gpu ? rank.gpu_memory : rank.rss));
      tile.node.title = `rank ${rank.rank} on ${rank.device}: ${rank.state} ${rank.phase}`.trim();
    }
  }

  rankTile(rank) {
    const node = make("div", "dw-rank", this.ranks, { role: "listitem" });
    const colours = this.state.full.rank_colours;
    node.style.setProperty("--dw-rank", colours[rank % colours.length]);
    const line = make("div", "dw-rank-line", node);
    say(make("span", "dw-rank-name", line), `rank ${rank}`);
    const tile = { node, state: make("span", "dw-rank-state", line) };
    const rest = make("div", "dw-rank-line dw-note", node);
    for (const key of ["step", "busy", "memory"]) tile[key] = make("span", "", rest);
    return tile;
  }

  async draw(full, rows) {
    const turn = ++this.drawn;
    const { api } = bokehOfPage;
    const boxes = full.figures.map((about) => {
      const box = make("div", `dw-figure${about.wide ? " dw-wide" : ""}`, null, { role: "img", "aria-label": about.title });
      box.style.height = `${about.height}px`;
      return box;
    });
    this.figures.replaceChildren(...boxes);
    this.sources = {};
    this.plots = [];
    for (const [index, about] of full.figures.entries()) {
      const views = await api.embed.embed_item(structuredClone(about.item), boxes[index]);
      if (turn !== this.drawn) return;
      const plot = [...views.roots][0].model;
      const source = plot.document.get_model_by_name("rows");
      const columns = rows[about.name];
      if (Object.values(columns)[0]?.length) source.data = structuredClone(columns); // Bokeh trips over no rows
      this.sources[about.name] = source;
      this.plots.push(plot);
    }
    this.repaint();
    this.append({});
  }

  append(news) {
    for (const [figure, columns] of Object.entries(news)) this.sources[figure]?.stream(columns);
    this.root.dataset.points = this.sources.loss?.get_length() ?? 0;
  }

  repaint() {
    const mode = isDark() ? "dark" : "light";
    this.root.dataset.mode = mode;
    if (this.state.full) for (const plot of this.plots) paint(plot, this.state.full.colours[mode]);
  }

  dispose() {
    this.drawn++;
    for (const plot of this.plots) plot.document?.clear();
    this.plots = [];
    this.sources = {};
    this.root.remove();
  }
}

// ------------------------------------------------------------------------------------------- what a page knows of it

class State {
  constructor(model) {
    this.model = model;
    this.views = new Set();
    this.orphans = [];
    this.full = null;
    this.rows = {};
    this.work = Promise.resolve();
    this.onMessage = (content, buffers) => {
      this.work = this.work.then(() => this.take(content, buffers ?? [])).catch((error) => this.trouble(String(error)));
    };
    model.on("msg:custom", this.onMessage);
    this.themes = new MutationObserver(() => this.views.forEach((view) => view.repaint()));
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light", "style"] });
    model.send({ kind: "hello", have: bokehOfPage.version });
  }

  async take(content, buffers) {
    if (content.kind === "bokeh") await loadBokeh(content.version, buffers[0]);
    else if (content.kind === "full") {
      this.full = content;
      this.rows = unpack(content.columns, buffers);
      for (const view of this.views) await this.fill(view);
    } else if (content.kind === "delta" && content.epoch === this.full?.epoch) {
      const news = unpack(content.columns, buffers);
      for (const [figure, columns] of Object.entries(news)) {
        for (const [name, values] of Object.entries(columns)) for (const value of values) this.rows[figure][name].push(value);
      }
      this.full.facts = content.facts;
      for (const view of this.views) {
        view.say(content.facts);
        view.append(news);
      }
    } else if (content.kind === "picture") this.watchForPicture(content);
    else if (content.kind === "trouble") this.trouble(content.text);
  }

  async fill(view) {
    if (!this.full) return;
    view.say(this.full.facts);
    if (bokehOfPage.api) await view.draw(this.full, this.rows);
  }

  trouble(text) {
    console.error("panel:", text);
    for (const view of this.views) {
      say(view.about, text);
      view.about.dataset.level = "error";
    }
  }

  show(element) {
    const view = new View(this);
    element.append(view.root);
    this.views.add(view);
    this.work = this.work.then(() => this.fill(view));
    return () => {
      if (this.picture) this.orphans.push(view); // its output becomes the picture: kept to be put back there
      else this.drop(view);
    };
  }

  drop(view) {
    this.views.delete(view);
    view.dispose();
  }

  // The run has ended: outputs that are now its picture show the live panel instead, for as long as this page lives.
  watchForPicture(picture) {
    if (this.picture) return;
    this.picture = picture;
    this.adopt();
    let due = null;
    this.pictures = new MutationObserver(() => {
      due ??= setTimeout(() => {
        due = null;
        this.adopt();
      }, 50);
    });
    this.pictures.observe(document.body, { childList: true, subtree: true });
  }

  adopt() {
    const { length, at, part } = this.picture;
    for (const image of document.querySelectorAll('img[src^="data:image/png;base64,"]:not([data-dw-hidden])')) {
      const data = image.src.slice("data:image/png;base64,".length);
      if (data.length !== length || data.slice(at, at + part.length) !== part) continue;
      image.dataset.dwHidden = "true";
      image.style.display = "none";
      let view = this.orphans.shift();
      if (!view) {
        view = new View(this);
        this.views.add(view);
        this.work = this.work.then(() => this.fill(view));
      }
      image.parentElement.insertBefore(view.root, image);
    }
  }

  dispose() {
    this.model.off("msg:custom", this.onMessage);
    this.themes.disconnect();
    this.pictures?.disconnect();
    for (const view of this.views) view.dispose();
    document.querySelectorAll("img[data-dw-hidden]").forEach((image) => {
      if (!image.previousElementSibling?.classList.contains("dw")) image.style.display = "";
    });
  }
}

// anywidget hands initialize and render two different faces of one model: the panel's id tells that they are one
const states = new Map();

function stateOf(model) {
  const id = model.get("panel_id");
  if (!states.has(id)) states.set(id, new State(model));
  return states.get(id);
}

export default {
  initialize({ model }) {
    const state = stateOf(model);
    return () => {
      states.delete(model.get("panel_id"));
      state.dispose();
    };
  },
  render({ model, el }) {
    return stateOf(model).show(el);
  },
};
