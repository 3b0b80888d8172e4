"""``workbench.plans``: what each rank will hold and send under every plan that fits, before anything is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from workbench.cluster.hosts.machine import describe_host
from workbench.cluster.hosts.placement import Host, default_ranks
from workbench.cluster.session import Session
from workbench.core import algorithms, plan_grammar
from workbench.core.config import ParallelPlan, TrainSpec
from workbench.core.environments import is_here
from workbench.core.frameworks import DEFAULT_FRAMEWORK, PLUGIN_OPTIONS, SPLIT, framework, usable
from workbench.errors import ConfigError
from workbench.planner.candidates import candidates
from workbench.planner.forecast import Forecast, Refused, forecast, ordered, why_first
from workbench.planner.holdings import Job
from workbench.planner.machine import Machine
from workbench.planner.model import ModelDescription, Splits
from workbench.planner.sizes import bytes_of
from workbench.run.planning.attempt import LEAST_STEPS, Attempt, attempt
from workbench.run.planning.on_ranks import calibration, described, most_ranks, session_for
from workbench.run.planning.shown import Plans
from workbench.run.resolve import Request, resolve


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A plan that could be, resolved."""

    request: Request

    @property
    def spec(self) -> TrainSpec:
        return self.request.spec

    @property
    def plugin(self) -> str:
        return f"{self.spec.plan.framework} {self.spec.plan.plugin}"


def plans(
    options: Mapping[str, Any] | None = None,
    *,
    config: str | Path | None = None,
    cell: str | None = None,
    memory: str = "",
    calibrate: bool = True,
    tries: int = 0,
    **more: Any,
) -> Plans:
    """Predict what each rank holds and sends under every plan, best first: ``plans(recipe="stdlib-llama", ranks=4)``.

    ``options``, ``more``: names of ``TrainSpec.options()`` -> values; those of the plan that are given (framework,
    plugin, tp, pp, cp) are kept, the others are varied. ``config``, ``cell``: as for ``train``. ``memory``: what a rank
    has, as "80GiB" (default: its GPU's memory, or this host's divided by its ranks). ``calibrate``: measure this
    machine first; False: use the last measurement. ``tries``: run each plan that fits for this many steps.

    Nothing is trained unless ``tries`` is given; one rank builds the model and runs a forward pass on shapes. Ranks are
    started when none are up. Raises ``ConfigError`` and ``CellError`` as a training would, and ``ClusterError``.
    """
    asked = {**(options or {}), **more}
    given, files = plan_grammar.expanded(asked), plan_grammar.files(asked)
    name = given.get("framework") or DEFAULT_FRAMEWORK
    if framework(name).adopts:
        raise ConfigError(
            f"plans of {name} are not predicted: what is held and sent is known of models of PyTorch",
            field="--framework",
        )
    host = describe_host()
    session = Session.current()
    ranks = int(given.get("ranks") or (session.n if session is not None else default_ranks(host)))
    if tries and ranks > most_ranks(host):
        raise ConfigError(
            f"--try runs the plans, and this host has room for {most_ranks(host)} ranks, not {ranks}: leave out --try",
            field="--try",
        )
    limit = bytes_of(memory, "--memory") if memory else memory_per_rank(host, ranks)
    base = {name: value for name, value in given.items() if name not in plan_grammar.OPTIONS}
    alone = resolve({**base, "ranks": 1}, config=config, cell=cell, default_ranks=1)
    found, refused = _resolved(given, base, ranks, config, cell)
    session = session_for(ranks, name)
    model = described(alone, [each.spec for each in found], session)
    machine = calibration(session, alone.spec.precision, measure=calibrate)
    predicted, unpredicted = _predicted(model, found, machine, limit)
    return Plans(
        model=model,
        ranks=ranks,
        machine=machine,
        limit=limit,
        forecasts=tuple(predicted),
        refused=(*refused, *unpredicted),
        tried=_tried(predicted, found, tries),
        specs={each.spec.plan: each.spec for each in found},
        configs=(*(file.words() for file in files), *(_resolved_config(each.spec) for each in found if files)),
    )


def _resolved_config(spec: TrainSpec) -> str:
    """The configuration of a plan's framework, in a line."""
    used = framework(spec.plan.framework)
    if used.config_file is None:
        return f"{spec.plan.describe()} has no such configuration"
    return f"{spec.plan.describe()} gives {used.title} {json.dumps(used.config_file.resolved(spec))}"


def memory_per_rank(host: Host, ranks: int) -> float:
    """Bytes that each rank has: of the smallest GPU, or this host's memory divided by the ranks that it has place
    for."""
    if host.devices:
        return float(min(device.memory_bytes for device in host.devices)) or math.nan
    return psutil.virtual_memory().total / max(1, min(ranks, default_ranks(host)))


