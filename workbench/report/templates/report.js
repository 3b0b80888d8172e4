"use strict";
// Draws the figures and keeps their colours with the page: light or dark as the reader's system asks, light on paper.
(async () => {
  const COLOURS = {{ colours | safe }};
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let drawn = 0;

  function paint(onPaper) {
    const c = COLOURS[dark.matches && !onPaper ? "dark" : "light"];
    const axis = { axis_label_text_color: c.muted, major_label_text_color: c.muted, group_text_color: c.muted,
                   axis_line_color: c.line, major_tick_line_color: c.line };
    const colours = {
      Axis: axis,
      Grid: { grid_line_color: c.grid },
      Legend: { label_text_color: c.text },
      ColorBar: { title_text_color: c.muted, major_label_text_color: c.muted },
    };
    for (const document of Bokeh.documents) {
      for (const model of document._all_models.values()) {
        for (const [kind, values] of Object.entries(colours)) {
          if (model.type !== kind && !(kind === "Axis" && model.type.endsWith("Axis"))) continue;
          // a colour that is null is switched off for good
          const known = Object.entries(values).filter(([name]) => name in model.properties && model[name] !== null);
          model.setv(Object.fromEntries(known));
        }
      }
    }
  }

  for (const element of document.querySelectorAll("script.item")) {
    await Bokeh.embed.embed_item(JSON.parse(element.textContent));
    drawn += 1;
  }
  paint(false);
  dark.addEventListener("change", () => paint(false));
  window.addEventListener("beforeprint", () => paint(true));
  window.addEventListener("afterprint", () => paint(false));
  document.documentElement.dataset.drawn = String(drawn);
})();
