"use strict";
// The behaviour of a notebook's report besides its run figures. Bokeh outputs and formulas are tasks that report.js runs
// once BokehJS is loaded. Linked widgets and the folding of code need no library.
(() => {
  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  async function bokehOutputs() {
    for (const packed of document.querySelectorAll("script.bokeh-output")) {
      const script = document.createElement("script");
      script.textContent = await inflate(packed.textContent);
      packed.replaceWith(script);
    }
  }

  function typeset(place, tex, display) {
    const mathjax = Bokeh.require("models/text/mathjax/index");
    const drawn = mathjax.tex2svg(tex, { display, em: 16, ex: 8, containerWidth: 1200 });
    const svg = drawn.querySelector("svg");
    svg.style.fill = svg.style.color = "currentcolor";
    place.textContent = "";
    place.append(svg);
    place.setAttribute("role", "math");
    place.setAttribute("aria-label", tex);
    place.classList.add("done");
  }

  function formulas() {
    for (const place of document.querySelectorAll(".math")) {
      typeset(place, place.textContent, place.classList.contains("block"));
    }
    const mathjax = () => Bokeh.require("models/text/mathjax/index");
    for (const place of document.querySelectorAll(".mathful")) {
      const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
      const texts = [];
      while (walker.nextNode()) texts.push(walker.currentNode);
      for (const node of texts) {
        const pieces = /^\s*\$(?!\$)([^$]+)\$\s*$/.exec(node.data);
        const found = pieces ? [{ start: { n: 0 }, end: { n: node.data.length }, math: pieces[1], display: false }]
                             : /\$[^$]+\$|\$\$|\\\(|\\\[|\\begin/.test(node.data) ? split(node.data, mathjax) : [];
        if (!found.length) continue;
        const parts = document.createDocumentFragment();
        let at = 0;
        for (const item of found) {
          parts.append(node.data.slice(at, item.start.n));
          const span = document.createElement("span");
          span.className = item.display ? "math block" : "math";
          typeset(span, item.math, item.display);
          parts.append(span);
          at = item.end.n;
        }
        parts.append(node.data.slice(at));
        node.replaceWith(parts);
      }
    }
  }

  function split(text, mathjax) {
    const inline = [...text.matchAll(/(?<![\\$])\$(?!\$)([^$\n]+?)\$(?!\$)/g)].map((match) => (
      { start: { n: match.index }, end: { n: match.index + match[0].length }, math: match[1], display: false }));
    const named = [...text.matchAll(/\\begin\{(\w+\*?)\}[^]*?\\end\{\1\}/g)].map((match) => (
      { start: { n: match.index }, end: { n: match.index + match[0].length }, math: match[0], display: true }));
    const found = [];  // of overlapping matches, the first in this list counts
    for (const item of [...inline, ...mathjax().find_tex(text), ...named]) {
      if (!found.some((other) => other.start.n < item.end.n && item.start.n < other.end.n)) found.push(item);
    }
    return found.sort((a, b) => a.start.n - b.start.n);
  }

  window.workbenchTasks = [bokehOutputs];
  if (document.querySelector(".math, .mathful")) window.workbenchTasks.push(formulas);

  const viewsOf = (model) => [...document.querySelectorAll(`[data-model="${CSS.escape(model)}"]`)];

  function show(view, value) {
    const input = view.querySelector("input, textarea"), progress = view.querySelector("progress");
    const select = view.querySelector("select"), button = view.querySelector("button[aria-pressed]");
    const output = view.querySelector("output"), text = view.querySelector(".w-html");
    if (progress) progress.value = (value - progress.dataset.low) / (progress.dataset.high - progress.dataset.low);
    if (text) text.textContent = String(value);
    if (select) select.selectedIndex = Number(value);
    if (button) button.setAttribute("aria-pressed", String(value === true || value === "true"));
    if (output) output.textContent = input?.dataset.options ? JSON.parse(input.dataset.options)[value] : String(value);
    if (!input) return;
    if (input.type === "checkbox") input.checked = value === true || value === "true";
    else input.value = String(value);
  }

  // Shows a value in a widget and in all widgets that are linked to it, directly or through others; each one once.
  function spread(model, value, links, visited) {
    visited.add(model);
    for (const view of viewsOf(model)) show(view, value);
    for (const { source, target, both } of links) {
      if (source === model && !visited.has(target)) spread(target, value, links, visited);
      if (both && target === model && !visited.has(source)) spread(source, value, links, visited);
    }
  }

  function linkWidgets() {
    const links = JSON.parse(document.getElementById("widget-links")?.textContent ?? "[]");
    for (const model of new Set(links.flatMap(({ source, target }) => [source, target]))) {
      for (const view of viewsOf(model)) {
        view.addEventListener("input", ({ target }) => {
          const value = target.type === "checkbox" ? target.checked
                      : target.tagName === "SELECT" ? target.selectedIndex : target.value;
          spread(model, value, links, new Set());
        });
        view.querySelector("button[aria-pressed]")?.addEventListener("click", ({ target }) => {
          spread(model, target.getAttribute("aria-pressed") !== "true", links, new Set());
        });
      }
    }
  }
  linkWidgets();

  const fold = document.getElementById("fold");
  const sources = [...document.querySelectorAll("details.source")];
  if (fold) {
    fold.hidden = false;
    fold.addEventListener("click", () => {
      const hide = sources.some((source) => source.open);
      for (const source of sources) source.open = !hide;
      fold.textContent = hide ? "Show all code" : "Hide all code";
    });
  }
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll(".notebook details:not([open], .thumbnail)")];
    for (const details of closed) details.open = true;
  });
  window.addEventListener("afterprint", () => { for (const details of closed) details.open = false; });
})();
