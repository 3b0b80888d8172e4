"""Checkpoints in the format of ``torch.distributed.checkpoint`` (DCP): written for others, and read to begin from.

A directory that is written holds ``{"model": ..., "optim": ...}``, as ``get_state_dict`` of
``torch.distributed.checkpoint.state_dict`` returns them: whole tensors by qualified name, which ``dcp.load`` cuts to
the shards of whoever reads. One that is read may have any keys before the names.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from workbench.engine.state.checkpoint_files import ShardReader
from workbench.engine.state.layout import Place
from workbench.engine.state.plain_state import from_plain
from workbench.errors import ConfigError, RunDirectoryError
from workbench.rundir.checkpoints import DISTRIBUTED_INDEX

#: beside the classes of DCP itself, what the index of a DCP directory is made of
_PICKLED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


def write_distributed(checkpoint: Path, out: Path) -> None:
    """Write weights, buffers and optimizer state of ``checkpoint`` into the directory ``out``, whole, in one process.

    Raises ``RunDirectoryError`` for a damaged checkpoint, and ``ConfigError`` where the optimizer keeps tensors that
    other plans cannot read, or where the checkpoint does not say which of several groups a parameter is in.
    """
    reader = ShardReader(checkpoint)
    reader.verify(0, 1)
    names: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "buffers": {}}
    for key, entry in reader.tensors.items():
        kind, _, name = key.partition("/")
        if kind in names:
            reader.expect(key, tuple(entry["shape"]))
            names[kind][name] = _whole(reader, key)
    document = reader.index["state"]
    tied = {alias: names["weights"][name] for alias, name in document.get("tied", {}).items()}
    state = {
        "model": {**names["weights"], **tied, **names["buffers"]},
        "optim": {"state": _states(reader, names["weights"]), "param_groups": _groups(reader, names["weights"])},
    }
    dcp.save(state, checkpoint_id=out, no_dist=True)


def _whole(reader: ShardReader, key: str) -> torch.Tensor:
    shape = reader.tensors[key]["shape"]
    return reader.part(key, Place.whole(shape)).reshape(shape).clone()


def _states(reader: ShardReader, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Of each parameter that has one, the optimizer's state."""
    found = {
        name: {key: _whole(reader, f"optimizer/{name}/{key}") for key in reader.optimizer_states(name)}
        for name in names
    }
    for rank in range(reader.index["ranks"]):
        state, tensors = reader.own(rank)
        kept = [key.split("/", 1)[1] for key in tensors.keys() if key.startswith("own/")]  # noqa: SIM118
        if kept:
            raise ConfigError(
                f"the optimizer keeps {kept[0]} in a form that only the plan of this run can read, so it is not "
                "exported: torch.save(run.state_dict(), FILE) writes the weights",
                field="--to",
            )
        for name, values in state["optimizer"].items():
            found[name].update({key: from_plain(value) for key, value in values.items()})
    return {name: state for name, state in found.items() if state}


def _groups(reader: ShardReader, names: Iterable[str]) -> list[dict[str, Any]]:
    """The optimizer's groups: their options, and the names of their parameters."""
    options = [{key: from_plain(value) for key, value in each.items()} for each in reader.index["state"]["groups"]]
    known: dict[str, int] = {}
    for rank in range(reader.index["ranks"]):
        known |= reader.own(rank)[0].get("groups", {})
    if not known and len(options) > 1:
        raise ConfigError(
            f"{reader.path} was written by an earlier version, which did not record which of the {len(options)} "
            "parameter groups a weight is in: continue it with --resume, and export a checkpoint of that run",
            field="--to",
        )
    known = known or dict.fromkeys(names, 0)
    params = [[name for name in names if known.get(name) == number] for number in range(len(options))]
    return [{**own, "params": held} for own, held in zip(options, params, strict=True)]


class _PlainUnpickler(pickle.Unpickler):
    """Makes what the index of a DCP directory is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        is_own = isinstance(found, type) and found.__module__.startswith("torch.distributed.checkpoint")
        if is_own or (module, name) in _PICKLED or (module == "torch" and isinstance(found, torch.dtype)):
            return found
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no such index needs")


class _Storage(dcp.FileSystemReader):
    """Reads the index once, without running what it may ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with (path / DISTRIBUTED_INDEX).open("rb") as file:
            self._index: Metadata = _PlainUnpickler(file).load()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._index


class DistributedReader:
    """Reads any part of any tensor of a DCP directory, by the names of a model: as ``ShardReader``.

    ``names``: of parameters and buffers. The keys before them, such as ``model.``, are found by these names.
    ``optimizer_keys``: what the optimizer keeps for a parameter, of which a part is of no use. Raises
    ``RunDirectoryError`` for a directory that cannot be read.
    """

    def __init__(self, path: Path, names: Collection[str], optimizer_keys: Collection[str]) -> None:
        self.path = path
        try:
            self._storage = _Storage(path)
            stored = self._storage.read_metadata().state_dict_metadata
        except (OSError, pickle.UnpicklingError, AttributeError, EOFError, ImportError) as error:
            raise RunDirectoryError(
                f"{path} is not a readable torch.distributed.checkpoint directory: {error}"
            ) from error
        found = {key: entry for key, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
        self._prefix = _prefix(found, names)
        known = {name: self._prefix + name for name in names if self._prefix + name in found}
        self._keys = {f"{kind}/{name}": key for kind in ("weights", "buffers") for name, key in known.items()}
        states: dict[str, dict[str, str]] = defaultdict(dict)
        for key, entry in found.items():
            _, is_state, rest = f".{key}".partition(".state.")
            name, _, last = rest.rpartition(".")
            whole = found.get(self._prefix + name)
            if is_state and last in optimizer_keys and whole is not None and entry.size in (whole.size, torch.Size()):
                states[name][last] = key
        self._states = {name: list(keys) for name, keys in states.items() if keys.keys() == set(optimizer_keys)}
        for name in self._states:
            self._keys |= {f"optimizer/{name}/{last}": key for last, key in states[name].items()}
        self.tensors: Mapping[str, Any] = {key: {"shape": list(found[own].size)} for key, own in self._keys.items()}
        self._dtypes = {own: found[own].properties.dtype for own in self._keys.values()}

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """As ``ShardReader.expect``."""
        entry, (_, _, parameter) = self.tensors.get(name), name.partition("/")
        if entry is None:
            raise ConfigError(
                f"{self.path} has no {self._prefix}{parameter}: it was written for another model, or under other names",
                field="--resume",
            )
        if tuple(entry["shape"]) != shape:
            raise ConfigError(
                f"{parameter} is {tuple(entry['shape'])} in {self.path} and {shape} in this model", field="--resume"
            )

    def optimizer_states(self, parameter: str) -> list[str]:
        """As ``ShardReader.optimizer_states``."""
        return self._states.get(parameter, [])

    def part(self, name: str, place: Place) -> torch.Tensor:
        """As ``ShardReader.part``."""
        key = self._keys[name]
        whole = torch.empty(self.tensors[name]["shape"], dtype=self._dtypes[key])
        dcp.load({key: whole}, storage_reader=self._storage, no_dist=True)
        return place.of(whole)


def _prefix(stored: Collection[str], names: Collection[str]) -> str:
    """What stands before the names: that under which most of them are found, the shortest of several."""
    first = next(iter(names))
    candidates = {key.removesuffix(first) for key in stored if key == first or key.endswith(f".{first}")}
    counts = {prefix: sum(prefix + name in stored for name in names) for prefix in candidates}
    return max(sorted(counts, key=len), key=lambda prefix: counts[prefix], default="")
