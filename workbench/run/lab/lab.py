"""Trains a model once for each communication algorithm, or each framework, and each seed, and compares."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.cluster.session import Session
from workbench.core import plan_grammar
from workbench.core.environments import python_for
from workbench.core.frameworks import framework
from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.history.sources import from_run
from workbench.run.lab.options import called, read, read_frameworks
from workbench.run.lab.result import ALGORITHM, FRAMEWORK, Lab, Result, Trial, common_loss
from workbench.run.lab.step_cost import read_cost
from workbench.run.launch import Progress, counting, follow, resolved, train
from workbench.run.planning.attempt import LEAST_STEPS, attempt, measured
from workbench.run.resolve import Request
from workbench.run.run import Run

_PLUGIN = "ddp"


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A trial: what is compared, and how it is trained."""

    choice: str
    seed: int
    options: dict[str, Any]
    request: Request


def lab(
    options: Mapping[str, Any] | None = None,
    *,
    algorithms: str = "",
    frameworks: str = "",
    seeds: int = 1,
    target: float | None = None,
    config: str | Path | None = None,
    cell: str | None = None,
    progress: Progress | None = None,
    **more: Any,
) -> Lab:
    """Train under each algorithm with each seed, one after the other, and compare the time and the bytes to a loss:
    ``workbench.lab(recipe="stdlib-llama", ranks=2, algorithms="ddp,bf16,powersgd:4")``. Or under each framework, and
    compare steps a second, memory, bytes and losses: ``workbench.lab(recipe="stdlib-llama", plan="dp2",
    frameworks="colossal,torch,deepspeed")``.

    ``options``, ``more``: names of ``TrainSpec.options()`` -> values; ``config``, ``cell``: as for ``train``.
    ``algorithms``: as ``--algorithm`` takes them, separated by commas; ``ddp``: whole gradients; "": a few that are
    common. Their plugin is ``ddp``. ``frameworks``: two or more, separated by commas; each trains under the plan that
    the options give, with its own default where they leave the plugin open. ``seeds``: that many, from
    ``options["seed"]`` on. ``target``: the loss whose time is compared; None: the lowest that all trials reach. That
    loss is smoothed (an exponential mean with weight 0.2).

    Evaluations and checkpoints are left out unless they are asked for, as they take time. A few steps are trained
    before, so that nobody pays for what is paid once. Runs are kept. A trial that fails is named, and the others go on.
    ``progress`` is told how many steps of all trials are done. Raises ``ConfigError`` before anything is trained.
    """
    given = {"eval_every": 0, "final_checkpoint": False, **(options or {}), **more}
    if seeds < 1:
        raise ConfigError(f"--seeds must be a whole number of at least 1, not {seeds}", field="--seeds")
    choices = _of_frameworks(frameworks, algorithms, given) if frameworks else _of_algorithms(algorithms, given)
    wanted = []  # all of them are refused before the first is trained
    for choice, own in choices.items():
        first = resolved(own, config=config, cell=cell)
        if not frameworks:
            _check(first)
        for seed in range(first.spec.seed, first.spec.seed + seeds):
            one = {**own, "ranks": first.spec.plan.ranks, "seed": seed}
            request = resolved(one, config=config, cell=cell)
            wanted.append(_Wanted(choice=choice, seed=seed, options=one, request=request))
    if not frameworks:  # the ranks stay: a disturbance of the machine meets all algorithms
        wanted.sort(key=lambda each: each.seed)
    trials: list[Trial] = []
    for turn, each in enumerate(wanted):
        before = wanted[turn - 1].request.spec.plan.framework if turn else None
        if each.request.spec.plan.framework != before:
            failed = attempt(each.request, LEAST_STEPS).failed
            if failed and not frameworks:  # no trial would do better; of a framework, its own trials say so
                raise RunError(failed)
        steps, what = each.request.spec.steps, f"{called(each.choice)}, seed {each.seed} ({turn + 1} of {len(wanted)})"
        tell = counting(progress, what, turn * steps, len(wanted) * steps)
        name = _name(each.request.spec.name, each.choice, each.seed)
        try:
            run = train({**each.options, "name": name}, config=config, cell=cell)
        except WorkbenchError as error:  # its ranks cannot be started
            trials.append(Trial(choice=each.choice, seed=each.seed, run=None, failed=str(error)))
        else:
            trials.append(_trial(run, each, tell))
    results = [Result(choice=each, trials=tuple(t for t in trials if t.choice == each)) for each in choices]
    return Lab(
        results=tuple(results),
        target=common_loss(trials) if target is None else target,
        compares=FRAMEWORK if frameworks else ALGORITHM,
        network=wanted[0].request.spec.network,
    )


def _of_algorithms(algorithms: str, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The algorithms that are compared, with the options of each."""
    found = {"plugin": _PLUGIN, **plan_grammar.expanded(given)}
    if found.get("algorithm"):
        raise ConfigError("--algorithm names one: name all that are compared in --algorithms", field="--algorithm")
    return {algorithm: {**found, "algorithm": algorithm} for algorithm in read(algorithms)}


def _of_frameworks(frameworks: str, algorithms: str, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The frameworks that are compared, with the options of each."""
    if algorithms:
        raise ConfigError(
            "--algorithms and --frameworks: a lab compares the ones or the others: leave one out", field="--frameworks"
        )
    if given.get("framework"):
        raise ConfigError("--framework names one: name all that are compared in --frameworks", field="--framework")
    found = {}
    for name in read_frameworks(frameworks):
        python_for(framework(name))  # it is installed
        found[name] = plan_grammar.expanded({**given, "framework": name}) | {"framework": name}
    return found


def _check(request: Request) -> None:
    """Raises ``ConfigError`` for a plan under which algorithms cannot be compared."""
    plan = request.spec.plan
    if plan.plugin != _PLUGIN:
        raise ConfigError(
            f"--plugin {plan.plugin} exchanges gradients in its own way, and algorithms need --plugin {_PLUGIN}: leave "
            "--plugin out",
            field="--plugin",
        )
    if plan.mesh.dp < 2:
        raise ConfigError("a lab needs at least two data-parallel ranks: pass -n 2", field="--nproc-per-node")


def _trial(run: Run, wanted: _Wanted, tell: Callable[[int], object]) -> Trial:
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
    grown = max(measured(run).grown) if found is not None else float("nan")
    cost = read_cost(run) if found is not None else None
    return Trial(
        choice=wanted.choice, seed=wanted.seed, name=run.name, run=found, failed=failed, grown=grown, cost=cost
    )


def _name(base: str, choice: str, seed: int) -> str:
    """``"stdlib-llama"``, ``"topk:0.01+ef"`` -> ``"stdlib-llama-topk-0.01-ef-1024"``."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", called(choice)).strip("-")
    return f"{base[:30]}-{words}-{seed}"[:64]
