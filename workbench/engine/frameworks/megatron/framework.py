"""Megatron-Core, as the notebook sees it: its one plugin and what that can do. Imports no tensor library."""

from __future__ import annotations

from workbench.core.frameworks import UNTRIED_ON_GPUS, Capability, Feature, Framework, Plugin

_NOT_THE_CELLS = "Megatron computes by modules of its own, in which several of the cell's are one"

MEGATRON = Framework(
    name="megatron",
    title="Megatron-Core",
    plugins=(
        Plugin(
            name="ddp",
            summary="Llama and GPT-2 as Megatron's GPTModel; its DDP averages gradients, its optimizer clips and steps",
            strategy="workbench.engine.frameworks.megatron.strategy:MegatronStrategy",
            untried=UNTRIED_ON_GPUS,
            capabilities=frozenset(Capability) - {Capability.PIPELINED, Capability.REPLAYABLE, Capability.INSPECTABLE},
            lacks={
                Capability.PIPELINED: "every rank holds all layers: use --framework colossal or torch",
                Capability.REPLAYABLE: _NOT_THE_CELLS,
                Capability.INSPECTABLE: _NOT_THE_CELLS,
            },
            refuses={
                Feature.COMPILED: _NOT_THE_CELLS,
                Feature.ADAPTED: "adapters are modules beside weights that Megatron has in another form",
            },
        ),
    ),
    preload="workbench.engine.frameworks.megatron.ranks:load",
    joined="workbench.engine.frameworks.megatron.ranks:joined",
    packages=("torch", "megatron-core"),
    library="megatron.core",
    size="11 MB, in some 10 s",
    not_offered={
        "hybrid": "tensor and pipeline parallelism are not written yet: use --framework colossal or torch",
        "zero1": "its distributed optimizer is not written yet: use --framework colossal or deepspeed",
    },
)
