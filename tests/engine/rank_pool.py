"""Ranks for tests, fast: a process that imported everything once forks as many as a test asks for.

``python -m tests.engine.rank_pool FRAMEWORK`` is that process; it takes one JSON request a line and answers with one. A
request names a function ``module:name``; each rank calls it as ``function(rank, ranks, directory, **arguments)`` and
what it returns (JSON) comes back, rank by rank. Ranks that are kept make the calls of several requests: what a process
does only once, and the copies of the memory that it shares with this one, are then paid once.
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
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from workbench.core.environments import is_here
from workbench.core.frameworks import framework

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
#: what ``torch.compile`` imports when it is first called
COMPILER = "torch._inductor.compile_fx"
#: sets of ranks that wait for more calls, and calls that one of them makes: what they leave is bounded
MOST_KEPT = 2
MOST_CALLS = 50
#: seconds by which a rank may write its stack late
MOST_LATE_S = 60.0


class RankFailed(AssertionError):
    """A rank raised, died or did not come to an end."""


class RankPool:
    """The client: starts the process on entry, ends it on exit. ``framework``: whose ranks it keeps warm; ``python``:
    what they run on."""

    def __init__(self, framework: str = "colossal", python: str = sys.executable) -> None:
        self._framework = framework
        self._python = python
        self._number = 0

    def __enter__(self) -> RankPool:
        self._process = subprocess.Popen(
            [self._python, "-W", "ignore", "-m", "tests.engine.rank_pool", self._framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
                "TRANSFORMERS_VERBOSITY": "error",
            },
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
        kept_for: str = "",
        imports: Collection[str] = (),
        **arguments: Any,
    ) -> list[Any]:
        """Results of all ranks in order; None for those in ``lost``, which may die. ``RankFailed`` with a traceback.

        ``kept_for``: calls with the same text are made in the same processes, until one fails; "": in new ones, which
        then end. ``imports``: modules that the ranks need, imported once before they are forked.
        """
        modules = sorted({*imports, function.partition(":")[0]})
        request = {"ranks": ranks, "function": function, "arguments": arguments, "timeout": timeout_s, "lost": lost}
        self.send({**request, "kept_for": kept_for, "imports": modules})
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


class RankPools(RankPool):
    """The pool of the project's own environment, and one for each other environment that a test's plan needs: they
    start when they are first asked."""

    def __enter__(self) -> RankPools:
        self._others: dict[str, RankPool] = {}
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        for other in self._others.values():
            other.__exit__(*exc)
        super().__exit__(*exc)

    def run(self, ranks: int, function: str, *, on_ranks_of: str = "", **arguments: Any) -> list[Any]:
        """As ``RankPool.run``. ``on_ranks_of``: their framework, where no plan in ``arguments`` has it."""
        names = [*_frameworks_in(arguments), *filter(None, [on_ranks_of])]
        if any(framework(name).joins_once for name in names) and arguments.get("kept_for"):
            arguments["kept_for"] += f" {ranks}"  # ranks that met are no ranks of another number
        name = next((name for name in names if not is_here(framework(name))), "")
        if not name:
            return super().run(ranks, function, **arguments)
        if name not in self._others:
            from tests.environments import interpreter  # which needs pytest: ranks of other environments have none

            self._others[name] = RankPool(name, interpreter(name)).__enter__()
        return self._others[name].run(ranks, function, **arguments)


def _frameworks_in(arguments: Any) -> Iterator[str]:
    """Names of the frameworks in the options of plans."""
    if isinstance(arguments, dict):
        if isinstance(arguments.get("framework"), str):
            yield arguments["framework"]
        arguments = list(arguments.values())
    for each in arguments if isinstance(arguments, list | tuple) else ():
        yield from _frameworks_in(each)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    importlib.import_module("IPython.core.interactiveshell")  # as in the warm process, whose ranks run cells
    settle = pkgutil.resolve_name(framework(sys.argv[1]).preload)()
    kept: dict[str, _Ranks] = {}
    for line in sys.stdin:
        request = json.loads(line)
        ranks = kept.pop(request["kept_for"], None) or _Ranks(settle)
        with tempfile.TemporaryDirectory() as directory:
            found = ranks.call(request, Path(directory))
        if request["kept_for"] and not found["errors"] and not request["lost"] and ranks.calls < MOST_CALLS:
            kept[request["kept_for"]] = ranks
        else:
            ranks.end()
        while len(kept) > MOST_KEPT:
            kept.pop(next(iter(kept))).end()
        print(json.dumps({**found, "number": request["number"]}), file=answers, flush=True)
    for ranks in kept.values():
        ranks.end()


def _import(modules: list[str]) -> None:
    """What the ranks of this and of later requests would each import for themselves; a failure is theirs to tell."""
    if sys.modules.keys() >= set(modules):
        return
    with contextlib.suppress(Exception):
        for module in modules:
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a rank's collector never walks, and so never copies, what was imported here


class _Ranks:
    """Processes, by rank, each of which makes the calls that it reads from its pipe."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self.calls = 0
        self._pids: list[int] = []
        self._pipes: list[TextIO] = []

    def call(self, request: dict[str, Any], directory: Path) -> dict[str, Any]:
        """``results`` of the first ranks, or ``errors``. Ranks that are not there yet are forked."""
        self.calls += 1
        ranks = range(request["ranks"])
        if len(self._pids) < len(ranks):
            _import(request["imports"])
        while len(self._pids) < len(ranks):
            self._fork(len(self._pids))
        for rank in ranks:
            with contextlib.suppress(BrokenPipeError):  # it died since its last call, as is told below
                self._pipes[rank].write(json.dumps({**request, "directory": str(directory)}) + "\n")
                self._pipes[rank].flush()
        errors = self._wait(request, directory)
        files = [directory / f"result-{rank}" for rank in ranks]
        return {
            "errors": errors,
            "results": [json.loads(file.read_text()) if file.exists() else None for file in files],
        }

    def end(self) -> None:
        for pid, pipe in zip(self._pids, self._pipes, strict=True):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _wait(self, request: dict[str, Any], directory: Path) -> list[str]:
        """Wait until every rank has made the call or is dead; what failed."""
        deadline = time.monotonic() + request["timeout"]
        errors: list[str] = []
        stacks: dict[int, str] = {}
        waiting = set(range(request["ranks"]))
        while waiting and not errors:
            for rank in list(waiting):
                if (directory / f"result-{rank}").exists():
                    waiting.discard(rank)
                    continue
                done, status = os.waitpid(self._pids[rank], os.WNOHANG)
                if done:
                    waiting.discard(rank)
                    self._pids[rank] = 0
                    if rank not in request["lost"]:
                        file = directory / f"error-{rank}"
                        text = file.read_text() if file.exists() else f"ended with {os.waitstatus_to_exitcode(status)}"
                        errors.append(f"rank {rank}: {text}")
            if waiting and time.monotonic() > deadline:
                before, stacks = stacks, {rank: _text_of(directory / f"stack-{rank}") for rank in waiting}
                written = all(stacks.values()) and stacks == before  # a rank that began late writes its stack late
                if written or time.monotonic() > deadline + MOST_LATE_S:
                    told = [f"rank {rank}: {stack}" for rank, stack in stacks.items()]
                    errors.append("\n".join([f"no end after {request['timeout']} s", *told]))
            time.sleep(0.01)
        return errors

    def _fork(self, rank: int) -> None:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _make_calls(rank, os.fdopen(read), self._settle)
        os.close(read)
        self._pids.append(pid)
        self._pipes.append(os.fdopen(write, "w"))


def _text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _make_calls(rank: int, requests: TextIO, settle: Callable[[], None]) -> NoReturn:
    """What a rank does until it is ended."""
    directory = None
    try:
        for line in requests:
            request = json.loads(line)
            if directory is None:
                settle()
            directory = Path(request["directory"])
            with (directory / f"stack-{rank}").open("w") as stack:
                faulthandler.dump_traceback_later(0.9 * request["timeout"], file=stack)  # where it hangs, if it does
                module, _, name = request["function"].partition(":")
                function = getattr(importlib.import_module(module), name)
                result = json.dumps(function(rank, request["ranks"], directory, **request["arguments"]))
                faulthandler.cancel_dump_traceback_later()
            (directory / f"new-{rank}").write_text(result)
            (directory / f"new-{rank}").rename(directory / f"result-{rank}")
    except BaseException:  # the rank's last word, whatever it is
        (directory / f"error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(1)


if __name__ == "__main__":
    _serve()
