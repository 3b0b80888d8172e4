// Figures that do not change: asks the kernel for BokehJS (once per page) and the figures, draws them. No network.
// Messages: see widgets/overlay.py. Text from a run is only ever set as textContent.

const bokehOfPage = (globalThis.__distWorkbenchBokeh ??= { version: null, api: null });

async function loadBokeh(version, view) {
  if (bokehOfPage.version === version) return;
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const code = await new Response(unzipped).text();
  const root = {}; // BokehJS puts itself on `this`: ours, so that another version in the page stays as it is
  new Function("define", "module", "exports", code).call(root);
  bokehOfPage.api = root.Bokeh ?? globalThis.Bokeh;
  bokehOfPage.version = version;
}

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
  }
  for (const part of plot.center) if ("grid_line_color" in part && part.dimension === 1) part.grid_line_color = colours.grid;
}

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
  const take = (content, buffers) => {
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
  model.send({ kind: "hello", have: bokehOfPage.version });
  return () => {
    gone = true;
    model.off("msg:custom", take);
    themes.disconnect();
    for (const plot of plots) plot.document?.clear();
    root.remove();
  };
}

export default { render };
