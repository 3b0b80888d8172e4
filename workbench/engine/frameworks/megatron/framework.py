"""Megatron-Core, as the notebook sees it: its plugins and what each can do. Imports no tensor library."""

from __future__ import annotations

from workbench.core.frameworks import UNTRIED_ON_GPUS, Capability, Feature, Framework, Plugin, SplitModels

_NOT_THE_CELLS = "Megatron computes by modules of its own, in which several of the cell's are one"

_NAMES = ("GPT2LMHeadModel", "LlamaForCausalLM")


_STRATEGIES = "workbench.engine.frameworks.megatron"
_CAPABLE = frozenset(Capability) - {Capability.REPLAYABLE, Capability.INSPECTABLE}
_LACKS = {Capability.REPLAYABLE: _NOT_THE_CELLS, Capability.INSPECTABLE: _NOT_THE_CELLS}
_REFUSES = {
    Feature.COMPILED: _NOT_THE_CELLS,
    Feature.ADAPTED: "adapters are modules beside weights that Megatron has in another form",
}

MEGATRON = Framework(
    name="megatron",
    title="Megatron-Core",
    plugins=(
        Plugin(
            name="ddp",
            summary="Llama and GPT-2 as Megatron's GPTModel; its DDP averages gradients, its optimizer clips and steps",
            strategy=f"{_STRATEGIES}.strategy:MegatronStrategy",
            untried=UNTRIED_ON_GPUS,
            capabilities=_CAPABLE - {Capability.PIPELINED},
            lacks={**_LACKS, Capability.PIPELINED: "every rank holds all layers: use --plugin hybrid"},
            refuses=_REFUSES,
        ),
        Plugin(
            name="hybrid",
            summary="as ddp, with layers cut over tensor-parallel ranks and shared out among pipeline stages (1F1B)",
            strategy=f"{_STRATEGIES}.pipeline:HybridStrategy",
            options=frozenset(("tp", "pp", "micro_batches")),
            untried=UNTRIED_ON_GPUS,
            capabilities=_CAPABLE,
            lacks=_LACKS,
            refuses=_REFUSES,
            models=tuple(SplitModels(title=name, tp=(name,), pp=(name,)) for name in _NAMES),
        ),
    ),
    preload="workbench.engine.frameworks.megatron.ranks:load",
    joined="workbench.engine.frameworks.megatron.ranks:joined",
    packages=("torch", "megatron-core"),
    library="megatron.core",
    size="11 MB, in some 10 s",
    not_offered={
        "zero1": (
            "Megatron's distributed optimizer steps an Adam of its own over parts of fused weights, for which there is "
            "no plugin yet: use --framework colossal or deepspeed"
        ),
    },
)
