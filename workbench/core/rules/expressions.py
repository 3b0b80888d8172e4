"""Conditions on a run's values, written as text: ``"loss > 10"``, ``"grad_norm > 5 * median(grad_norm, 50)"``.

Arithmetic, comparisons, ``and``, ``or``, ``not``, the functions of ``FUNCTIONS`` and, over the values of the steps
before the present one, those of ``WINDOWS``. Nothing else of Python is understood, so a text from anywhere is safe.
"""

from __future__ import annotations

import ast
import functools
import math
import statistics
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

from workbench.errors import ConfigError, suggest

#: steps that a window may reach back
MOST_STEPS = 10_000
#: a window says something once it has so many finite values, or all it asks for
LEAST = 10
#: the columns of ``Run.metrics`` that are numbers of each step
METRICS = (
    "step",
    "time",
    "loss",
    "lr",
    "grad_norm",
    "grad_norm_clipped",
    "framework_norm",
    "loss_scale",
    "tps",
    "step_time_ms",
    "data_wait_ms",
    "monitor_ms",
    "skipped",
)
#: those that a condition can name
NAMES = tuple(name for name in METRICS if name != "time")
#: also every metric of the last evaluation: validation_loss, validation_accuracy, ...
VALIDATION = "validation_"
#: ``logged("a name")`` is a value of that name that the training script logs
LOGGED = "logged"
FUNCTIONS: dict[str, Callable[..., float]] = {"abs": abs, "log": math.log, "sqrt": math.sqrt}
WINDOWS: dict[str, Callable[[Sequence[float]], float]] = {
    "median": statistics.median,
    "mean": statistics.fmean,
    "std": lambda values: statistics.stdev(values) if len(values) > 1 else math.nan,
    "min": min,
    "max": max,
}
_UNDERSTOOD = (
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd),
    *(ast.And, ast.Or, ast.Not, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq),
)
_LONGEST = 500


class Expression:
    """One condition. ``ConfigError``, which says what is understood, for a text that is none.

    Give ``holds`` the values of each step, in order.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._windows: dict[str, int] = {}
        self._names: set[str] = set()
        windows = {name: functools.partial(self._over_window, function) for name, function in WINDOWS.items()}
        self._functions: dict[str, object] = {**FUNCTIONS, **windows, LOGGED: None, "__builtins__": {}}
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise ConfigError(f"a condition is a string of at most {_LONGEST} characters, such as 'loss > 10'")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"the condition {text!r} cannot be read: {error}; write, say, 'loss > 10'") from None
        is_not = isinstance(tree.body, ast.UnaryOp) and isinstance(tree.body.op, ast.Not)
        if not is_not and not isinstance(tree.body, ast.Compare | ast.BoolOp):
            raise self._refusal("compares nothing")
        tree.body = self._checked(tree.body)
        self._code = compile(ast.fix_missing_locations(tree), "<condition>", "eval")
        self._before: dict[str, deque[float]] = {name: deque(maxlen=steps) for name, steps in self._windows.items()}

    @property
    def names(self) -> list[str]:
        """The values that it compares, those of the steps before included."""
        return sorted(self._names | self._windows.keys())

    @property
    def logged(self) -> list[str]:
        """Those of them that only a script can log."""
        return [name for name in self.names if name not in NAMES and not name.startswith(VALIDATION)]

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether the condition holds at this step. A comparison with what is not known is false, and so is a condition
        that cannot be computed."""
        known = {name: values.get(name, math.nan) for name in self._names}
        here = {LOGGED: known.__getitem__}
        try:
            found = bool(
                eval(self._code, self._functions | here, known)
            )  # of what ``_checked`` let through, nothing else
        except (ArithmeticError, ValueError, TypeError):  # TypeError: a root of a negative number is complex
            found = False
        for name, before in self._before.items():
            value = values.get(name, math.nan)
            if math.isfinite(value):
                before.append(value)
        return found

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(
            f"the condition {self.text!r} {why}: compare numbers, {', '.join(NAMES)}, {VALIDATION}NAME, names that the "
            f'training logs (or {LOGGED}("any name")), '
            f"{', '.join(FUNCTIONS)}, and over the steps before {', '.join(WINDOWS)}, "
            "as in grad_norm > 5 * median(grad_norm, 50)"
        )

    def _checked(self, node: ast.expr) -> ast.expr:
        """The node, if it is understood: with numbers as floats, and windows that are given the name of a value."""
        match node:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | float()):
                return ast.Constant(float(node.value))  # type: ignore[arg-type]
            case ast.Name() if node.id not in self._functions:
                self._names.add(node.id)
                return node
            case ast.Call(func=ast.Name(id="logged"), args=[ast.Constant(value=str() as name)], keywords=[]):
                self._names.add(name)
                return node
            case ast.Call(func=ast.Name(id=name), args=[part, ast.Constant(value=int() as steps)], keywords=[]) if (
                name in WINDOWS
            ):
                of = self._named(part)
                self._add_window(of, steps)
                return ast.Call(node.func, [ast.Constant(of), ast.Constant(steps)], [])
            case ast.Call(func=ast.Name(id=name), args=[part], keywords=[]) if name in FUNCTIONS:
                return ast.Call(node.func, [self._checked(part)], [])
            case ast.UnaryOp() | ast.BinOp() | ast.BoolOp() | ast.Compare():
                return self._checked_parts(node)
        raise self._refusal(f"has {ast.unparse(node)!r}, which is not understood")

    def _checked_parts(self, node: ast.expr) -> ast.expr:
        for name, part in ast.iter_fields(node):
            parts = part if isinstance(part, list) else [part]
            if any(not isinstance(each, _UNDERSTOOD) for each in parts if not isinstance(each, ast.expr)):
                raise self._refusal(f"has {ast.unparse(node)!r}, which is not understood")
            checked = [self._checked(each) if isinstance(each, ast.expr) else each for each in parts]
            setattr(node, name, checked if isinstance(part, list) else checked[0])
        return node

    def _add_window(self, name: str, steps: int) -> None:
        if not 1 <= steps <= MOST_STEPS or isinstance(steps, bool):
            raise self._refusal(f"looks back {steps} steps, not 1 to {MOST_STEPS}")
        self._windows[name] = max(steps, self._windows.get(name, 1))

    def _named(self, node: ast.expr) -> str:
        match node:
            case ast.Name(id=name) if name not in self._functions:
                return name
            case ast.Call(func=ast.Name(id="logged"), args=[ast.Constant(value=str() as name)], keywords=[]):
                return name
        raise self._refusal(f"looks back on {ast.unparse(node)!r}, which is no name")

    def check_known(self, logged: Collection[str]) -> None:
        """``ConfigError`` for a name that is no column and is not among those that are ``logged``."""
        unknown = [name for name in self.logged if name not in logged]
        if unknown:
            raise self._refusal(f"names {unknown[0]!r} ({suggest(unknown[0], [*NAMES, *logged])})")

    def _over_window(self, function: Callable[[Sequence[float]], float], name: str, steps: int) -> float:
        before = list(self._before[name])[-steps:]
        return function(before) if len(before) >= min(steps, LEAST) else math.nan
