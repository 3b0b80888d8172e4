// Formatting of numbers, and creation of elements. Text from a run is set as textContent only.

export const ENDED = ["finished", "stopped", "failed", "lost"]; // the final states of a run
export const NONE = "–";
export const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);
export const fixed = (value, digits) => (known(value) ? value.toFixed(digits) : NONE);
export const whole = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : NONE);
export const gib = (value) => (known(value) ? `${value.toFixed(2)} GiB` : NONE);
export const percent = (share) => (known(share) ? `${(100 * share).toFixed(1)} %` : NONE);

// Numbers and times as workbench/core/numbers.py writes them.
const shorter = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

export function number(value, digits = 4) {
  if (!known(value)) return NONE;
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "-∞";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e15) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    return `${shorter(mantissa)}e${Number(exponent)}`;
  }
  if (Number(size.toPrecision(digits)) >= 1000) return Math.round(value).toLocaleString("en-US");
  return shorter(value.toFixed(digits - 1 - Math.floor(Math.log10(size))));
}

export function milliseconds(value) {
  if (!known(value) || !Number.isFinite(value)) return number(value);
  if (Number(value.toPrecision(3)) < 1000) return `${number(value, 3)} ms`;
  const all = Math.round(value / 1e3);
  if (Number((value / 1e3).toPrecision(3)) < 60) return `${number(value / 1e3, 3)} s`;
  const [hours, minutes, rest] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${rest} s`;
}

export function duration(seconds) {
  if (!known(seconds)) return NONE;
  const all = Math.round(seconds);
  const [h, m, s] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

// Formats the value of a control or an event.
export function plain(value) {
  if (!known(value)) return NONE;
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : number(value, 6);
  return typeof value === "string" ? value : JSON.stringify(value);
}

export function make(tag, name, parent, attributes = {}) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent?.append(node);
  return node;
}

export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// "0" -> "rank 0", "0-3" -> "ranks 0-3"
export const ranksOf = (text) => `${/[-,]/.test(text) ? "ranks" : "rank"} ${text}`;

// Whether two lists of ranks ("0-3,7" and "2-5") overlap; an empty ``wanted`` stands for all ranks.
export function ranksMeet(wanted, own) {
  if (!wanted.trim()) return true;
  const parts = (text) =>
    text
      .split(",")
      .map((part) => part.split("-").map((end) => Number.parseInt(end, 10)))
      .filter(([first]) => Number.isFinite(first));
  const mine = parts(own);
  return parts(wanted).some(([a, b = a]) => mine.some(([c, d = c]) => a <= d && c <= b));
}
