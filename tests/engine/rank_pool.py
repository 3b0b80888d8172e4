"""Ranks for tests, fast: a process that imported everything once forks as many as a test asks for.

``python -m tests.engine.rank_pool FRAMEWORK`` is that process; it takes one JSON request a line and answers with one. A
request names a function ``module:name``; each rank calls it as ``function(rank, ranks, directory, **arguments)`` and
what it returns (JSON) comes back, rank by rank.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
COMPILER = "torch._inductor.compile_fx"


class RankFailed(AssertionError):
    """A rank raised, died or did not come to an end."""


class RankPool:
    """The client: starts the process on entry, ends it on exit. ``framework``: whose ranks it keeps warm."""

    def __init__(self, framework: str = "colossal") -> None:
        self._framework = framework
        self._number = 0

    def __enter__(self) -> RankPool:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.engine.rank_pool", self._framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"},
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(
        self,
        ranks: int,
        function: str,
        *,
        timeout_s: float = 600.0,
        lost: tuple[int, ...] = (),
        compiles: bool = False,
        **arguments: Any,
    ):
        """Results of all ranks in order; None for those in ``lost``, which may die. ``RankFailed`` with a traceback.

        ``compiles``: the ranks call ``torch.compile``, whose compiler is then imported once, before they are forked.
        """
        modules = [function.partition(":")[0], *([COMPILER] if compiles else [])]
        request = {"ranks": ranks, "function": function, "arguments": arguments, "timeout": timeout_s, "lost": lost}
        request["imports"] = modules
        self.send(request)
        found = self._answer()
        if found["errors"]:
            raise RankFailed("\n".join(found["errors"]))
        return found["results"]

    def send(self, request: dict[str, Any]) -> None:
        """Ask the process for something, with a number that its answer repeats."""
        self._number += 1
        self._process.stdin.write(json.dumps({**request, "number": self._number}) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        """The answer to the last request; those to earlier ones, which a test did not wait for, are passed over."""
        while line := self._process.stdout.readline():
            found = json.loads(line)
            if found["number"] == self._number:
                return found
        raise RankFailed(f"the rank pool ended with {self._process.wait()}")


def _serve() -> None:
    from workbench.core.frameworks import framework

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    importlib.import_module("IPython.core.interactiveshell")  # as in the warm process, whose ranks run cells
    settle = pkgutil.resolve_name(framework(sys.argv[1]).preload)()
    for line in sys.stdin:
        request = json.loads(line)
        _import(request["imports"])
        with tempfile.TemporaryDirectory() as directory:
            found = {**_run(request, Path(directory), settle), "number": request["number"]}
            print(json.dumps(found), file=answers, flush=True)


def _import(modules: list[str]) -> None:
    """What the ranks of this and of later requests would each import for themselves; a failure is theirs to tell."""
    if sys.modules.keys() >= set(modules):
        return
    with contextlib.suppress(Exception):
        for module in modules:
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a rank's collector never walks, and so never copies, what was imported here


def _run(request: dict[str, Any], directory: Path, settle: Callable[[], None]) -> dict[str, Any]:
    pids = {_fork(request, rank, directory, settle): rank for rank in range(request["ranks"])}
    deadline = time.monotonic() + request["timeout"]
    errors: list[str] = []
    waiting = set(pids)
    while waiting:
        for pid in list(waiting):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                waiting.discard(pid)
                if status and pids[pid] not in request["lost"]:
                    file = directory / f"error-{pids[pid]}"
                    text = file.read_text() if file.exists() else f"ended with {os.waitstatus_to_exitcode(status)}"
                    errors.append(f"rank {pids[pid]}: {text}")
        late = time.monotonic() > deadline
        if late:
            stacks = [f"rank {pids[pid]}: {(directory / f'stack-{pids[pid]}').read_text()}" for pid in waiting]
            errors.append("\n".join([f"no end after {request['timeout']} s", *stacks]))
        if late or errors:
            for pid in waiting:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            break
        time.sleep(0.01)
    files = [directory / f"result-{rank}" for rank in range(request["ranks"])]
    return {"errors": errors, "results": [json.loads(file.read_text()) if file.exists() else None for file in files]}


def _fork(request: dict[str, Any], rank: int, directory: Path, settle: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    stack = (directory / f"stack-{rank}").open("w")
    faulthandler.dump_traceback_later(0.9 * request["timeout"], file=stack)  # where it hangs, if it does
    status = 1
    try:
        settle()
        module, _, name = request["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        result = function(rank, request["ranks"], directory, **request["arguments"])
        (directory / f"result-{rank}").write_text(json.dumps(result))
        status = 0
    except BaseException:  # the rank's last word, whatever it is
        (directory / f"error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve()
