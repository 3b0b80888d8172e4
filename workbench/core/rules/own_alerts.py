"""Alerts of the user's own, set up in a cell or while it trains: ``alert("diverges", when="loss > 10")``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from workbench.core.rules.expressions import VALIDATION, Expression
from workbench.errors import ConfigError

_NAME = re.compile(r"[\w .-]{1,64}")
LONGEST_TEXT = 500
#: alerts of one run: more of them are a loop that makes a new name each time
MOST = 100

Condition = Callable[[Mapping[str, float]], object]


def check_alert(name: Any, when: Any, text: Any = "", after: Any = 1) -> dict[str, Any]:
    """The declaration of an alert as JSON values. ``ConfigError`` for what cannot be one."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"alert {name!r}: a name may have letters, digits, spaces, '.', '_' and '-', 64 at most", field="alert"
        )
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        raise ConfigError(f"alert {name!r}: text must be a string of at most {LONGEST_TEXT} characters", field="alert")
    if not isinstance(after, int) or isinstance(after, bool) or not 1 <= after <= 100_000:
        raise ConfigError(
            f"alert {name!r}: after must be a whole number of steps, 1 or more, not {after!r}", field="alert"
        )
    if callable(when):
        return {"name": name, "when": "", "is_function": True, "text": text or "its function is true", "after": after}
    return {"name": name, "when": Expression(when).text, "text": text, "after": after}


class OwnAlerts:
    """The alerts that a cell sets up. ``conditions``: those whose condition is a function."""

    def __init__(self) -> None:
        self.conditions: dict[str, Condition] = {}
        self._declared: dict[str, dict[str, Any]] = {}
        self._news: list[dict[str, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._declared)

    def alert(self, name: str, when: str | Condition, *, text: str = "", after: int = 1) -> None:
        """Alert once whenever ``when`` begins to hold, at ``after`` steps in a row.

        ``when``: an expression such as ``"grad_norm > 5 * median(grad_norm, 50)"``, or a function of the step's values
        (a mapping: loss, grad_norm, lr, ...). ``text``: what it means and what to do. Called again with a name, it
        replaces that alert. Raises ``ConfigError`` for an expression that is not understood.
        """
        declared = check_alert(name, when, text, after)
        if callable(when):
            self.conditions[name] = when
        if self._declared.get(name) == declared:
            return
        if name not in self._declared and len(self._declared) >= MOST:
            raise ConfigError(f"alert {name!r}: a run has at most {MOST} alerts", field="alert")
        self._declared[name] = declared
        self._news.append(declared)

    def validations(self) -> list[tuple[str, str]]:
        """The values of the validation that conditions compare, each with the alert that asks for it."""
        conditions = {name: Expression(each["when"]) for name, each in self._declared.items() if each["when"]}
        return [
            (f"alert {name!r}", asked)
            for name, condition in conditions.items()
            for asked in condition.names
            if asked.startswith(VALIDATION)
        ]

    def check_known(self, logged: Collection[str]) -> None:
        """``ConfigError`` for a condition that names what is no column, and not among the names that are ``logged``."""
        for declared in self._declared.values():
            if declared["when"]:
                Expression(declared["when"]).check_known(logged)

    def news(self) -> list[dict[str, Any]]:
        """The declarations since the last call."""
        news, self._news = self._news, []
        return news
