"""What a checkpoint calls the tensors of a model."""

from __future__ import annotations

import torch

from workbench.engine.state.layout import Originals


def model() -> torch.nn.Module:
    first, last = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4)
    last.weight = first.weight
    return torch.nn.Sequential(first, torch.nn.BatchNorm1d(4), last)


def test_a_compiled_model_has_the_names_of_the_users_own() -> None:
    """So that a checkpoint of one is read by the other, and by a plan that compiles within the wrapper."""
    wrapper = torch.nn.Module()
    wrapper._orig_mod = model()  # as in what torch.compile makes, without importing a compiler
    plain, wrapped = Originals(model()), Originals(wrapper)
    assert wrapped.shapes == plain.shapes and wrapped.order == plain.order
    assert list(wrapped.buffers) == list(plain.buffers) and "1.running_mean" in plain.buffers
    for name in ("0.weight", "2.weight", "2.bias"):
        assert wrapped.name(f"_orig_mod.{name}") == wrapped.name(name.replace("2.w", "0.w")) == plain.name(name)
    assert plain.name("2.weight") == "0.weight", "a tied tensor has its first name"
