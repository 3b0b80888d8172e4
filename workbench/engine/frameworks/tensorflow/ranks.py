"""A process as a rank of TensorFlow, and what such ranks import."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from workbench.core.live.collective_row import DIRECTORY
from workbench.engine import preload
from workbench.engine.frameworks.torch import ranks

#: Triton, which torch._dynamo loads, ends the process where TensorFlow was loaded before it
MODULES = (
    "torch._dynamo",
    "workbench.engine.frameworks.tensorflow.strategy",
    "workbench.engine.frameworks.tensorflow.cells",
)
#: what TensorFlow and Keras read when they are imported
_SETTINGS = {"KERAS_BACKEND": "tensorflow"}
#: warnings and errors only, and no remark on rounding, unless the user has asked for more
_DEFAULTS = {"TF_CPP_MIN_LOG_LEVEL": "1", "TF_ENABLE_ONEDNN_OPTS": "1"}


def load() -> Callable[[], None]:
    """As ``workbench.engine.preload.load``. Ranks of a session find each other when they start: TensorFlow makes its
    server when it first computes, and no other one later."""
    os.environ.update(_SETTINGS)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    begin = preload.load(MODULES, title="TensorFlow")

    def begin_with_tensorflow() -> None:
        begin()
        if os.environ.get(DIRECTORY):
            _form(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ[DIRECTORY])

    return begin_with_tensorflow


def _form(rank: int, ranks: int, directory: str | Path) -> None:
    from workbench.engine.frameworks.tensorflow import world

    world.form(rank, ranks, directory, f"tensorflow-{os.environ.get('MASTER_PORT', '0')}")


@contextmanager
def joined(
    rank: int,
    world_size: int,
    rendezvous_dir: str | Path,
    *,
    seed: int = 1024,
    device_type: str | None = None,
    **meeting: Any,
) -> Iterator[torch.device]:
    """As ``workbench.engine.base.joined.Joined``; ``meeting`` are the other arguments of ``process_group.joined``.

    Ranks are in a group of torch beside TensorFlow's server: what the loop tells between ranks, such as commands and
    the figures of a validation, goes over gloo. Keras gives layers the names of a new process, and the default policy;
    what a cell sets in its configuration is undone.
    """
    from keras import config, utils

    _form(rank, world_size, rendezvous_dir)
    before = config.floatx(), config.epsilon(), config.image_data_format()
    with ranks.joined(rank, world_size, rendezvous_dir, seed=seed, device_type=device_type, **meeting) as device:
        utils.clear_session()
        utils.set_random_seed(seed)
        try:
            yield device
        finally:
            for change, value in zip(
                (config.set_floatx, config.set_epsilon, config.set_image_data_format), before, strict=True
            ):
                change(value)
