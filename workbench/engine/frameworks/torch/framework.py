"""torch native, as the notebook sees it: its plugins and what each can do. Imports no tensor library."""

from __future__ import annotations

from workbench.core.frameworks import UNTRIED_ON_GPUS, Capability, Feature, Framework, PlanOptions, Plugin, SplitModels
from workbench.core.shares import GATHERED, WHOLE, Shares
from workbench.engine.frameworks.torch.context.families import FAMILIES as CONTEXT_FAMILIES
from workbench.engine.frameworks.torch.schedules import check_schedule
from workbench.engine.frameworks.torch.tensor_parallel.families import FAMILIES
from workbench.errors import ConfigError

#: bytes of gradients that stages reduce together, as DDP does
_BUCKET = 25 * 2**20


def _check(plan: PlanOptions) -> None:
    """Tensor-parallel ranks have the same samples, so their statistics must not be counted twice; a schedule runs some
    numbers of micro-batches only."""
    check_schedule(plan)
    if plan.compile and plan.pp > 1:
        raise ConfigError(
            f"--compile --pp {plan.pp}: a pipeline of torch cuts the model into blocks, so it is not compiled whole: "
            "leave --compile out, and compile blocks in the cell (for block in model.model.layers: block.compile())",
            field="--compile",
        )
    if plan.sync_batchnorm and plan.tp > 1:
        raise ConfigError(
            "--sync-batchnorm is not available with --tp: leave out one of them",
            field="--sync-batchnorm",
        )


TORCH = Framework(
    name="torch",
    title="torch",
    plugins=(
        Plugin(
            name="ddp",
            summary="each rank holds the whole model; DistributedDataParallel averages the gradients",
            strategy="workbench.engine.frameworks.torch.ddp:DdpStrategy",
            own_steps="workbench.engine.frameworks.torch_common.steps.strategy:OwnSteps",
            options=frozenset(("sync_batchnorm", "compile", "algorithm")),
            untried=UNTRIED_ON_GPUS,
            capabilities=frozenset(Capability) - {Capability.PIPELINED},
            lacks={Capability.PIPELINED: "every rank holds all layers: use hybrid"},
            shares=Shares(bucket_bytes=WHOLE),
        ),
        Plugin(
            name="fsdp",
            summary="FSDP2: parameters, gradients and optimizer state are split over the ranks; tensor parallel inside",
            strategy="workbench.engine.frameworks.torch.fsdp.strategy:FsdpStrategy",
            options=frozenset(("tp", "sync_batchnorm", "compile", "replicate", "no_reshard", "offload")),
            untried=UNTRIED_ON_GPUS,
            capabilities=frozenset(Capability) - {Capability.PIPELINED},
            lacks={Capability.PIPELINED: "every rank computes all layers"},
            models=tuple(SplitModels(title=family.title, tp=family.classes, pp=()) for family in FAMILIES),
            shares=Shares(parameters=True, gradients=True, state=True, by_rows=True, casts=GATHERED),
            splits="workbench.engine.frameworks.torch.tensor_parallel.splits:splits_of",
        ),
        Plugin(
            name="hybrid",
            summary="pipeline stages (torch.distributed.pipelining) x tensor parallel (DTensor) x data parallel",
            strategy="workbench.engine.frameworks.torch.pipeline.strategy:PipelineStrategy",
            options=frozenset(("tp", "pp", "micro_batches", "schedule", "compile")),
            untried=UNTRIED_ON_GPUS,
            capabilities=frozenset(Capability),
            models=tuple(SplitModels(title=family.title, tp=family.classes, pp=()) for family in FAMILIES),
            shares=Shares(bucket_bytes=_BUCKET),
            splits="workbench.engine.frameworks.torch.pipeline.planned:splits_of",
        ),
        Plugin(
            name="context",
            summary="ddp whose ranks share the positions of each sequence, as attention gathers keys and values",
            strategy="workbench.engine.frameworks.torch.context_parallel:ContextStrategy",
            options=frozenset(("cp",)),
            untried=UNTRIED_ON_GPUS,
            refuses={
                Feature.COMPILED: "the layers compute with other sizes than the model around them",
                Feature.OWN_STEPS: "a step of the cell's own would update with the gradients of a rank's own positions",
            },
            capabilities=frozenset(Capability) - {Capability.PIPELINED, Capability.INSPECTABLE},
            lacks={
                Capability.PIPELINED: "every rank computes all layers",
                Capability.INSPECTABLE: "a rank sees its own positions only, and statistics are not put together",
            },
            models=tuple(SplitModels(title=family.title, cp=family.classes) for family in CONTEXT_FAMILIES),
            shares=Shares(bucket_bytes=WHOLE),
            splits="workbench.engine.frameworks.torch.context.planned:splits_of",
        ),
    ),
    preload="workbench.engine.frameworks.torch.ranks:load",
    joined="workbench.engine.frameworks.torch.ranks:joined",
    packages=("torch",),
    check=_check,
)
