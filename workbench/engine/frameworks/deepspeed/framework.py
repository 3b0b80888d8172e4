"""DeepSpeed, as the notebook sees it: its ZeRO stages and what each can do. Imports no tensor library."""

from __future__ import annotations

from workbench.core.frameworks import UNTRIED_ON_GPUS, Capability, Feature, Framework, Plugin
from workbench.engine.frameworks.deepspeed.config_file import CONFIG_FILE

_STRATEGY = "workbench.engine.frameworks.deepspeed.strategy:ZeroStrategy"
_STRATEGY_3 = "workbench.engine.frameworks.deepspeed.zero3:Zero3Strategy"
_LACKS = {Capability.PIPELINED: "every rank computes all layers: use --framework colossal or torch --plugin hybrid"}
_REFUSES = {
    Feature.COMPILED: "DeepSpeed compiles by a compiler of its own, which was not tried here: leave out torch.compile",
}


def _stage(name: str, summary: str, strategy: str = _STRATEGY) -> Plugin:
    return Plugin(
        name=name,
        summary=summary,
        strategy=strategy,
        options=frozenset(("offload", CONFIG_FILE.option)),
        untried=UNTRIED_ON_GPUS,
        capabilities=frozenset(Capability) - {Capability.PIPELINED},
        lacks=_LACKS,
        refuses=_REFUSES,
    )


DEEPSPEED = Framework(
    name="deepspeed",
    title="DeepSpeed",
    plugins=(
        _stage("zero1", "ZeRO 1: the optimizer's state split over the ranks"),
        _stage("zero2", "as zero1, with the gradients split too"),
        _stage("zero3", "as zero2, with the weights split too, and gathered when a module computes", _STRATEGY_3),
    ),
    preload="workbench.engine.frameworks.deepspeed.ranks:load",
    joined="workbench.engine.frameworks.deepspeed.ranks:joined",
    packages=("torch", "deepspeed"),
    library="deepspeed",
    size="15 MB, in some 20 s",
    config_file=CONFIG_FILE,
    not_offered={
        "ddp": "without ZeRO DeepSpeed averages gradients as torch's DDP does: use --framework torch --plugin ddp",
        "pipeline": "DeepSpeed's pipelines need a model that is written as their list of layers: use --framework torch",
    },
)
