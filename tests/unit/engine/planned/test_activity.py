"""What one forward pass keeps and does: as a real pass of plain torch shows it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from workbench.engine.base.workload import Workload
from workbench.engine.planned.activity import measure
from workbench.engine.planned.optimizer_state import states_of
from workbench.planner.model import state_key


class Net(torch.nn.Module):
    """Two layers and a norm; ``looks``: its code asks for a value."""

    def __init__(self, *, looks: bool = False) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 10), torch.nn.Linear(10, 3)
        self.norm = torch.nn.LayerNorm(10)
        self.looks = looks

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.gelu(self.norm(self.first(inputs)))
        return self.second(hidden * 2 if self.looks and hidden.sum().item() > 1e9 else hidden)


def workload(model: torch.nn.Module, optimizer: Any = torch.optim.AdamW) -> Workload:
    def criterion(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return torch.nn.functional.mse_loss(outputs, batch[1])

    return Workload(model=model, optimizer=optimizer(model.parameters()), data=None, criterion=criterion)  # type: ignore[arg-type]


def batch(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 6), torch.randn(samples, 3)


def saved_by(model: torch.nn.Module, samples: int) -> int:
    """Bytes that a real pass keeps beside parameters and its batch, each storage once."""
    inputs, target = batch(samples)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), inputs, target)}
    found: dict[int, tuple[int, Any]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.nn.functional.mse_loss(model(inputs), target)
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("samples", [1, 5, 16])
def test_what_is_kept_grows_with_samples_as_in_a_real_pass(looks, samples):
    model = Net(looks=looks)
    found = measure(workload(model), batch(16), "autocast", "fp32")
    predicted = sum(item.saved_fixed + item.saved_per_sample * samples for item in found)
    assert predicted == pytest.approx(saved_by(model, samples))


def test_operations_are_those_that_torch_counts():
    model = Net()
    found = measure(workload(model), batch(16), "autocast", "fp32")
    with FlopCounterMode(display=False) as counter:
        model(batch(16)[0])
    assert sum(item.flops for item in found) * 16 == counter.get_total_flops()
    linear = next(item for item in found if item.module == "first")
    assert (linear.input_bytes, linear.output_bytes, linear.input_trains) == (24, 40, False)


def test_a_model_in_half_precision_keeps_less():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    full, half = (measure(workload(model), batch(16), "cast", each) for each in ("fp32", "bf16"))
    assert sum(item.saved_per_sample for item in half) < sum(item.saved_per_sample for item in full)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "nothing is changed"


def test_an_error_of_the_model_is_raised():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure(workload(Net()), (torch.randn(8, 5), torch.randn(8, 3)), "autocast", "fp32")


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.AdamW,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.Adafactor,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
    ],
)
def test_state_is_what_a_real_update_makes(optimizer):
    model = Net()
    own = optimizer(model.parameters())
    states, unknown = states_of(own)
    assert not unknown
    assert not any(own.state.values()) or isinstance(own, torch.optim.Adagrad), "the optimizer itself is not stepped"
    model(batch(4)[0]).sum().backward()
    own.step()
    for parameter in model.parameters():
        real = [value for value in own.state[parameter].values() if isinstance(value, torch.Tensor)]
        kept = states[state_key(0, parameter.dim(), 4)]
        predicted = sum(tensor.bytes_for(tuple(parameter.shape)) for tensor in kept)
        assert predicted == sum(value.numel() * value.element_size() for value in real)


def test_an_optimizer_that_cannot_be_tried_is_named():
    states, unknown = states_of(torch.optim.LBFGS(Net().parameters()))
    assert unknown.startswith("LBFGS could not be tried")
    assert not states
