"""Numbers and times in axes and tooltips, which the browser writes: the functions of ``workbench.core.numbers``."""

from __future__ import annotations

from typing import Any

#: JavaScript of ``core.numbers.number`` and ``milliseconds``, and of ``bytes``
FUNCTIONS = """
const short = (text) => (text.includes(".") ? text.replace(/\\.?0+$/, "") : text);
const number = (value, digits = 4) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "\\u2013";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "-∞";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e15) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    return short(mantissa) + "e" + Number(exponent);
  }
  if (Number(size.toPrecision(digits)) >= 1000) return Math.round(value).toLocaleString("en-US");
  return short(value.toFixed(digits - 1 - Math.floor(Math.log10(size))));
};
const seconds = (value) => {
  if (Number(value.toPrecision(3)) < 60) return number(value, 3) + " s";
  const all = Math.round(value);
  const [hours, minutes, rest] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${rest} s`;
};
const milliseconds = (value) => {
  if (!Number.isFinite(value)) return number(value);
  return Number(value.toPrecision(3)) < 1000 ? number(value, 3) + " ms" : seconds(value / 1e3);
};
const bytes = (value) => {
  let unit = 0;
  while (value >= 999.5 && unit < 5) [value, unit] = [value / 1000, unit + 1];
  return number(value, 3) + " " + ["B", "kB", "MB", "GB", "TB", "PB"][unit];
};
"""


#: as many digits as it takes to tell the ticks of an axis apart
_TICK = """
const read = (text) => Number(text.replaceAll(",", ""));
const span = Math.max(...ticks) - Math.min(...ticks) || Math.abs(tick) || 1;
let digits = 3;
while (digits < 12 && ticks.some((each) => Math.abs(read(number(each, digits)) - each) > 1e-3 * span)) digits += 1;
return number(tick, digits);
"""


def tick_formatter(function: str) -> Any:
    """Formatter of an axis: "number", "milliseconds" or "bytes"."""
    from bokeh.models import CustomJSTickFormatter

    code = _TICK if function == "number" else f"return {function}(tick);"
    return CustomJSTickFormatter(code=FUNCTIONS + code, tags=[function])


def hover(tips: list[tuple[str, str]], **options: Any) -> Any:
    """A hover tool whose tips may have fields in the format ``{number}``, ``{milliseconds}`` or ``{bytes}``, beside
    those of Bokeh; ``options``: of ``HoverTool``. In Bokeh a column has one format of these in all of a tool's tips."""
    import re

    from bokeh.models import CustomJSHover, HoverTool

    written: dict[str, Any] = {}
    for _, text in tips:
        for field, function in re.findall(r"@(\w+)\{(number|milliseconds|bytes)\}", text):
            written[f"@{field}"] = CustomJSHover(code=f"{FUNCTIONS}return {function}(value);")
    plain = [(name, re.sub(r"\{(number|milliseconds|bytes)\}", "{custom}", text)) for name, text in tips]
    return HoverTool(tooltips=plain, formatters=written, **options)