def _resolved(
    given: Mapping[str, Any], base: Mapping[str, Any], ranks: int, config: str | Path | None, cell: str | None
) -> tuple[list[_Candidate], list[Refused]]:
    """The candidates that their options allow, and why the others are refused."""
    found, refused = [], []
    fixed = {name: given[name] for name in PLUGIN_OPTIONS if name in given and name not in SPLIT}
    # one rank describes the model for all plans: what it cannot import is compared where it alone was asked for
    compared = [each for each in usable() if not each.adopts and (is_here(each) or given.get("framework") == each.name)]
    for options in candidates(compared, ranks, given):
        taken = framework(options["framework"]).plugin(options["plugin"]).options
        more = {name: value for name, value in fixed.items() if name in taken}
        if options.get("pp", 1) == 1:
            more.pop("micro_batches", None)
        try:
            request = resolve({**base, **options, **more}, config=config, cell=cell, default_ranks=ranks)
        except ConfigError as error:
            refused.append(Refused(name=_name(options), reason=str(error)))
        else:
            found.append(_Candidate(request=request))
    if not found and not refused:
        asked = ", ".join(f"{name} {given[name]}" for name in ("framework", "plugin", *SPLIT) if name in given)
        raise ConfigError(f"no plan uses {ranks} ranks with {asked}: leave some of these out", field="--plugin")
    return found, refused


def _name(options: Mapping[str, Any]) -> str:
    axes = [f"{axis}{options[axis]}" for axis in SPLIT if options.get(axis, 1) > 1]
    framework_ = [] if options["framework"] == DEFAULT_FRAMEWORK else [options["framework"]]
    return " ".join([*framework_, options["plugin"], *axes])


def _predicted(
    model: ModelDescription, found: list[_Candidate], machine: Machine | None, limit: float
) -> tuple[list[Forecast], list[Refused]]:
    forecasts, refused = [], []
    for number, each in enumerate(found):
        plan = each.spec.plan
        shares = framework(plan.framework).plugin(plan.plugin).shares
        splits = model.splits.get(each.plugin, Splits())
        if number in model.refused:
            refused.append(Refused(name=plan.describe(), reason=model.refused[number]))
        elif shares is None:
            text = f"not predicted: {each.plugin} does not declare what its ranks hold"
            refused.append(Refused(name=plan.describe(), reason=text))
        elif plan.algorithm and math.isnan(algorithms.chosen(plan.algorithm).message_bytes([])):
            text = f"not predicted: what {plan.algorithm} sends is not known"
            refused.append(Refused(name=plan.describe(), reason=text))
        elif plan.pp > 1 and plan.schedule != "1f1b":
            text = f"not predicted: the planner knows the stages of 1F1B only, not those of {plan.schedule}"
            refused.append(Refused(name=plan.describe(), reason=text))
        elif plan.sequence_parallel:
            text = "not predicted: the planner does not know what ranks send that share the positions of a sequence"
            refused.append(Refused(name=plan.describe(), reason=text))
        elif plan.replica_size > 1 and splits.unknown:
            refused.append(Refused(name=plan.describe(), reason=f"not predicted: {splits.unknown}"))
        else:
            job = Job(
                plan=plan,
                shares=shares,
                splits=splits,
                batch_size=model.batch_size,
                accumulate=each.spec.accumulate,
                precision=each.spec.precision,
            )
            forecasts.append(forecast(model, job, machine, limit))
    return ordered(forecasts), refused


def _tried(predicted: list[Forecast], found: list[_Candidate], steps: int) -> dict[Any, Attempt]:
    """What trying each plan that fits gave."""
    requests = {each.spec.plan: each.request for each in found}
    frameworks = list(dict.fromkeys(item.job.plan.framework for item in predicted))
    return {
        item.job.plan: attempt(requests[item.job.plan], max(steps, LEAST_STEPS))
        for name in frameworks
        for item in (predicted if steps else ())
        if item.fits and item.job.plan.framework == name
    }


def choose(
    options: Mapping[str, Any], *, config: str | Path | None = None, cell: str | None = None
) -> tuple[dict[str, Any], str]:
    """The options of the planner's first choice, and why it is that: what ``--plan auto`` takes.

    Raises as ``plans``, and ``ConfigError`` when no plan can be predicted, or none fits.
    """
    found = plans(options, config=config, cell=cell)
    if not found.forecasts:
        reasons = "; ".join(f"{each.name}: {each.reason}" for each in found.refused[:3])
        raise ConfigError(f"no plan can be chosen: {reasons}", field="--plan")
    first = found.forecasts[0]
    if not first.fits:
        raise ConfigError(f"{why_first(found.forecasts)} Use more ranks, or a smaller batch", field="--plan")
    return plan_options(first.job.plan), why_first(found.forecasts)


def plan_options(plan: ParallelPlan) -> dict[str, Any]:
    """The options that make a plan, those that it leaves at their defaults left out."""
    defaults = ParallelPlan()
    always = ("ranks", "framework", "plugin")
    return {
        name: getattr(plan, name)
        for name in plan_grammar.OPTIONS
        if name in always or getattr(plan, name) != getattr(defaults, name)
    }
