"""Functional collectives, which FSDP2 and DTensor call, are recorded and compared as those of ``torch.distributed``.

They bypass its functions and fail natively where sizes differ, which ends the process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional
from torch.distributed import distributed_c10d

from workbench.engine.collectives import record

#: arguments by position, and the group -> the arguments of the function of ``torch.distributed`` that does the same
_Arguments = Callable[[tuple[Any, ...], Any], tuple[Any, ...]]


def _reduce(given: tuple[Any, ...], group: Any) -> tuple[Any, ...]:
    return given[0], str(given[1]).upper(), group


def _send(given: tuple[Any, ...], group: Any) -> tuple[Any, ...]:
    return given[0], dist.get_global_rank(group, given[1]), group


def _gather(given: tuple[Any, ...], group: Any) -> tuple[Any, ...]:
    return None, given[0], group


def _scatter(given: tuple[Any, ...], group: Any) -> tuple[Any, ...]:
    return None, given[0], str(given[1]).upper(), group


def _exchange(given: tuple[Any, ...], group: Any) -> tuple[Any, ...]:
    return None, given[0], None, None, group


#: function -> what it is recorded as, its arguments before the group, and how they are those of that
_FUNCTIONS: dict[str, tuple[str, tuple[str, ...], _Arguments]] = {
    "all_reduce": ("all_reduce", ("self", "reduceOp"), _reduce),
    "broadcast": ("broadcast", ("self", "src"), _send),
    "all_to_all_single": ("all_to_all_single", ("self", "output_split_sizes", "input_split_sizes"), _exchange),
    **dict.fromkeys(("all_gather_single", "all_gather_tensor"), ("all_gather_single", ("self", "gather_dim"), _gather)),
    **dict.fromkeys(
        ("reduce_scatter_single", "reduce_scatter_tensor"),
        ("reduce_scatter_single", ("self", "reduceOp", "scatter_dim"), _scatter),
    ),
}


def _recorded(name: str, upstream: Callable[..., Any]) -> Callable[..., Any]:
    kind, names, as_arguments = _FUNCTIONS[name.removesuffix("_autograd")]

    @functools.wraps(upstream)
    def collective(*args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        mine = record.current()
        if mine is None or torch.compiler.is_compiling():
            return upstream(*args, **options)
        given = tuple([args[at] if len(args) > at else options.get(name) for at, name in enumerate((*names, "group"))])
        group = _group_of(given[-1], options.get("tag", ""))
        return mine.run(kind, lambda *_, **__: upstream(*args, **options), as_arguments(given[:-1], group), {})

    return collective


def _group_of(group: Any, tag: str) -> Any:
    """The group of torch that is meant by a group, its name, a mesh, or a mesh and a dimension of it."""
    if isinstance(group, dist.ProcessGroup):
        return group
    return distributed_c10d._resolve_process_group(functional._resolve_group_name(group, tag))


def wrap() -> None:
    """Wraps the functional collectives, once per process; they change nothing until it is a rank."""
    for name in (*_FUNCTIONS, *(f"{name}_autograd" for name in _FUNCTIONS)):
        upstream = getattr(functional, name, None)
        if upstream is not None:
            setattr(functional, name, _recorded(name, upstream))
