"""What is in a batch, and how it is cut. Loads no tensor library: ranks of any framework count and cut batches so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from itertools import pairwise
from typing import Any

from workbench.engine.base.batch import Batch, Piece, StandIn, contents
from workbench.engine.base.containers import arrays_in, entries, rebuilt
from workbench.engine.base.tensor import is_array, is_tensor
from workbench.errors import ConfigError

#: how a value is cut: along dim 0 (True), not at all (False), or each of its entries in its own way
Layout = bool | list[Any]


def samples_in(batch: Batch) -> int:
    """Number of samples of a batch or of a piece of one (0: a ``StandIn``): the length of dim 0 of its tensors and
    arrays, which must agree. Raises ``ConfigError`` for a batch that cannot be cut."""
    return 0 if isinstance(batch, StandIn) else _read(batch)[0]


def counts_tokens(batch: Batch, tokens_per_sample: int | None) -> bool:
    """Whether throughput counts tokens: ``tokens_per_sample`` exceeds 1 or, if it is None, the batch has ``input_ids``
    of shape [samples, tokens]."""
    if tokens_per_sample is not None:
        return tokens_per_sample > 1
    batch = contents(batch)
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return ids is not None and is_tensor(ids) and ids.dim() > 1


def tokens_in(batch: Batch, tokens_per_sample: int | None) -> int:
    """Number of tokens of a batch, or of samples if it has no tokens. ``tokens_per_sample`` None: read from the
    batch."""
    if tokens_per_sample is None and not isinstance(batch, StandIn) and counts_tokens(batch, None):
        tokens: int = contents(batch)["input_ids"].numel()
        return tokens
    return samples_in(batch) * (tokens_per_sample or 1)


def split(batch: Batch, parts: int, *, expected: int | None = None) -> list[Batch]:
    """Cut ``batch`` along dim 0 into ``parts`` parts of nearly equal size (views where possible), in order.

    Every container keeps its type. A list with one entry per sample (texts, ids, tensors of different lengths) is cut
    too; single numbers, texts and tensors without dimensions are kept whole. An empty part is a ``StandIn``.
    ``expected``: the number of samples to assume where lists of tensors allow several. Raises ``ConfigError`` for a
    batch that cannot be cut.
    """
    if isinstance(batch, StandIn):
        return [batch] * parts
    samples, layout, has_lists = _read(batch, expected)
    if not samples:
        raise ConfigError("the batch has no samples: its collate_fn must keep at least one", field="dataset")
    whole = contents(batch)

    def part(start: int, stop: int) -> Batch:
        found = whole if stop - start == samples else _cut(whole, layout, start, stop)
        return Piece(found, stop - start, layout) if has_lists else found

    edges = [samples * index // parts for index in range(parts + 1)]
    return [
        part(start, stop) if stop > start else StandIn(_cut(whole, layout, 0, 1)) for start, stop in pairwise(edges)
    ]


def _read(batch: Batch, expected: int | None = None) -> tuple[int, Layout, bool]:
    """Number of samples, how to cut them, and whether lists are cut that a piece alone would not show."""
    if isinstance(batch, Piece):
        return batch.samples, batch.layout, True
    sizes = _sizes(batch)
    if sizes is not None and _is_list(batch):
        sizes = _sizes_of_whole(batch, expected)
    if sizes is None:
        lengths = list(dict.fromkeys(_list_lengths(batch)))
        if len(lengths) != 1:
            raise ConfigError(f"the batch (a {type(batch).__name__}) contains no tensor", field="dataset")
        sizes = lengths
    if not sizes:
        shapes = ", ".join(f"{place or 'batch'} {tuple(array.shape)}" for place, array in arrays_in(batch))
        raise ConfigError(
            f"the tensors of a batch have shapes {shapes}: dim 0 of each must be the sample", field="dataset"
        )
    samples = expected if expected in sizes else sizes[0]
    lists: list[str] = []
    return samples, _layout(batch, samples, "batch", lists), bool(lists)


def _sizes(value: Any) -> list[int] | None:
    """Numbers of samples that the arrays in ``value`` allow, the likeliest first ([]: they contradict each other);
    None: it holds no array. A list is a container, all of whose entries agree, or it holds one entry per sample."""
    if is_array(value):
        return [value.shape[0]]
    held = entries(value)
    if held is None:
        return None
    if type(value).__name__ == "PackedSequence":
        _refuse(value, "part of the batch")
    found = [sizes for _, entry in held if (sizes := _sizes(entry)) is not None]
    if not found:
        return None
    common = [size for size in found[0] if all(size in sizes for sizes in found[1:])]
    if _is_list(value) and len(value) not in common:
        common.append(len(value))
    return common


def _sizes_of_whole(batch: Any, expected: int | None) -> list[int]:
    """As ``_sizes`` for a batch that is a list: one of samples, as ``collate_fn=list`` makes, has the expected length
    and entries that are alike; any other is a container."""
    held = entries(batch) or []
    sizes = _container_sizes(held)
    kinds = {(type(entry), getattr(entry, "dtype", None), getattr(entry, "ndim", 0)) for _, entry in held}
    return [*sizes, len(batch)] if len(batch) == expected and len(kinds) == 1 else sizes


def _list_lengths(value: Any) -> Iterable[int]:
    """Lengths of the outermost lists of a batch without arrays: of the batch itself only if it holds no other."""
    held = entries(value) or []
    inner = [len(entry) for _, entry in held if _is_list(entry) and entry]
    return inner or ([len(value)] if _is_list(value) and value else [])


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and not hasattr(value, "_fields") and entries(value) is not None


def _layout(value: Any, samples: int, place: str, lists: list[str]) -> Layout:
    """How ``value`` is cut; the places of lists that are cut or kept by their length are added to ``lists``."""
    if is_array(value):
        _check_array(value, place)
        return True
    held = entries(value)
    if held is None:
        if isinstance(value, Sized) and not isinstance(value, str | bytes) and _length(value) == samples:
            _refuse(value, place)
        return False
    if _is_list(value):
        sizes = _sizes(value)
        is_container = sizes is not None and samples in _container_sizes(held)
        if not is_container:
            lists.append(place)
            if len(value) == samples:
                return True
    return [_layout(entry, samples, place + name, lists) for name, entry in held]


def _container_sizes(held: list[tuple[str, Any]]) -> list[int]:
    found = [sizes for _, entry in held if (sizes := _sizes(entry)) is not None]
    return [size for size in found[0] if all(size in sizes for sizes in found[1:])]


def _length(value: Sized) -> int | None:
    try:
        return len(value)
    except TypeError:  # a tensor or an array without dimensions
        return None


def _check_array(array: Any, place: str) -> None:
    if is_tensor(array) and (array.is_nested or str(array.layout) != "torch.strided"):
        raise ConfigError(
            f"{place} is a {'nested' if array.is_nested else 'sparse'} tensor, which cannot be cut into samples: "
            "let the batch hold ordinary tensors, and make it in loss_fn",
            field="dataset",
        )


def _refuse(value: Any, place: str) -> None:
    raise ConfigError(
        f"{place} is a {type(value).__name__}, which cannot be cut into samples: let the batch hold tensors, arrays or "
        "lists, and make it in loss_fn",
        field="dataset",
    )


def _cut(value: Any, layout: Layout, start: int, stop: int) -> Any:
    if layout is True:
        part = value[start:stop]
        return type(value)(part) if _is_list(value) and type(part) is not type(value) else part
    if layout is False:
        return value
    held = entries(value) or []
    return rebuilt(value, [_cut(entry, one, start, stop) for (_, entry), one in zip(held, layout, strict=True)])
