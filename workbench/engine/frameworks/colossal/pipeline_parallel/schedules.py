"""The schedules of Colossal-AI's pipelines, and which plans and models they can run. Imports no tensor library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.core.frameworks import PlanOptions
from workbench.errors import ConfigError, suggest


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One order of the micro-batches of a step. ``chunks``: parts of the model that each pipeline rank holds."""

    title: str
    chunks: int = 1


#: value of ``--schedule`` -> what it is
SCHEDULES = {"1f1b": Schedule(title="1F1B"), "interleaved": Schedule(title="interleaved 1F1B", chunks=2)}
#: schedules that other frameworks have -> why there is none here, and what to use
_REFUSED = {
    "gpipe": "Colossal-AI has no such schedule: use --schedule 1f1b",
    "zero-bubble": (
        "Colossal-AI's adds only the first micro-batch's gradient to a linear layer's weight, so the loss was off by "
        "0.38 after 20 steps: use --schedule interleaved"
    ),
}
#: packages in ``transformers.models`` whose policies tell the schedule which layers each part has
INTERLEAVED_FAMILIES = ("llama", "mistral", "qwen2", "mixtral", "gpt2", "bert")
#: classes of these families that were not trained rightly
_NOT_INTERLEAVED = ("GPT2DoubleHeadsModel",)


def check_schedule(plan: PlanOptions) -> None:
    """Refuse, with ``ConfigError``, a schedule that there is none of, and a number of micro-batches that it cannot
    run."""
    name = plan.schedule
    if name in _REFUSED:
        raise ConfigError(f"--schedule {name}: {_REFUSED[name]}, or --framework torch", field="--schedule")
    if name not in SCHEDULES:
        raise ConfigError(f"unknown schedule {name!r}: {suggest(name, list(SCHEDULES))}", field="--schedule")
    if plan.pp == 1 and plan.micro_batches != 1:
        raise ConfigError(
            f"--micro-batches {plan.micro_batches} splits a batch over pipeline stages: pass --pp 2 or more, "
            "or use --accumulate without a pipeline",
            field="--micro-batches",
        )
    if plan.pp == 1 and name != "1f1b":
        raise ConfigError(
            f"--schedule {name} orders the micro-batches of a pipeline: pass --pp 2 or more, or leave it out",
            field="--schedule",
        )
    title = SCHEDULES[name].title
    if plan.micro_batches < plan.pp:
        raise ConfigError(
            f"{title} over {plan.pp} pipeline stages needs at least as many micro-batches, not {plan.micro_batches}: "
            f"pass --micro-batches {plan.pp}",
            field="--micro-batches",
        )
    if SCHEDULES[name].chunks > 1 and plan.micro_batches % plan.pp:
        fitting = plan.micro_batches // plan.pp * plan.pp
        raise ConfigError(
            f"{title} sends one micro-batch for each of the {plan.pp} stages at a time: {plan.micro_batches} cannot be "
            f"divided. Pass --micro-batches {fitting} or {fitting + plan.pp}, or --schedule 1f1b",
            field="--micro-batches",
        )


def check_chunks(model: Any, package: str, title: str, plan: PlanOptions) -> None:
    """Refuse, with ``ConfigError``, a model that cannot be cut into the parts that the schedule of ``plan`` needs.

    ``package``, ``title``: of the family that the model belongs to.
    """
    chunks = SCHEDULES[plan.schedule].chunks
    if plan.pp == 1 or chunks == 1:
        return
    name = type(model).__name__
    if package not in INTERLEAVED_FAMILIES or name in _NOT_INTERLEAVED:
        raise ConfigError(
            f"--schedule {plan.schedule} cannot train a {name}: Colossal-AI does not say which layers of "
            f"{'it' if package in INTERLEAVED_FAMILIES else title} each part has. It can train models of the families "
            f"{', '.join(INTERLEAVED_FAMILIES)}: use --schedule 1f1b",
            field="--schedule",
        )
    layers = model.config.num_hidden_layers
    if layers < chunks * plan.pp:
        raise ConfigError(
            f"--schedule {plan.schedule} cuts the model into {chunks} parts for each of {plan.pp} stages, and it has "
            f"{layers} layers: use --schedule 1f1b",
            field="--schedule",
        )
