"""Scales, ticks and colours of still figures: from data to places on paper. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Numbers = np.ndarray
NO_COLOUR = "none"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis: data from ``low`` to ``high`` onto paper from ``start`` to ``end``; ``factors`` make it categorical."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    factors: tuple[str, ...] = ()

    def __call__(self, values: Any) -> Numbers:
        """Places on paper; NaN where a value has none."""
        numbers = self.numbers(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.log:
                numbers = np.where(numbers > 0, np.log10(numbers), np.nan)
                share = (numbers - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
            else:
                share = (numbers - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def numbers(self, values: Any) -> Numbers:
        """Values as floats; a factor is its place in the middle of its band, as in Bokeh (0.5, 1.5, ...)."""
        return as_numbers(values, self.factors)

    def ticks(self, wanted: int) -> list[tuple[float, str]]:
        """(value, label) of round places within the range."""
        if self.factors:
            stride = max(1, math.ceil(len(self.factors) / wanted))
            return [(place + 0.5, name) for place, name in list(enumerate(self.factors))[::stride]]
        low, high = min(self.low, self.high), max(self.low, self.high)
        if self.log:
            first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
            powers = range(first, last + 1, max(1, math.ceil((last - first + 1) / wanted)))
            if len(powers) >= 2:
                return [(10.0**power, f"{10.0**power:g}") for power in powers]
        return [(value, plain(value)) for value in round_numbers(low, high, wanted)]


def as_numbers(values: Any, factors: Sequence[str] = ()) -> Numbers:
    """A column as floats; text is looked up among ``factors``; what is neither is NaN."""
    array = np.asarray(values)
    if array.dtype.kind in "fiub":
        return array.astype(float)
    if array.dtype.kind == "M":
        return array.astype("datetime64[ms]").astype(float)
    places = {name: place + 0.5 for place, name in enumerate(factors)}
    return np.array([_number(value, places) for value in np.ravel(array)], dtype=float)


def _number(value: Any, places: dict[str, float]) -> float:
    if isinstance(value, str):
        return places.get(value, math.nan)
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def round_numbers(low: float, high: float, wanted: int) -> list[float]:
    """About ``wanted`` multiples of 1, 2 or 5 times a power of ten between ``low`` and ``high``."""
    width = high - low
    if not (width > 0 and math.isfinite(width)):
        return [low] if math.isfinite(low) else []
    raw = width / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = min(4 * wanted + 2, math.floor(high / step + 1e-9) - first + 1)
    return [round(step * (first + index), 12) + 0.0 for index in range(max(0, count))]


def plain(value: float) -> str:
    """``12000`` -> ``12k``, ``0.000012`` -> ``1.2e-5``: short enough for an axis."""
    size = abs(value)
    for least, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= least:
            return f"{value / (1e3 if unit == 'k' else least):g}{unit}"
    if 0 < size < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-")
    return f"{value:g}"


def elapsed(seconds: float) -> str:
    """``3725`` -> ``1:02:05``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def field_of(spec: Any, data: dict[str, Any]) -> str | None:
    """The column that a property of a glyph names; None where it holds a value."""
    field = getattr(spec, "field", None)
    return field if field is not None else spec if isinstance(spec, str) and spec in data else None


def colours_of(spec: Any, data: dict[str, Any], rows: int, default: str = NO_COLOUR) -> list[str]:
    """A colour per row from a Bokeh colour property: a colour, a value, a column, or a column through a mapper."""
    field = field_of(spec, data)
    if field is None and (spec is None or isinstance(spec, (str, tuple))):
        return [NO_COLOUR if spec is None else spec if isinstance(spec, str) else _rgb(spec)] * rows
    if field is None:
        return colours_of(getattr(spec, "value", None), data, rows, default)
    column = data.get(field)
    if column is None:
        return [default] * rows
    mapper = getattr(spec, "transform", None)
    if hasattr(mapper, "palette"):
        return mapped(mapper, column)
    return [value if isinstance(value, str) and value else default for value in column]


def mapped(mapper: Any, column: Any) -> list[str]:
    """Colours by a linear, a logarithmic or a categorical mapper of Bokeh."""
    palette = [str(colour)[:7] for colour in mapper.palette]
    missing = NO_COLOUR if mapper.nan_color in (None, "transparent") else str(mapper.nan_color)
    factors = getattr(mapper, "factors", None)
    if factors is not None:
        of = {factor: palette[place % len(palette)] for place, factor in enumerate(factors)}
        return [of.get(value, missing) for value in column]
    index = mapped_index(mapper, column)
    return [missing if place < 0 else palette[place] for place in index]


def mapped_index(mapper: Any, column: Any) -> Numbers:
    """Place in the palette per value, -1 where there is none (NaN, or not positive on a log scale)."""
    values = as_numbers(column)
    size = len(mapper.palette)
    with np.errstate(invalid="ignore", divide="ignore"):
        if type(mapper).__name__.startswith("Log"):
            values = np.where(values > 0, np.log10(values), np.nan)
            bounds = [math.log10(b) if b and b > 0 else None for b in (mapper.low, mapper.high)]
        else:
            bounds = [mapper.low, mapper.high]
        finite = values[np.isfinite(values)]
        if not finite.size:
            return np.full(values.size, -1)
        low = float(finite.min()) if bounds[0] is None else float(bounds[0])
        high = float(finite.max()) if bounds[1] is None else float(bounds[1])
        share = (values - low) / (high - low if high > low else 1.0)
        place = np.clip(np.nan_to_num(share * size, nan=-1.0, posinf=size, neginf=0), -1, size - 1).astype(int)
    return np.where(np.isfinite(values), np.maximum(place, 0), -1)


def rgb(colour: str) -> tuple[int, int, int]:
    """``#0077bb`` -> (0, 119, 187); named colours by way of Bokeh; grey for what is no colour."""
    if colour.startswith("#") and len(colour) >= 7:
        return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
    from bokeh.colors import named

    known = getattr(named, colour, None)
    return (known.r, known.g, known.b) if known is not None else (128, 128, 128)


def _rgb(parts: tuple[Any, ...]) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in parts[:3])
