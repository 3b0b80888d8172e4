// Images and texts that the cell logged, in the Samples tab: one at a time, chosen by name, rank and step.
import { make, say, whole } from "./text.js";

const LEAST_SIDE = 240; // pixels that a small image is magnified to

export class Logged {
  // choose(what): asks the kernel for another image or text
  constructor(choose) {
    this.choose = choose;
    this.node = make("section", "dw-logged", null, { "aria-label": "Logged images and texts" });
    this.node.hidden = true;
    const tools = make("div", "dw-tools", this.node);
    this.names = this.field(tools, "Logged ", "Name of the image or text");
    this.ranks = this.field(tools, "Rank ", "Rank that logged it");
    const label = (this.stepField = make("label", "", tools));
    label.append("Step ");
    this.slider = make("input", "dw-slider", label, { type: "range", min: "0", step: "1", "aria-label": "Step" });
    this.at = make("span", "dw-at", tools, { role: "status" });
    this.names.addEventListener("change", () => {
      this.fillRanks(this.item.rank);
      this.fillSteps(null);
      this.ask();
    });
    this.ranks.addEventListener("change", () => {
      this.fillSteps(this.item.newest ? null : this.item.step);
      this.ask();
    });
    this.slider.addEventListener("input", () => this.ask());
    this.image = make("img", "dw-image", this.node);
    this.image.addEventListener("error", () => this.sayProblem("The browser cannot show this image."));
    this.text = make("pre", "dw-text", this.node, { tabindex: "0", "aria-label": "Logged text" });
    this.problem = make("p", "dw-note", this.node, { role: "status" });
    this.more = make("p", "dw-note", this.node);
    this.listed = [];
    this.turn = 0; // the number of the last question
  }

  field(parent, text, about) {
    const label = make("label", "", parent);
    label.append(text);
    return make("select", "", label, { "aria-label": about });
  }

  // listed: the kernel's list of names; item: what it shows of them, the answer to a question or the newest
  show(listed, item) {
    this.node.hidden = !listed || !item;
    if (this.node.hidden) return;
    this.item = item;
    if (item.turn >= this.turn) {
      // the choice is that of the item, unless it was changed since
      this.listed = listed.names;
      this.fillNames();
      this.fillRanks(item.rank);
      this.fillSteps(item.newest ? null : item.step);
    }
    const { left_out: more } = listed;
    say(this.more, more ? `${whole(more)} more names are not listed.` : "");
    this.more.hidden = !more;
    this.sayItem(item);
  }

  get name() {
    return this.listed[this.names.selectedIndex];
  }

  stepsOf(rank) {
    return this.name.groups.find(({ ranks }) => ranks.includes(rank))?.steps ?? [];
  }

  fillNames() {
    const texts = this.listed.map(({ kind, name }) => `${name} (${kind})`);
    this.fill(this.names, texts);
    this.names.selectedIndex = this.listed.findIndex(({ kind, name }) => kind === this.item.kind && name === this.item.name);
  }

  fillRanks(rank) {
    const ranks = this.name.groups.flatMap((group) => group.ranks).sort((a, b) => a - b);
    this.fill(this.ranks, ranks.map(String));
    this.ranks.value = String(ranks.includes(rank) ? rank : ranks[0]);
    this.ranks.parentElement.hidden = ranks.length < 2;
  }

  // step null: the newest
  fillSteps(step) {
    const steps = this.stepsOf(Number(this.ranks.value));
    this.stepField.hidden = steps.length < 2;
    this.slider.max = String(steps.length - 1);
    const place = steps.indexOf(step);
    this.slider.value = String(place < 0 ? steps.length - 1 : place);
    this.sayStep();
  }

  fill(select, texts) {
    if (String([...select.options].map((option) => option.textContent)) === String(texts)) return;
    select.replaceChildren();
    for (const text of texts) say(make("option", "", select, { value: text }), text);
  }

  get step() {
    return this.stepsOf(Number(this.ranks.value))[Number(this.slider.value)];
  }

  get isNewest() {
    return this.slider.value === this.slider.max;
  }

  sayStep() {
    say(this.at, `step ${whole(this.step)}${this.isNewest ? ", the newest" : ""}`);
    this.slider.setAttribute("aria-valuetext", this.at.textContent);
  }

  // The last place of the slider stands for the newest, which follows the run.
  ask() {
    this.sayStep();
    const { kind, name } = this.name;
    const rank = Number(this.ranks.value);
    this.turn = Math.max(this.turn, this.item.turn) + 1;
    this.choose({ kind, name, rank, step: this.isNewest ? null : this.step, turn: this.turn });
  }

  sayItem({ kind, name, rank, step, text, png, width, height, problem }) {
    const isImage = kind === "image" && !problem;
    this.node.dataset.step = step;
    this.image.hidden = !isImage;
    this.text.hidden = kind !== "text";
    say(this.text, text);
    this.sayProblem(problem);
    if (!isImage) return;
    const times = Math.max(1, Math.floor(LEAST_SIDE / Math.max(width, height, 1)));
    this.image.width = width * times;
    this.image.classList.toggle("dw-pixels", times > 1);
    this.image.alt = `${name} at step ${whole(step)} of rank ${rank}, ${width} × ${height} pixels`;
    this.image.title = this.image.alt;
    const source = `data:image/png;base64,${png}`;
    if (this.image.src !== source) this.image.src = source;
  }

  sayProblem(problem) {
    say(this.problem, problem);
    this.problem.hidden = !problem;
    if (problem) this.image.hidden = true;
  }
}
