"""Colossal-AI, as the notebook sees it: its plugins, their options and what each can do. Imports no tensor library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from workbench.core.frameworks import (
    UNTRIED_ON_GPUS,
    Capability,
    Feature,
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


#: values of ``--placement``
_PLACEMENTS = ("static", "auto")


def _check(plan: PlanOptions) -> None:
    """Schedules run some numbers of micro-batches only; models that can be split have no batch normalisation."""
    if plan.sync_batchnorm and plan.tp * plan.pp > 1:
        raise ConfigError(
            "--sync-batchnorm: models that --tp and --pp can split have no batch normalisation: leave it out",
            field="--sync-batchnorm",
        )
    if plan.placement not in _PLACEMENTS:
        raise ConfigError(
            f"unknown placement {plan.placement!r}: {suggest(plan.placement, _PLACEMENTS)}", field="--placement"
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


_NO_ZERO2 = "ZeRO-2 would reduce the gradients of each micro-batch, which Colossal-AI refuses: use --plugin zero1"
#: options that say how a model is split
_SPLIT = ("tp", "pp", "micro_batches", "schedule")
_MODELS = tuple(
    SplitModels(title=family.title, tp=tuple(family.classes("tp")), pp=tuple(family.classes("pp")))
    for family in FAMILIES.values()
)
_SPLITS = "workbench.engine.frameworks.colossal.planned.splits:splits_of"


def _zero(name: str, summary: str, shares: Shares, lacks: Mapping[Capability, str]) -> Plugin:
    return Plugin(
        name=name,
        summary=summary,
        strategy=_STRATEGY,
        options=frozenset(("sync_batchnorm", "compile", "offload", *(("tp",) if lacks else _SPLIT))),
        untried=UNTRIED_ON_GPUS,
        capabilities=frozenset(Capability) - set(lacks),
        lacks=lacks,
        models=_MODELS,
        shares=shares,
        splits=_SPLITS,
    )


COLOSSAL = Framework(
    name="colossal",
    title="Colossal-AI",
    plugins=(
        Plugin(
            name="ddp",
            summary="each rank holds the whole model; gradients are averaged",
            strategy=_STRATEGY,
            own_steps=_OWN_STEPS,
            options=frozenset(("sync_batchnorm", "compile", "algorithm")),
            untried=UNTRIED_ON_GPUS,
            capabilities=_ALL_BUT_PIPELINES,
            lacks=_ONE_STAGE,
            shares=Shares(bucket_bytes=WHOLE),
        ),
        Plugin(
            name="hybrid",
            summary="tensor parallel x pipeline stages x data parallel",
            strategy=_STRATEGY,
            options=frozenset((*_SPLIT, "sequence_parallel", "sync_batchnorm", "compile")),
            untried=UNTRIED_ON_GPUS,
            capabilities=frozenset(Capability),
            models=_MODELS,
            shares=Shares(copies="mixed", casts=KEPT, bucket_bytes=WHOLE, stages_reduce_apart=True),
            splits=_SPLITS,
        ),
        _zero("zero1", "as ddp or hybrid, with the optimizer's state split over the data-parallel ranks", _ZERO, {}),
        _zero(
            "zero2",
            "as zero1, with the gradients split too; without pipeline stages",
            replace(_ZERO, gradients=True),
            {Capability.PIPELINED: _NO_ZERO2},
        ),
        Plugin(
            name="gemini",
            summary="weights, gradients and the optimizer's state in chunks, split over the ranks",
            strategy=_STRATEGY,
            options=frozenset(("offload", "placement")),
            untried=UNTRIED_ON_GPUS,
            capabilities=_ALL_BUT_PIPELINES,
            lacks={Capability.PIPELINED: "a pipeline inside Gemini waits for ever: use hybrid"},
            refuses={
                Feature.FP32: "Gemini keeps weights in chunks of half precision: pass --precision bf16 or fp16",
                Feature.COMPILED: "Gemini gathers weights before single operations, of which a compiled graph has none",
                Feature.ADAPTED: "Colossal-AI's Gemini takes no LoRA",
            },
        ),
    ),
    preload="workbench.engine.frameworks.colossal.startup.preload:load",
    joined="workbench.engine.frameworks.colossal.ranks:joined",
    packages=("torch", "colossalai", "transformers"),
    not_offered={
        "fsdp": (
            "Colossal-AI's plugin wraps the model as one unit of torch's older FSDP, on GPUs only, makes the optimizer "
            "anew without its parameter groups, and cannot accumulate gradients: use --framework torch --plugin fsdp, "
            "which is FSDP2"
        ),
        "moe": (
            "Colossal-AI gives experts an axis inside data parallelism, which plans here do not have; in fp32 it "
            "refuses them, and without ZeRO it fails. A Mixtral trains with --tp 2, --pp 2, or --framework torch"
        ),
    },
    check=_check,
)
