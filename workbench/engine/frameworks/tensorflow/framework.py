"""TensorFlow, as the notebook sees it: its one plugin and what that can do. Imports no tensor library."""

from __future__ import annotations

from workbench.core.frameworks import UNTRIED_ON_GPUS, Capability, Feature, Framework, Plugin

_LACKS = {
    Capability.PIPELINED: "every rank holds all layers: use --framework colossal or torch",
}

TENSORFLOW = Framework(
    name="tensorflow",
    title="TensorFlow",
    plugins=(
        Plugin(
            name="ddp",
            summary="each rank holds the whole Keras model; TensorFlow's collectives average the gradients",
            strategy="workbench.engine.frameworks.tensorflow.strategy:TensorFlowStrategy",
            untried=UNTRIED_ON_GPUS,
            capabilities=frozenset(Capability) - _LACKS.keys(),
            lacks=_LACKS,
            refuses={
                Feature.COMPILED: "it compiles modules of PyTorch: decorate loss_fn with @tf.function",
                Feature.ADAPTED: "adapters are for modules of PyTorch",
                Feature.OWN_STEPS: "gradients are reduced after those of loss_fn: define loss_fn(model, batch)",
            },
        ),
    ),
    preload="workbench.engine.frameworks.tensorflow.ranks:load",
    joined="workbench.engine.frameworks.tensorflow.ranks:joined",
    packages=("tensorflow-cpu", "keras", "torch"),
    library="tensorflow",
    size="1.3 GB, of which 300 MB are downloaded",
    adopts="workbench.engine.frameworks.tensorflow.cells:adopted",
    joins_once=True,
)
