"""A Keras optimizer as one of torch: its learning rate and weight decay are those of a parameter group, its variables
are the state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch

from workbench.engine.frameworks.tensorflow.arrays import to_numpy, to_tensorflow, to_torch
from workbench.engine.frameworks.tensorflow.mirror import Mirror, MirroredModel

#: names of Keras -> those under which figures look for first and second moments
_NAMES = {"momentum": "exp_avg", "velocity": "exp_avg_sq", "accumulator": "sum"}
_STEP = "step"
#: of a person who turns the weight decay, or freezes layers, again and again
_MOST_COMPILED = 8


class KerasOptimizer(torch.optim.Optimizer):
    """Updates the weights of ``model`` by ``optimizer``, which is not built yet, and takes those gradients that are in
    ``.grad``.

    ``state`` holds copies of the optimizer's variables: the step that it counts and what it keeps for each weight. It
    is read from them when it is asked for, and they follow what is written there.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, model: MirroredModel, lr: float) -> None:
        self.keras = optimizer
        self._mirrors = {each.tensor: each for each in model.trained}
        optimizer.build([each.variable for each in self._mirrors.values()])
        self._slots = _slots(optimizer, list(self._mirrors.values()))
        self._first = {
            id(variable): to_torch(variable.value) for slots in self._slots.values() for variable in slots.values()
        }
        self._read: dict[tuple[torch.Tensor, str], tuple[torch.Tensor, int]] = {}
        self._is_behind = False
        #: updates that are compiled, as ``fit`` of Keras has them, by the weights that have a gradient and the decay
        self._compiled: dict[Any, Callable[[list[Any]], object]] = {}
        decay = {} if optimizer.weight_decay is None else {"weight_decay": float(optimizer.weight_decay)}
        super().__init__(list(self._mirrors), {"lr": lr, **decay})

    @property
    def keeps_moments(self) -> bool:
        """Whether the optimizer keeps something for each weight."""
        return any(name != _STEP for slots in self._slots.values() for name in slots)

    @property
    def state(self) -> Any:
        """Weight -> name -> tensor, as of torch's optimizers; empty before the first step."""
        if self._is_behind:
            self._is_behind = False
            self._pull()
        return self._state

    @state.setter
    def state(self, value: Any) -> None:
        self._state = value

    def _pull(self) -> None:
        for parameter, slots in self._slots.items():
            for name, variable in slots.items():
                tensor = to_torch(variable.value)
                tensor = tensor.float() if name == _STEP else tensor
                self._state[parameter][name] = tensor
                self._read[parameter, name] = tensor, tensor._version

    def _push(self) -> None:
        """Give the optimizer what was written to the state since it was read."""
        if self._is_behind:
            return
        for parameter, slots in self._slots.items():
            held = self._state.get(parameter, {})
            for name, variable in slots.items():
                tensor = held.get(name, self._first[id(variable)])
                before, version = self._read.get((parameter, name), (self._first[id(variable)], 0))
                if tensor is not before or tensor._version != version:
                    variable.assign(np.array(to_numpy(tensor)).reshape(variable.shape).astype(variable.dtype))
                    self._read[parameter, name] = tensor, tensor._version

    def step(self, closure: Any = None) -> Any:
        """Update the weights that have a gradient."""
        self._push()
        given = [(each, parameter.grad) for parameter, each in self._mirrors.items() if parameter.grad is not None]
        if given:
            for each, _ in given:
                each.push()
            group = self.param_groups[0]
            self.keras.learning_rate = group["lr"]
            update = self._update([each.variable for each, _ in given], group.get("weight_decay"))
            update([to_tensorflow(gradient) for _, gradient in given])
            for each, _ in given:
                each.pull()
            self._is_behind = True

    def _update(self, variables: list[Any], decay: float | None) -> Callable[[list[Any]], object]:
        """Updates ``variables`` by their gradients."""
        key = (decay, *map(id, variables))
        if key not in self._compiled:
            if len(self._compiled) == _MOST_COMPILED:
                self._compiled.clear()
            self.keras.weight_decay = decay  # a compiled update has the one that it was traced with
            self._compiled[key] = tf.function(lambda given: self.keras.apply(given, variables), autograph=False)
        return self._compiled[key]


def _slots(optimizer: keras.optimizers.Optimizer, mirrors: list[Mirror]) -> dict[torch.Tensor, dict[str, Any]]:
    """What the optimizer keeps, by the weight that it is for, which Keras names it after; the rest is the first's."""
    found: dict[torch.Tensor, dict[str, Any]] = defaultdict(dict)
    prefixes = {each.variable.path.replace("/", "_") + "_": each.tensor for each in mirrors}
    for variable in optimizer.variables:
        if variable.name == "learning_rate":
            continue
        if variable.name == "iteration":
            for each in mirrors:
                found[each.tensor][_STEP] = variable
            continue
        longest = max((each for each in prefixes if variable.name.startswith(each)), key=len, default="")
        owner = prefixes[longest] if longest else mirrors[0].tensor
        name = variable.name.removeprefix(longest).replace("/", "_")
        name = _NAMES.get(name, name)
        while name in found[owner]:  # Adafactor gives several one name
            name += "_"
        found[owner][name] = variable
    return found
