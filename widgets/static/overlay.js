// Static figures: requests BokehJS (once per page) and the figures from the kernel and draws them, without a network.
// Messages: see widgets/overlay.py. Text from a run is set as textContent only.

import { Link } from "./link.js";
import { bokehOfPage, isDark, loadBokeh, paint } from "./page.js";
import { watchLostOutputs } from "./reload.js";

function render({ model, el }) {
  const root = document.createElement("div");
  root.setAttribute("data-lm-suppress-shortcuts", "true");
  root.style.width = "100%";
  root.textContent = "Waiting for the kernel…";
  el.append(root);
  let plots = [];
  let colours = null;
  let gone = false;
  const repaint = () => colours && plots.forEach((plot) => paint(plot, colours[isDark() ? "dark" : "light"]));

  async function draw(content) {
    const boxes = content.figures.map((about) => {
      const box = document.createElement("div");
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", about.title);
      box.style.cssText = `height:${about.height}px;margin-bottom:8px`;
      return box;
    });
    root.replaceChildren(...boxes);
    plots = [];
    for (const [index, about] of content.figures.entries()) {
      const views = await bokehOfPage.api.embed.embed_item(structuredClone(about.item), boxes[index]);
      if (gone) return;
      plots.push([...views.roots][0].model);
    }
    colours = content.colours;
    repaint();
    root.dataset.figures = plots.length;
  }

  let work = Promise.resolve();
  const hello = () => model.send({ kind: "hello", have: bokehOfPage.version });
  const link = new Link(model, {
    due: () => false, // the kernel answers hello, and sends nothing else
    ask: hello,
    changed: (trouble) => colours || (root.textContent = trouble),
    lacking: () => !colours,
    begin: hello,
  });
  const take = (content, buffers) => {
    link.heard();
    work = work
      .then(async () => {
        if (gone) return;
        if (content.kind === "bokeh") await loadBokeh(content.version, buffers[0]);
        else if (content.kind === "figures") await draw(content);
      })
      .catch((error) => {
        console.error("overlay:", error);
        root.textContent = String(error);
      });
  };
  model.on("msg:custom", take);
  const themes = new MutationObserver(repaint);
  themes.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light", "style"] });
  link.send(hello);
  return () => {
    gone = true;
    link.dispose();
    model.off("msg:custom", take);
    themes.disconnect();
    for (const plot of plots) plot.document?.clear();
    root.remove();
  };
}

export default {
  initialize({ model }) {
    return watchLostOutputs(model);
  },
  render,
};
