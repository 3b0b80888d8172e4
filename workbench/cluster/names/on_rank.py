"""Runs on a rank: describes its variables, and completes words with them. Sends nothing to other ranks, and imports no
tensor library: a variable's own has been imported already."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import ModuleType
from typing import Any

from workbench.cluster.names.description import ANSWER, Description

#: elements of an array or tensor that are compared; of a larger one, so many at equal distances
_COMPARED = 2**20
#: containers in containers, and entries of all of them together, that are compared
_DEPTH, _ENTRIES = 4, 10_000
_SHOWN_CHARACTERS = 40
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def publish_descriptions(names: Sequence[str]) -> None:
    """Publish a description of each of the variables (none: of all that cells made, without modules)."""
    shell = _shell()
    chosen = names or [
        name
        for name, value in shell.user_ns.items()
        if not name.startswith("_") and name not in shell.user_ns_hidden and not isinstance(value, ModuleType)
    ]
    _publish({name: asdict(describe(shell.user_ns[name])) for name in chosen if name in shell.user_ns})


def publish_completions(word: str) -> None:
    """Publish what completes ``word``, a name or a dotted one, on this rank. Private names only after an underscore."""
    completer = _shell().Completer
    found = completer.attr_matches(word) if "." in word else completer.global_matches(word)
    private = word.rpartition(".")[2].startswith("_")
    _publish(sorted({name for name in found if private or not name.rpartition(".")[2].startswith("_")}))


def describe(value: Any) -> Description:
    """What is known about ``value``."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    known: dict[str, Any] = {"type": type(value).__name__}
    if torch is not None and isinstance(value, torch.Tensor):
        known |= _described_tensor(value)
    elif torch is not None and isinstance(value, torch.nn.Module):
        known |= _described_module(value)
    elif numpy is not None and isinstance(value, numpy.ndarray):
        known |= {"shape": str(value.shape), "dtype": str(value.dtype), "device": "cpu", "bytes": int(value.nbytes)}
    elif isinstance(value, _PLAIN):
        text = repr(value)
        known["value"] = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
    elif isinstance(value, Mapping | list | tuple | set | frozenset):
        known["shape"] = f"{len(value)} item{'' if len(value) == 1 else 's'}"
    digest = hashlib.blake2b(digest_size=16)
    if _Comparison(digest).add(value):
        known["fingerprint"] = digest.hexdigest()
    return Description(**known)


def _shell() -> Any:
    from IPython.core.getipython import get_ipython

    return get_ipython()


def _publish(answer: Any) -> None:
    from IPython.display import publish_display_data

    publish_display_data({ANSWER: answer})


def _described_tensor(tensor: Any) -> dict[str, Any]:
    is_number = tensor.numel() == 1 and not tensor.is_meta and not hasattr(tensor, "_local_tensor")
    return {
        "value": f"{tensor.item():.6g}" if is_number else "",
        "shape": str(tuple(tensor.shape)),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "device": str(tensor.device),
        "bytes": int(tensor.numel() * tensor.element_size()),
    }


def _described_module(module: Any) -> dict[str, Any]:
    parameters = list(module.parameters())
    count = sum(each.numel() for each in parameters)
    return {
        "shape": f"{count:,} parameter{'' if count == 1 else 's'}",
        "dtype": ", ".join(sorted({str(each.dtype).removeprefix("torch.") for each in parameters})),
        "device": ", ".join(sorted({str(each.device) for each in parameters})),
        "bytes": sum(each.numel() * each.element_size() for each in parameters),
    }


class _Comparison:
    """Adds values to ``digest``. ``add`` returns False for a value, or one inside of it, that cannot be compared."""

    def __init__(self, digest: Any) -> None:
        self._digest = digest
        self._entries = 0

    def add(self, value: Any, depth: int = _DEPTH) -> bool:
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        self._entries += 1
        if self._entries > _ENTRIES:
            return False
        self._digest.update(type(value).__name__.encode())
        if torch is not None and isinstance(value, torch.Tensor):
            return self._add_tensor(torch, value)
        if numpy is not None and isinstance(value, numpy.ndarray):
            return self._add_array(value)
        if torch is not None and isinstance(value, torch.nn.Module):
            value = dict(value.state_dict())
        if depth and isinstance(value, Mapping):
            value = [part for pair in value.items() for part in pair]
        if depth and isinstance(value, list | tuple):
            return all([self.add(part, depth - 1) for part in value])
        is_plain = isinstance(value, _PLAIN)
        self._digest.update(repr(value).encode() if is_plain else b"")
        return is_plain

    def _add_tensor(self, torch: Any, tensor: Any) -> bool:
        """A rank's own part of a tensor that is spread over ranks: the whole would be a collective."""
        local = getattr(tensor, "_local_tensor", tensor).detach()
        if local.layout != torch.strided or local.is_meta or local.is_quantized:
            return False
        self._digest.update(str((tuple(local.shape), local.dtype)).encode())
        if local.numel() > _COMPARED:
            places = torch.linspace(0, local.numel() - 1, _COMPARED, dtype=torch.float64).long().to(local.device)
            local = local.take(places)
        flat = local.resolve_conj().resolve_neg().contiguous().cpu().reshape(-1)
        self._digest.update(flat.view(torch.uint8).numpy().tobytes())
        return True

    def _add_array(self, array: Any) -> bool:
        if array.dtype.hasobject:
            return False
        self._digest.update(str((array.shape, array.dtype.str)).encode())
        step = -(-array.size // _COMPARED) or 1
        self._digest.update((array.reshape(-1)[::step] if step > 1 else array).tobytes())
        return True
