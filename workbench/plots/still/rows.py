"""The rows that a Bokeh glyph draws, as numbers and colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize, to_rgba

#: stands for what is no colour: a wrong name in somebody's own figure
_UNKNOWN_COLOUR = (0.5, 0.5, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class GlyphRows:
    """A glyph with the columns of its source. ``x_factors`` and ``y_factors``: names along a categorical axis."""

    glyph: Any
    columns: dict[str, Any]
    x_factors: tuple[str, ...] = ()
    y_factors: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The glyph's class: ``Line``, ``HBar`` and so on."""
        return type(self.glyph).__name__

    @property
    def size(self) -> int:
        """How many rows the source has."""
        return max((len(values) for values in self.columns.values()), default=0)

    def field(self, name: str) -> str | None:
        """The column that a property of the glyph names; None when the property holds a value."""
        spec = optional(self.glyph, name)
        field = getattr(spec, "field", None)
        return field if field is not None else spec if isinstance(spec, str) and spec in self.columns else None

    def constant(self, name: str, default: Any) -> Any:
        """The value of a property that is the same in every row; ``default`` when it is a column or unset."""
        spec = optional(self.glyph, name)
        value = getattr(spec, "value", spec)
        return default if value is None or hasattr(value, "field") or self.field(name) is not None else value

    def texts(self, name: str) -> list[str]:
        """A property of the glyph as text per row."""
        field = self.field(name)
        values = self.columns.get(field, ()) if field is not None else [self.constant(name, "")] * self.size
        return [str(value) for value in values]

    def x(self, name: str = "x") -> np.ndarray | None:
        """A property of the glyph as a number per row along x, None when it is unset or its column is missing."""
        return self._numbers(name, self.x_factors)

    def y(self, name: str = "y") -> np.ndarray | None:
        """A property of the glyph as a number per row along y, None when it is unset or its column is missing."""
        return self._numbers(name, self.y_factors)

    def lists(self, name: str, factors: tuple[str, ...] = ()) -> list[np.ndarray]:
        """A column that holds a list of numbers in each row (``xs``, ``image``)."""
        return [as_numbers(values, factors) for values in self.columns.get(self.field(name) or "", ())]

    def colours(self, name: str) -> np.ndarray:
        """RGBA per row (rows, 4) of ``fill``, ``line`` or ``text``, its alpha applied; transparent when unset."""
        spec = optional(self.glyph, f"{name}_color")
        field, size = self.field(f"{name}_color"), max(1, self.size)
        mapper = getattr(spec, "transform", None)
        if field is None:
            found = np.tile(rgba(getattr(spec, "value", spec)), (size, 1))
        elif hasattr(mapper, "palette"):
            found = mapped(mapper, self.columns.get(field, ()))
        else:
            found = np.array([rgba(colour) for colour in self.columns.get(field, ())], dtype=float).reshape(-1, 4)
        alpha = self._numbers(f"{name}_alpha", ())
        if alpha is not None and alpha.size == len(found):
            found = found.copy()
            found[:, 3] *= np.clip(np.nan_to_num(alpha), 0, 1)
        return found

    def _numbers(self, name: str, factors: tuple[str, ...]) -> np.ndarray | None:
        field = self.field(name)
        if field is not None:
            return as_numbers(self.columns[field], factors) if field in self.columns else None
        value = self.constant(name, None)
        if isinstance(value, str):
            value = as_numbers([value], factors)[0]
        return np.full(self.size, float(value)) if isinstance(value, (int, float)) else None


def optional(model: Any, name: str) -> Any:
    """A property of a Bokeh model, None where models of its kind have no such property (asking in vain is slow)."""
    return getattr(model, name) if name in model.properties() else None


def as_numbers(values: Any, factors: Sequence[str] = ()) -> np.ndarray:
    """A column as floats. A factor becomes the middle of its band, as in Bokeh (0.5, 1.5, ...); dates become
    milliseconds since 1970; what is no number becomes NaN."""
    array = np.asarray(values)
    if array.dtype.kind in "fiub":
        return array.astype(float)
    if array.dtype.kind == "M":
        return array.astype("datetime64[ms]").astype(float)
    bands = {name: place + 0.5 for place, name in enumerate(factors)}
    return np.array([_number(value, bands) for value in np.ravel(array)], dtype=float)


def _number(value: Any, bands: dict[str, float]) -> float:
    if isinstance(value, str):
        return bands.get(value, float("nan"))
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def rgba(colour: Any) -> tuple[float, float, float, float]:
    """A colour of Bokeh as red, green, blue and alpha between 0 and 1; None is transparent."""
    return _rgba(tuple(colour) if isinstance(colour, list) else colour)


@lru_cache(maxsize=1024)
def _rgba(colour: Any) -> tuple[float, float, float, float]:
    if colour is None or colour == "transparent":
        return (0.0, 0.0, 0.0, 0.0)
    if isinstance(colour, tuple):  # Bokeh counts red, green and blue from 0 to 255
        red, green, blue = (float(part) / 255 for part in colour[:3])
        return (red, green, blue, float(colour[3]) if len(colour) > 3 else 1.0)
    try:
        return to_rgba(colour)
    except ValueError:
        return _UNKNOWN_COLOUR


def mapped(mapper: Any, values: Any) -> np.ndarray:
    """RGBA per value (values, 4) by a linear, a logarithmic or a categorical colour mapper of Bokeh."""
    factors = optional(mapper, "factors")
    if factors is not None:
        palette = [rgba(colour) for colour in mapper.palette]
        by_factor = {factor: palette[place % len(palette)] for place, factor in enumerate(factors)}
        missing = rgba(mapper.nan_color)
        return np.array([by_factor.get(value, missing) for value in values], dtype=float).reshape(-1, 4)
    numbers = as_numbers(values)
    return colour_map(mapper)(norm(mapper, numbers)(np.ma.masked_invalid(numbers)))


def colour_map(mapper: Any) -> Colormap:
    """The palette of a colour mapper, with the colour of values that have no place in it."""
    return _colour_map(tuple(mapper.palette), mapper.nan_color)


@lru_cache(maxsize=32)
def _colour_map(palette: tuple[Any, ...], missing: Any) -> Colormap:
    return ListedColormap([rgba(colour) for colour in palette]).with_extremes(bad=rgba(missing))


def norm(mapper: Any, values: np.ndarray) -> Normalize:
    """The scale of a colour mapper; a bound that it does not give is that of ``values``."""
    log = type(mapper).__name__.startswith("Log")
    known = values[np.isfinite(values) & (values > 0 if log else True)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.1, 1.0) if log else (0.0, 1.0)
    low = low if mapper.low is None else float(mapper.low)
    high = high if mapper.high is None else float(mapper.high)
    if log:
        return LogNorm(max(low, 1e-300), max(high, low, 1e-300), clip=True)
    return Normalize(low, high, clip=True)
