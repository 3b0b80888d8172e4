"""Megatron-Core, as the notebook sees it: its plugins and what each can do. Imports no tensor library."""

from __future__ import annotations

from workbench.core.frameworks import UNTRIED_ON_GPUS, Capability, Feature, Framework, Plugin, SplitModels

_NOT_THE_CELLS = "Megatron computes by modules of its own, in which several of the cell's are one"

_NAMES = ("GPT2LMHeadModel", "LlamaForCausalLM")


def _plugin(name: str, summary: str, *options: str) -> Plugin:
    return Plugin(
        name=name,
        summary=summary,
        strategy="workbench.engine.frameworks.megatron.strategy:MegatronStrategy",
        options=frozenset(options),
        untried=UNTRIED_ON_GPUS,
        capabilities=frozenset(Capability) - {Capability.PIPELINED, Capability.REPLAYABLE, Capability.INSPECTABLE},
        lacks={
            Capability.PIPELINED: "every rank has a part of all layers: use --framework colossal or torch",
            Capability.REPLAYABLE: _NOT_THE_CELLS,
            Capability.INSPECTABLE: _NOT_THE_CELLS,
        },
        refuses={
            Feature.COMPILED: _NOT_THE_CELLS,
            Feature.ADAPTED: "adapters are modules beside weights that Megatron has in another form",
        },
        models=tuple(SplitModels(title=name, tp=(name,), pp=()) for name in (_NAMES if options else ())),
    )


MEGATRON = Framework(
    name="megatron",
    title="Megatron-Core",
    plugins=(
        _plugin(
            "ddp", "Llama and GPT-2 as Megatron's GPTModel; its DDP averages gradients, its optimizer clips and steps"
        ),
        _plugin("hybrid", "as ddp, with layers cut over tensor-parallel ranks", "tp"),
    ),
    preload="workbench.engine.frameworks.megatron.ranks:load",
    joined="workbench.engine.frameworks.megatron.ranks:joined",
    packages=("torch", "megatron-core"),
    library="megatron.core",
    size="11 MB, in some 10 s",
    not_offered={
        "pipeline": "its pipelines are not written yet: use --framework colossal or torch",
        "zero1": "its distributed optimizer is not written yet: use --framework colossal or deepspeed",
    },
)
