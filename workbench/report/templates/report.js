"use strict";
// Decompresses BokehJS and the figures, and draws the figures in place of the static pictures. The figures follow the
// system's light or dark colour scheme. In a browser that cannot decompress, the static pictures stay.
(async () => {
  const COLOURS = {{ colours | safe }};
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let drawn = 0;

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  function paint() {
    const c = COLOURS[dark.matches ? "dark" : "light"];
    const axis = { axis_label_text_color: c.muted, major_label_text_color: c.muted, group_text_color: c.muted,
                   axis_line_color: c.line, major_tick_line_color: c.line };
    const colours = {
      Axis: axis,
      Grid: { grid_line_color: c.grid },
      Legend: { label_text_color: c.text },
      ColorBar: { title_text_color: c.muted, major_label_text_color: c.muted },
    };
    for (const document of Bokeh.documents.filter((document) => ours.has(document))) {
      for (const model of document._all_models.values()) {
        for (const [kind, values] of Object.entries(colours)) {
          if (model.type !== kind && !(kind === "Axis" && model.type.endsWith("Axis"))) continue;
          // a colour that is null was switched off by the plot: leave it
          const known = Object.entries(values).filter(([name]) => name in model.properties && model[name] !== null);
          model.setv(Object.fromEntries(known));
        }
      }
    }
  }

  const ours = new Set();

  // What is folded is unfolded for print, and, in a browser that does not do so by itself, for a link into it.
  function openFor(element) {
    for (let fold = element?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  }
  const followLink = () => openFor(document.getElementById(decodeURIComponent(location.hash.slice(1))));
  window.addEventListener("hashchange", followLink);
  followLink();
  let unfolded = [];
  window.addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("main details:not([open], .thumbnail)")];
    for (const fold of unfolded) fold.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const fold of unfolded) fold.open = false;
  });

  async function draw({ document: json, roots }, number) {
    for (const place of Object.values(roots)) document.getElementById(place).hidden = false;
    const before = new Set(Bokeh.documents);
    const id = `sheet-${number}`;
    await Bokeh.embed.embed_items({ [id]: json }, [{ docid: id, roots, root_ids: Object.keys(roots) }]);
    for (const made of Bokeh.documents) if (!before.has(made)) ours.add(made);
    for (const place of Object.values(roots)) {
      document.getElementById(place).closest("figure").classList.add("live");
      drawn += 1;
    }
  }

  if (typeof DecompressionStream === "undefined") return;
  const script = document.createElement("script");
  script.textContent = await unpack("packed-library");
  document.head.append(script);
  if (document.getElementById("packed-figures")) {
    let number = 0;
    for (const sheet of JSON.parse(await unpack("packed-figures"))) await draw(sheet, number++);
    paint();
    dark.addEventListener("change", paint);
  }
  for (const task of window.workbenchTasks ?? []) await task();
  root.dataset.drawn = String(drawn);
})();
