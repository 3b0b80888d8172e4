// Shared by all widgets of a page: loading BokehJS, decoding columns from buffers, and the page's light or dark theme.
import { known } from "./text.js";

export const bokehOfPage = (globalThis.__distWorkbenchBokeh ??= { version: null, api: null });

export async function loadBokeh(version, view) {
  if (bokehOfPage.version === version) return;
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const code = await new Response(unzipped).text();
  const root = {}; // BokehJS assigns itself to `this`; a separate object leaves another version in the page untouched
  new Function("define", "module", "exports", code).call(root);
  bokehOfPage.api = root.Bokeh ?? globalThis.Bokeh;
  bokehOfPage.version = version;
}

const KINDS = { f4: Float32Array, f8: Float64Array, u1: Uint8Array, u2: Uint16Array, i4: Int32Array };

export function unpack(described, buffers) {
  const news = {};
  for (const [figure, columns] of Object.entries(described ?? {})) {
    news[figure] = {};
    for (const [name, kind, place, texts] of columns) {
      const view = buffers[place];
      const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
      const values = Array.from(new (KINDS[kind === "code" ? "u2" : kind])(bytes));
      news[figure][name] = kind === "code" ? values.map((code) => texts[code]) : values;
    }
  }
  return news;
}

export const rowsOf = (columns) => Object.values(columns ?? {})[0]?.length ?? 0;

export function appendRows(rows, news) {
  for (const [name, values] of Object.entries(news)) {
    const own = (rows[name] ??= []);
    for (const value of values) own.push(value);
  }
}

export function isDark() {
  const { body } = document;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  if (/vscode-(dark|high-contrast)(?!-light)/.test(body.className)) return true;
  const [r, g, b, a = 1] = (getComputedStyle(body).backgroundColor.match(/[\d.]+/g) ?? [255, 255, 255]).map(Number);
  return a > 0 && 0.299 * r + 0.587 * g + 0.114 * b < 110;
}

export function paint(plot, colours) {
  if (plot.title) plot.title.text_color = colours.text;
  for (const part of [...plot.above, ...plot.below, ...plot.left, ...plot.right]) {
    if ("axis_line_color" in part) {
      part.axis_label_text_color = part.major_label_text_color = colours.muted;
      part.axis_line_color = part.major_tick_line_color = colours.line;
    } else if ("label_text_color" in part) part.label_text_color = colours.text;
    else if ("color_mapper" in part) part.major_label_text_color = part.title_text_color = colours.muted;
  }
  for (const part of plot.center) if ("grid_line_color" in part && part.dimension === 1) part.grid_line_color = colours.grid;
}

// Converts x, a position in the ascending column ``from``, to the column ``to`` of the same rows by linear interpolation.
export function carryOver(x, from, to) {
  if (!from?.length) return x;
  let [low, high] = [0, from.length - 1];
  if (x <= from[low]) return to[low];
  if (x >= from[high]) return to[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (from[middle] <= x) low = middle;
    else high = middle;
  }
  const share = from[high] > from[low] ? (x - from[low]) / (from[high] - from[low]) : 0;
  return to[low] + share * (to[high] - to[low]);
}

export const finite = (value) => known(value) && Number.isFinite(value);
