"""Tells a command or a function of each alert, in a thread of its own: training never waits for it."""

from __future__ import annotations

import json
import pkgutil
import queue
import re
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from workbench.core import background
from workbench.errors import ConfigError

#: seconds that a command or function has for one alert
LIMIT_S = 10.0
#: alerts that wait; further ones are not told, and that is said
MOST_WAITING = 50
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

Target = Callable[[dict[str, Any]], object]


def target_of(notify: str) -> str | Target:
    """The function that ``module:function`` names, or the command line itself. ``ConfigError`` when there is no such
    function."""
    if not _FUNCTION.fullmatch(notify):
        return notify
    try:
        found: Target = pkgutil.resolve_name(notify)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"--notify {notify}: there is no such function ({error}); a command is told apart by a blank or a slash: "
            "./notify.sh",
            field="--notify",
        ) from error
    if not callable(found):
        raise ConfigError(f"--notify {notify}: that is not a function", field="--notify")
    return found


class Notifier:
    """Runs ``target`` once for each message, one after another. ``failed``: told once of what went wrong."""

    def __init__(self, target: str | Target, failed: Callable[[str], object]) -> None:
        self._target = target
        self._failed = failed
        self._told = False
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._thread = background.thread(self._work, name="notify", failed=lambda error: self._tell(str(error)))
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        """Take one message; never waits."""
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self._tell(f"{MOST_WAITING} alerts wait for it already, so further ones are not told")

    def close(self) -> None:
        """Let what waits be told, for ``LIMIT_S`` at most."""
        try:
            self._waiting.put(None, timeout=LIMIT_S)
        except queue.Full:
            return
        self._thread.join(LIMIT_S)

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._failed(why)

    def _work(self) -> None:
        while (message := self._waiting.get()) is not None:
            if isinstance(self._target, str):
                self._run(self._target, message)
            elif not self._call(self._target, message):
                return

    def _run(self, command: str, message: dict[str, Any]) -> None:
        try:
            done = subprocess.run(
                command, shell=True, input=json.dumps(message), text=True, capture_output=True, timeout=LIMIT_S,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            self._tell(f"it was ended after {LIMIT_S:g} s")
        except OSError as error:
            self._tell(str(error))
        else:
            if done.returncode:
                self._tell(f"it ended with {done.returncode}: {done.stderr.strip()[-300:] or 'it said nothing'}")

    def _call(self, function: Target, message: dict[str, Any]) -> bool:
        """Whether it has returned or raised; one that does neither cannot be ended, so it is called no more."""
        errors: list[BaseException] = []
        over = threading.Event()

        def call() -> None:
            try:
                function(message)
            finally:
                over.set()

        background.thread(call, name="notify-call", failed=errors.append).start()
        if not over.wait(LIMIT_S):
            self._tell(f"it has not returned after {LIMIT_S:g} s and is called no more")
            return False
        if errors:
            self._tell(background.described(errors[0]))
        return True
