"""DeepSpeed, as the notebook sees it: its ZeRO stages and what each can do. Imports no tensor library."""

from __future__ import annotations

from dataclasses import replace

from workbench.core.frameworks import UNTRIED_ON_GPUS, Capability, Feature, Framework, Plugin
from workbench.core.shares import KEPT, Shares

_STRATEGY = "workbench.engine.frameworks.deepspeed.strategy:ZeroStrategy"
_LACKS = {Capability.PIPELINED: "every rank computes all layers: use --framework colossal or torch --plugin hybrid"}
_REFUSES = {
    Feature.COMPILED: "DeepSpeed compiles by a compiler of its own, which was not tried here: leave out torch.compile",
}
_STATE = Shares(state=True, copies="always", casts=KEPT, gathers=1)


def _stage(name: str, summary: str, shares: Shares, *options: str) -> Plugin:
    return Plugin(
        name=name,
        summary=summary,
        strategy=_STRATEGY,
        options=frozenset(options),
        untried=UNTRIED_ON_GPUS,
        capabilities=frozenset(Capability) - {Capability.PIPELINED},
        lacks=_LACKS,
        refuses=_REFUSES,
        shares=shares,
    )


DEEPSPEED = Framework(
    name="deepspeed",
    title="DeepSpeed",
    plugins=(
        _stage("zero1", "ZeRO 1: the optimizer's state split over the ranks", _STATE, "offload"),
        _stage("zero2", "as zero1, with the gradients split too", replace(_STATE, gradients=True), "offload"),
    ),
    preload="workbench.engine.frameworks.deepspeed.ranks:load",
    joined="workbench.engine.frameworks.deepspeed.ranks:joined",
    packages=("torch", "deepspeed"),
    library="deepspeed",
    size="some 60 MB beside what is linked from uv's cache, and half a minute",
    not_offered={
        "ddp": "without ZeRO DeepSpeed averages gradients as torch's DDP does: use --framework torch --plugin ddp",
        "pipeline": "DeepSpeed's pipelines need a model that is written as their list of layers: use --framework torch",
    },
)
