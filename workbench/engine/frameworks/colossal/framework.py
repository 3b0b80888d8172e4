"""Colossal-AI, as the notebook sees it: its plugins, their options and what each can do. Imports no tensor library."""

from __future__ import annotations

from workbench.core.frameworks import Capability, Framework, PlanOptions, Plugin, SplitModels
from workbench.engine.frameworks.colossal.families import FAMILIES
from workbench.errors import ConfigError

_STRATEGY = "workbench.engine.frameworks.colossal.strategy:ColossalStrategy"
_OWN_STEPS = "workbench.engine.frameworks.torch_common.steps.strategy:OwnSteps"
_ALL_BUT_PIPELINES = frozenset(Capability) - {Capability.PIPELINED}
_ONE_STAGE = {Capability.PIPELINED: "every rank holds all layers: use hybrid"}


def _check(plan: PlanOptions) -> None:
    """The 1F1B schedule keeps every stage busy only with as many micro-batches as stages; models that can be split have
    no batch normalisation."""
    if plan.sync_batchnorm and plan.tp * plan.pp > 1:
        raise ConfigError(
            "--sync-batchnorm: models that --tp and --pp can split have no batch normalisation: leave it out",
            field="--sync-batchnorm",
        )
    if plan.micro_batches < plan.pp:
        raise ConfigError(
            f"1F1B over {plan.pp} pipeline stages needs at least as many micro-batches, not {plan.micro_batches}: "
            f"pass --micro-batches {plan.pp}",
            field="--micro-batches",
        )
    if plan.pp == 1 and plan.micro_batches != 1:
        raise ConfigError(
            f"--micro-batches {plan.micro_batches} splits a batch over pipeline stages: pass --pp 2 or more, "
            "or use --accumulate without a pipeline",
            field="--micro-batches",
        )


def _data_parallel(name: str, summary: str, *, own_steps: str = "") -> Plugin:
    return Plugin(
        name=name,
        summary=summary,
        strategy=_STRATEGY,
        own_steps=own_steps,
        options=frozenset(("sync_batchnorm",)),
        capabilities=_ALL_BUT_PIPELINES,
        lacks=_ONE_STAGE,
    )


COLOSSAL = Framework(
    name="colossal",
    title="Colossal-AI",
    plugins=(
        _data_parallel("ddp", "each rank holds the whole model; gradients are averaged", own_steps=_OWN_STEPS),
        _data_parallel("zero1", "as ddp, with the optimizer's state split over the ranks"),
        _data_parallel("zero2", "as zero1, with the gradients split too"),
        Plugin(
            name="hybrid",
            summary="tensor parallel x pipeline stages x data parallel",
            strategy=_STRATEGY,
            options=frozenset(("tp", "pp", "micro_batches", "sync_batchnorm")),
            capabilities=frozenset(Capability),
            models=tuple(
                SplitModels(title=family.title, tp=tuple(family.classes("tp")), pp=tuple(family.classes("pp")))
                for family in FAMILIES.values()
            ),
        ),
    ),
    preload="workbench.engine.frameworks.colossal.preload:load",
    joined="workbench.engine.frameworks.colossal.ranks:joined",
    packages=("torch", "colossalai", "transformers"),
    check=_check,
)
