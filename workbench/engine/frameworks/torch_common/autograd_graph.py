"""What the autograd graph of a loss holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AutogradGraph:
    """``leaves``: ids of the tensors that get a gradient; ``is_reentrant``: it holds a reentrant checkpoint, whose
    inner tensors are not among the leaves."""

    leaves: frozenset[int]
    is_reentrant: bool


def graph_of(loss: torch.Tensor) -> AutogradGraph:
    """Walk the graph of ``loss`` once."""
    leaves: set[int] = set()
    seen = set()
    waiting = [loss.grad_fn]
    is_reentrant = False
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        is_reentrant |= type(node).__name__ == "CheckpointFunctionBackward"
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        waiting += [below for below, _ in node.next_functions]
    return AutogradGraph(frozenset(leaves), is_reentrant)
