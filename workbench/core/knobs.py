"""Knobs: numbers that a training script declares, so that they can be turned while it trains. One line adds one::

    temperature = knob("temperature", 1.0, low=0, high=10)    # then: logits / temperature

``knob`` is the method of the run's ``Knobs``; the script's own parts and the panel's controls share its objects.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from workbench.core import controls
from workbench.core.controls import Control
from workbench.errors import ConfigError


def _taken(operation: Callable[[Any, Any], Any]) -> Callable[[Knob, Any], Any]:
    """``knob (operation) other``, of the knob's present value."""

    def method(self: Knob, other: Any) -> Any:
        return operation(self.value, _value(other))

    return method


def _swapped(operation: Callable[[Any, Any], Any]) -> Callable[[Knob, Any], Any]:
    """``other (operation) knob``."""

    def method(self: Knob, other: Any) -> Any:
        return operation(_value(other), self.value)

    return method


def _value(other: Any) -> Any:
    return other.value if isinstance(other, Knob) else other


class Knob:
    """A number that can be turned while a run trains. Arithmetic and comparisons take its present value.

    ``value`` is that value, the same on every rank in every step.
    """

    def __init__(self, control: Control, value: float) -> None:
        self.control = control
        self.value = value

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        return f"<knob {self.control.name} = {self.value:g}>"

    __add__, __radd__ = _taken(operator.add), _swapped(operator.add)
    __sub__, __rsub__ = _taken(operator.sub), _swapped(operator.sub)
    __mul__, __rmul__ = _taken(operator.mul), _swapped(operator.mul)
    __truediv__, __rtruediv__ = _taken(operator.truediv), _swapped(operator.truediv)
    __pow__, __rpow__ = _taken(operator.pow), _swapped(operator.pow)
    __lt__, __le__ = _taken(operator.lt), _taken(operator.le)
    __gt__, __ge__ = _taken(operator.gt), _taken(operator.ge)


class Knobs:
    """The knobs of one run, by name, in the order in which they were declared."""

    def __init__(self) -> None:
        self._by_name: dict[str, Knob] = {}
        self._restored: dict[str, float] = {}

    def __iter__(self) -> Iterator[Knob]:
        return iter(list(self._by_name.values()))  # a script may declare one while another thread looks

    def get(self, name: str) -> Knob | None:
        """The knob of that name; None when there is none."""
        return self._by_name.get(name)

    def controls(self) -> list[Control]:
        """The declarations of all knobs."""
        return [knob.control for knob in self]

    def values(self) -> dict[str, float]:
        """Name and present value of all knobs."""
        return {knob.control.name: knob.value for knob in self}

    def restore(self, values: Mapping[str, float]) -> None:
        """Undo ``values``: set knobs to what they were; one that the script declares later begins with its value."""
        self._restored = dict(values)
        for knob in self:
            knob.value = self._restored.get(knob.control.name, knob.value)

    def knob(
        self,
        name: str,
        value: float,
        *,
        low: float | None = None,
        high: float | None = None,
        unit: str = "",
        help: str = "",
    ) -> Knob:
        """Declare a knob and return it. Called again with the same declaration, it returns the same knob.

        ``low`` and ``high`` bound what ``set name=value`` accepts. ``ConfigError`` for a name that is taken or is no
        identifier (or several with dots between them), and for a first value out of bounds.
        """
        is_taken = name in {control.name for control in controls.CONTROLS}
        if is_taken or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(
                f"knob {name!r}: use a Python identifier (or several with dots between) that is no control's name",
                field=name,
            )
        control = Control(
            name=name,
            kind="float",
            setting=True,
            applies="cell",
            low=low,
            high=high,
            unit=unit,
            help=help or f"{name}, declared by the training script",
        )
        found = self._by_name.get(name)
        if found is None or found.control != control:
            first = control.parse(value)
            found = self._by_name[name] = Knob(control, self._restored.get(name, first))
        return found
