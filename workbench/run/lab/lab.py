"""Trains a model once for each communication algorithm and each seed, on the same ranks, and compares."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.cluster.session import Session
from workbench.core import plan_grammar
from workbench.errors import ConfigError, RunError
from workbench.history.sources import from_run
from workbench.run.lab.options import DEFAULT, called, read
from workbench.run.lab.result import Lab, Result, Trial, common_loss
from workbench.run.launch import Progress, counting, follow, resolved, train
from workbench.run.planning.attempt import LEAST_STEPS, attempt
from workbench.run.resolve import Request
from workbench.run.run import Run

_PLUGIN = "ddp"


def lab(
    options: Mapping[str, Any] | None = None,
    *,
    algorithms: str = DEFAULT,
    seeds: int = 1,
    target: float | None = None,
    config: str | Path | None = None,
    cell: str | None = None,
    progress: Progress | None = None,
    **more: Any,
) -> Lab:
    """Train under each algorithm with each seed, one after the other, and compare the time and the bytes to a loss:
    ``workbench.lab(recipe="stdlib-llama", ranks=2, algorithms="ddp,bf16,powersgd:4")``.

    ``options``, ``more``: names of ``TrainSpec.options()`` -> values; ``config``, ``cell``: as for ``train``. The
    plugin is ``ddp``. ``algorithms``: as ``--algorithm`` takes them, separated by commas; ``ddp``: whole gradients.
    ``seeds``: that many, from ``options["seed"]`` on. ``target``: the loss whose time is compared; None: the lowest
    that all trials reach. The loss is smoothed (an exponential mean with weight 0.2).

    Evaluations and checkpoints are left out unless they are asked for, as they take time. A few steps are trained
    before, so that the first algorithm does not pay for what is paid once. Runs are kept. A trial that fails is named,
    and the others go on. ``progress`` is told how many steps of all trials are done. Raises ``ConfigError`` before
    anything is trained.
    """
    given = {"eval_every": 0, "final_checkpoint": False, **plan_grammar.expanded({**(options or {}), **more})}
    chosen = read(algorithms)
    if given.get("algorithm"):
        raise ConfigError("--algorithm names one: name all that are compared in --algorithms", field="--algorithm")
    if seeds < 1:
        raise ConfigError(f"--seeds must be a whole number of at least 1, not {seeds}", field="--seeds")
    first = resolved({"plugin": _PLUGIN, **given}, config=config, cell=cell)
    if first.spec.plan.plugin != _PLUGIN:
        raise ConfigError(
            f"--plugin {first.spec.plan.plugin} exchanges gradients in its own way, and algorithms need --plugin "
            f"{_PLUGIN}: leave --plugin out",
            field="--plugin",
        )
    if first.spec.plan.mesh.dp < 2:
        raise ConfigError("a lab needs at least two data-parallel ranks: pass -n 2", field="--nproc-per-node")
    wanted = [
        (algorithm, first.spec.seed + place, {**given, "plugin": _PLUGIN, "ranks": first.spec.plan.ranks})
        for place in range(seeds)
        for algorithm in chosen
    ]
    for algorithm, seed, base in wanted:  # all of them are refused before the first is trained
        resolved({**base, "algorithm": algorithm, "seed": seed}, config=config, cell=cell)
    _warm_up(first)
    trials, steps = [], first.spec.steps
    for turn, (algorithm, seed, base) in enumerate(wanted):
        name = _name(first.spec.name, algorithm, seed)
        what = f"{called(algorithm)}, seed {seed} ({turn + 1} of {len(wanted)})"
        tell = counting(progress, what, turn * steps, len(wanted) * steps)
        run = train({**base, "algorithm": algorithm, "seed": seed, "name": name}, config=config, cell=cell)
        trials.append(_trial(run, algorithm, seed, tell))
    results = [Result(algorithm=each, trials=tuple(t for t in trials if t.algorithm == each)) for each in chosen]
    return Lab(results=tuple(results), target=common_loss(trials) if target is None else target)


def _warm_up(request: Request) -> None:
    """A few steps, which are not kept. Raises what they raise: no trial would do better."""
    found = attempt(request, LEAST_STEPS)
    if found.failed:
        raise RunError(found.failed)


def _trial(run: Run, algorithm: str, seed: int, tell: Callable[[int], object]) -> Trial:
    """Wait for a run, and read it."""
    session = Session.current()
    assert session is not None  # it was started on its ranks
    follow(run, session, tell)
    found, failed = None, ""
    try:
        run.raise_if_failed()
        found = from_run(run.path, x="bytes")
    except RunError as error:
        failed = str(error)
    return Trial(algorithm=algorithm, seed=seed, name=run.name, run=found, failed=failed)


def _name(base: str, algorithm: str, seed: int) -> str:
    """``"stdlib-llama"``, ``"topk:0.01+ef"`` -> ``"stdlib-llama-topk-0.01-ef-1024"``."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", called(algorithm)).strip("-")
    return f"{base[:30]}-{words}-{seed}"[:64]
