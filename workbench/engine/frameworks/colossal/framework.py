"""Colossal-AI, as the notebook sees it: its plugins, their options and what each can do. Imports no tensor library."""

from __future__ import annotations

from dataclasses import replace

from workbench.core.frameworks import (
    UNTRIED_ON_GPUS,
    Capability,
    Framework,
    PlanOptions,
    Plugin,
    SplitModels,
)
from workbench.core.shares import KEPT, WHOLE, Shares
from workbench.engine.frameworks.colossal.families import FAMILIES
from workbench.engine.frameworks.colossal.pipeline_parallel.schedules import check_schedule
from workbench.errors import ConfigError, suggest

_STRATEGY = "workbench.engine.frameworks.colossal.strategy:ColossalStrategy"
_OWN_STEPS = "workbench.engine.frameworks.torch_common.steps.strategy:OwnSteps"
_ALL_BUT_PIPELINES = frozenset(Capability) - {Capability.PIPELINED}
#: LowLevelZeroPlugin's default: 12 * 2**20 elements in fp32
_ZERO_BUCKET = 12 * 2**20 * 4
_ZERO = Shares(state=True, copies="always", casts=KEPT, bucket_bytes=_ZERO_BUCKET, gathers=1)
#: values of ``--sequence-parallel``
_MODES = ("split_gather", "ring")
#: other modes of Colossal-AI -> why there are none here, and what to use
_NO_MODES = {
    "all_to_all": (
        "Colossal-AI gives each sequence ranks beside those of --tp, an axis that plans here do not have: use "
        "split_gather or ring"
    ),
    "ring_attn": (
        "Colossal-AI's ring attention needs flash_attn, which runs on GPUs only, and its gradients in fp32 overwrite "
        "each other: use split_gather or ring"
    ),
}
_ONE_STAGE = {Capability.PIPELINED: "every rank holds all layers: use hybrid"}


def _check(plan: PlanOptions) -> None:
    """Schedules run some numbers of micro-batches only; models that can be split have no batch normalisation."""
    if plan.sync_batchnorm and plan.tp * plan.pp > 1:
        raise ConfigError(
            "--sync-batchnorm: models that --tp and --pp can split have no batch normalisation: leave it out",
            field="--sync-batchnorm",
        )
    check_schedule(plan)
    _check_sequences(plan)


def _check_sequences(plan: PlanOptions) -> None:
    mode = plan.sequence_parallel
    if mode in _NO_MODES:
        raise ConfigError(f"--sequence-parallel {mode}: {_NO_MODES[mode]}", field="--sequence-parallel")
    if mode and mode not in _MODES:
        raise ConfigError(f"unknown mode {mode!r}: {suggest(mode, _MODES)}", field="--sequence-parallel")
    if mode and plan.tp == 1:
        raise ConfigError(
            f"--sequence-parallel {mode} shares positions over the tensor-parallel ranks: pass --tp 2 or more, or "
            "leave it out",
            field="--sequence-parallel",
        )


def _data_parallel(name: str, summary: str, shares: Shares, *others: str, own_steps: str = "") -> Plugin:
    """``others``: options that it takes beside those of all data-parallel plugins."""
    return Plugin(
        name=name,
        summary=summary,
        strategy=_STRATEGY,
        own_steps=own_steps,
        options=frozenset(("sync_batchnorm", *others)),
        untried=UNTRIED_ON_GPUS,
        capabilities=_ALL_BUT_PIPELINES,
        lacks=_ONE_STAGE,
        shares=shares,
    )


COLOSSAL = Framework(
    name="colossal",
    title="Colossal-AI",
    plugins=(
        _data_parallel(
            "ddp",
            "each rank holds the whole model; gradients are averaged",
            Shares(bucket_bytes=WHOLE),
            "algorithm",
            own_steps=_OWN_STEPS,
        ),
        _data_parallel("zero1", "as ddp, with the optimizer's state split over the ranks", _ZERO),
        _data_parallel("zero2", "as zero1, with the gradients split too", replace(_ZERO, gradients=True)),
        Plugin(
            name="hybrid",
            summary="tensor parallel x pipeline stages x data parallel",
            strategy=_STRATEGY,
            options=frozenset(("tp", "pp", "micro_batches", "schedule", "sequence_parallel", "sync_batchnorm")),
            untried=UNTRIED_ON_GPUS,
            capabilities=frozenset(Capability),
            models=tuple(
                SplitModels(title=family.title, tp=tuple(family.classes("tp")), pp=tuple(family.classes("pp")))
                for family in FAMILIES.values()
            ),
            shares=Shares(copies="mixed", casts=KEPT, bucket_bytes=WHOLE),
            splits="workbench.engine.frameworks.colossal.planned.splits:splits_of",
        ),
    ),
    preload="workbench.engine.frameworks.colossal.preload:load",
    joined="workbench.engine.frameworks.colossal.ranks:joined",
    packages=("torch", "colossalai", "transformers"),
    check=_check,
)
