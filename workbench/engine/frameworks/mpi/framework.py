"""Data parallelism by MPI, as the notebook sees it: its one plugin and what that can do. Imports no tensor library."""

from __future__ import annotations

from workbench.core.frameworks import UNTRIED_ON_GPUS, Capability, Feature, Framework, Plugin

MPI = Framework(
    name="mpi",
    title="MPI",
    plugins=(
        Plugin(
            name="ddp",
            summary="each rank holds the whole model; MPI averages the gradients after backward",
            strategy="workbench.engine.frameworks.mpi.strategy:MpiStrategy",
            untried=UNTRIED_ON_GPUS,
            capabilities=frozenset(Capability) - {Capability.PIPELINED},
            lacks={Capability.PIPELINED: "every rank holds all layers: use --framework colossal or torch"},
            refuses={
                Feature.COMPILED: "the reference computes the model as it is written",
                Feature.OWN_STEPS: "the reference averages the gradients of its own step only",
            },
        ),
    ),
    preload="workbench.engine.frameworks.mpi.ranks:load",
    joined="workbench.engine.frameworks.mpi.ranks:joined",
    packages=("torch", "mpi4py", "mpich"),
    library="mpi4py",
    size="40 MB, in some 10 s",
    joins_once=True,
)
