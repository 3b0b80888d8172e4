"""What was predicted of a plan beside what trying it measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from workbench.core import numbers
from workbench.planner.forecast import Forecast
from workbench.planner.holdings import memory
from workbench.planner.model import ModelDescription
from workbench.planner.traffic import traffic
from workbench.run.planning.attempt import Attempt


@dataclass(frozen=True, kw_only=True)
class Error:
    """One value of a plan: in words, predicted and measured with units, and the error as a share of the measured."""

    plan: str
    what: str
    predicted: str
    measured: str
    share: str
    values: tuple[float, float] = (math.nan, math.nan)


def errors(model: ModelDescription, item: Forecast, tried: Attempt) -> list[Error]:
    """Parameters, optimizer state, growth of memory, sent bytes and step time. Each of the rank where it is most."""
    if tried.failed:
        return [Error(plan=item.name, what="failed", predicted="", measured=tried.failed, share="")]
    mesh = item.job.plan.mesh
    places = [mesh.coordinates(rank) for rank in range(mesh.world_size)]
    held = [memory(model, item.job, here) for here in places]
    grown = [each.total - each.parameters - model.buffer_bytes for each in held]
    sent = [sum(each.bytes for each in traffic(model, item.job, here)) for here in places]
    step = math.nan if item.time is None else item.time.total
    sent_measured = tried.sent_bytes if tried.by_kind or not max(sent) else ()  # functional collectives are not seen
    return [
        _sizes(item.name, "parameters", [each.parameters for each in held], tried.parameters),
        _sizes(item.name, "optimizer state", [each.state for each in held], tried.state),
        _sizes(item.name, "growth while training", grown, tried.grown),
        _sizes(item.name, "sent per step", sent, sent_measured),
        Error(
            plan=item.name,
            what="step",
            predicted=numbers.milliseconds(1e3 * step),
            measured=numbers.milliseconds(1e3 * tried.step_s),
            share=_share(step, tried.step_s),
            values=(step, tried.step_s),
        ),
    ]


def _sizes(plan: str, what: str, predicted: list[float], measured: tuple[float, ...]) -> Error:
    """Exact where every rank's value is; else the ranks with most are compared."""
    most, found = max(predicted), max(measured, default=math.nan)
    is_exact = list(measured) == [float(value) for value in predicted]
    return Error(
        plan=plan,
        what=what,
        predicted=numbers.decimal_bytes(most) if not math.isnan(most) else "\N{EN DASH}",
        measured=numbers.decimal_bytes(found) if not math.isnan(found) else "\N{EN DASH}",
        share="exact" if is_exact else _share(most, found),
        values=(most, found),
    )


def _share(predicted: float, measured: float) -> str:
    if math.isnan(predicted) or math.isnan(measured) or not measured:
        return "\N{EN DASH}"
    return f"{100 * (predicted / measured - 1):+.1f} %"
