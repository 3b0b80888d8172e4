"""Reads and writes the files of a checkpoint: sharded safetensors, an index of shards, and checksums; no pickle."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from workbench.core.config import ParallelPlan
from workbench.engine.state.base_weights import BaseWeights, check_files
from workbench.engine.state.layout import Place
from workbench.errors import ConfigError, RunDirectoryError
from workbench.rundir import checkpoints
from workbench.rundir.checkpoints import FORMAT, INDEX_FILE

#: errors that writing a checkpoint can raise; safetensors wraps disk errors in its own type
WRITE_ERRORS = (OSError, SafetensorError)


def rank_file(rank: int, kind: str) -> str:
    """Name of a rank's file, such as ``rank-00000.safetensors``; ``kind``: "safetensors" or "json"."""
    return f"rank-{rank:05d}.{kind}"


class ShardWriter:
    """Writes one rank's shards: ``add`` tensors, then ``write`` the tensor file and its JSON description."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._directory = directory
        self._rank = rank
        self._tensors: dict[str, torch.Tensor] = {}
        self._entries: dict[str, Any] = {}

    def add(self, name: str, tensor: torch.Tensor, place: Place | None = None) -> None:
        """Add ``tensor``, the shard at ``place`` of the whole tensor ``name``; None: private to this rank. It is stored
        in the shape of its place, whatever shape the rank has it in."""
        self._tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        if place is not None:
            self._tensors[name] = self._tensors[name].view(place.part_shape)
            dtype = str(tensor.dtype).removeprefix("torch.")
            self._entries[name] = {"dtype": dtype, **asdict(place)}

    def write(self, state: dict[str, Any]) -> None:
        """Write both files and flush them to disk, the description last, with the checksum of the other.

        ``state``: JSON types. Raises one of ``WRITE_ERRORS``.
        """
        tensors = self._directory / rank_file(self._rank, "safetensors")
        save_file(self._tensors, tensors)
        checkpoints.sync(tensors)
        document = {"state": state, "tensors": self._entries, "files": {tensors.name: _checksum(tensors)}}
        _write_json(self._directory / rank_file(self._rank, "json"), document)


def _checksum(file: Path) -> dict[str, Any]:
    return {"sha256": checkpoints.digest(file), "bytes": file.stat().st_size}


def _write_json(file: Path, document: dict[str, Any]) -> None:
    """Write the file whole or not at all: who waits for it reads it as soon as it is there."""
    part = file.with_name(f".{file.name}")
    part.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    checkpoints.sync(part)
    part.rename(file)


def write_index(
    directory: Path,
    *,
    step: int,
    ranks: int,
    plan: ParallelPlan,
    state: dict[str, Any],
    asked: bool,
    best: dict[str, Any] | None = None,
    base: BaseWeights | None = None,
) -> None:
    """Write the index of a checkpoint: the shards of every tensor, and a checksum per file; those of tensors are what
    each rank found. ``base``: where the tensors are that no rank has written."""
    tensors: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for rank in range(ranks):
        description = directory / rank_file(rank, "json")
        document = json.loads(description.read_text(encoding="utf-8"))
        files |= {description.name: _checksum(description), **document["files"]}
        for name, entry in document["tensors"].items():
            whole = tensors.setdefault(name, {"shape": entry["shape"], "dtype": entry["dtype"], "shards": []})
            shard = {"file": rank_file(rank, "safetensors"), "dim": entry["dim"], "runs": entry["runs"]}
            whole["shards"].append(shard)
    elsewhere = {"tensors": {}, "files": {}} if base is None else base.in_index(tensors)
    index = {
        "format": FORMAT,
        "step": step,
        "saved_at": time.time(),
        "asked": asked,
        **({} if best is None else {"best": best}),
        "ranks": ranks,
        "plan": asdict(plan),
        "state": state,
        "tensors": {**tensors, **elsewhere["tensors"]},
        "files": dict(sorted(files.items())),
        "base_files": elsewhere["files"],
    }
    _write_json(directory / INDEX_FILE, index)


class ShardReader:
    """Reads any part of any tensor of a checkpoint, whatever plan wrote it. Call ``verify`` first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = checkpoints.read_index(path)
        self.tensors: dict[str, Any] = self.index["tensors"]
        self._opened: dict[str, Any] = {}
        self._states: dict[str, list[str]] = defaultdict(list)
        for name in self.tensors:
            if name.startswith("optimizer/"):
                parameter, _, key = name.removeprefix("optimizer/").rpartition("/")
                self._states[parameter].append(key)

    def verify(self, turn: int, turns: int) -> None:
        """Check the checksums of every ``turns``-th file, beginning with number ``turn``, and that the files of a
        pretrained model that frozen weights are taken from are what they were.

        Raises ``RunDirectoryError`` that names a damaged file.
        """
        checkpoints.verify(self.path, sorted(self.index["files"])[turn::turns])
        base = self.index.get("base_files", {})
        check_files(self.path, {name: base[name] for name in sorted(base)[turn::turns]})

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ``ConfigError`` unless the checkpoint has a tensor of this name and shape, and ``RunDirectoryError``
        unless all of its elements are there."""
        entry = self.tensors.get(name)
        kind, _, parameter = name.partition("/")
        if entry is None:
            raise ConfigError(
                f"the checkpoint {self.path} has no {parameter} in its {kind}: it was made for another model"
            )
        if tuple(entry["shape"]) != shape:
            raise ConfigError(
                f"{parameter} is {tuple(entry['shape'])} in the checkpoint {self.path} and {shape} in this model"
            )
        if "base" in entry:
            return
        places = [self._place(entry, shard) for shard in entry["shards"]]
        if not any(place.is_whole for place in places):
            found, wanted = sum(place.numel for place in places), torch.Size(shape).numel()
            if found != wanted:
                raise RunDirectoryError(f"{self.path} holds {found} of the {wanted} elements of {parameter}")

    def optimizer_states(self, parameter: str) -> list[str]:
        """Names of the optimizer's state tensors of a parameter, such as "exp_avg"."""
        return self._states.get(parameter, [])

    def part(self, name: str, place: Place) -> torch.Tensor:
        """Return the elements at ``place`` of a tensor: directly if one shard has this place, else from all shards."""
        entry = self.tensors[name]
        if "base" in entry:
            return place.of(self._open(entry["base"]["file"]).get_tensor(entry["base"]["name"]).to(torch.float32))
        for shard in entry["shards"]:
            if self._place(entry, shard) == place:
                return self._open(shard["file"]).get_tensor(name)
        return place.of(self._whole(name, entry))

    def _whole(self, name: str, entry: dict[str, Any]) -> torch.Tensor:
        whole = torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        for shard in entry["shards"]:
            self._place(entry, shard).put(self._open(shard["file"]).get_tensor(name), whole)
        return whole

    @staticmethod
    def _place(entry: dict[str, Any], shard: dict[str, Any]) -> Place:
        runs = tuple((first, length) for first, length in shard["runs"])
        return Place(tuple(entry["shape"]), shard["dim"], runs)

    def own(self, rank: int) -> tuple[dict[str, Any], Any]:
        """A rank's private state as JSON types, and its open tensor file (``get_tensor(name)``, ``keys()``)."""
        document = json.loads((self.path / rank_file(rank, "json")).read_text(encoding="utf-8"))
        return document["state"], self._open(rank_file(rank, "safetensors"))

    def _open(self, file: str) -> Any:
        if file not in self._opened:
            self._opened[file] = safe_open(self.path / file, framework="pt", device="cpu")
        return self._opened[file]
