"""A packed data set as training reads it: samples by number, batches at once, any order without an array of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.ordered_samples import OrderedSamples, SampleOrder
from workbench.errors import ConfigError
from workbench.tokens.permutation import InOrder, Permutation
from workbench.tokens.shards import Index, Shard, check_sizes, read_index

if TYPE_CHECKING:
    import torch

_IGNORED = -100  # the label that losses of torch and transformers leave out


class TokenDataset(OrderedSamples):
    """Sequences of ``length`` tokens of a directory that ``workbench data pack`` made.

    ``dataset[i]`` is ``{"input_ids": int64 [length], "labels": int64 [length]}``, where labels are the ids themselves
    (a causal model of transformers shifts them). Files are mapped into memory and read where they are needed, by all
    ranks of a host from one copy in its page cache.

    With ``crossing`` a shard is cut into sequences wherever a text begins or ends, and its last tokens, fewer than
    ``length``, are left out. Without it a sequence holds tokens of one text only: a text is cut every ``length``
    tokens, what is left of it is filled up with token 0, and labels are -100 there.

    ``damaged``: a shard that is missing or has another size ends it ("stop") or is left out with a warning ("skip").
    Raises ``ConfigError`` for that, for a directory that is no packed data set, and for one without a whole sequence.
    """

    def __init__(self, directory: str | Path, length: int, *, crossing: bool = True, damaged: str = "stop") -> None:
        if not isinstance(length, int) or length < 2:
            raise ConfigError(f"length {length!r}: a sequence is a whole number of at least 2 tokens", field="length")
        if damaged not in ("stop", "skip"):
            raise ConfigError(f"damaged={damaged!r}: choose 'stop' or 'skip'", field="damaged")
        self.directory = Path(directory).expanduser().absolute()
        self.length = length
        self.crossing = crossing
        self.index = read_index(self.directory)
        shards = [_OpenShard(self.directory, shard, self.index, self) for shard in self._sound(damaged)]
        self._shards = [shard for shard in shards if shard.sequences]
        self._starts = np.cumsum([0, *(shard.sequences for shard in self._shards)])
        if not len(self):
            raise ConfigError(
                f"{self.directory} has {self.index.tokens:,} tokens in {len(self.index.shards)} shards, and no whole "
                f"sequence of {length}: choose a smaller length",
                field="length",
            )

    def _sound(self, damaged: str) -> Sequence[Shard]:
        wrong = check_sizes(self.directory, self.index)
        if wrong:
            why = next(iter(wrong.values()))
            more = f" ({len(wrong)} shards of {len(self.index.shards)})" if len(wrong) > 1 else ""
            if damaged == "stop" or len(wrong) == len(self.index.shards):
                raise ConfigError(
                    f"{self.directory}: {why}{more}: copy it again, pack it anew, or leave it out: damaged='skip'",
                    field="damaged",
                )
            warnings.warn(f"{self.directory}: {why}{more}: left out", stacklevel=3)
        return [shard for shard in self.index.shards if shard.name not in wrong]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in self.read_batch([range(len(self))[index]]).items()}

    def read_batch(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> dict[str, torch.Tensor]:
        """The samples ``indices`` as one batch, whose tensors have shape [samples, length]."""
        import torch

        places = np.asarray(indices, dtype=np.int64)
        if len(self._shards) == 1:
            ids, labels = self._shards[0].read(places)
        else:
            ids, labels = self._gather(places)
        found = torch.from_numpy(ids)
        return {"input_ids": found, "labels": found if labels is ids else torch.from_numpy(labels)}

    def _gather(self, places: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        ids = np.empty((len(places), self.length), dtype=np.int64)
        labels = ids if self.crossing else np.empty_like(ids)
        owners = np.searchsorted(self._starts, places, side="right") - 1
        for owner in set(owners.tolist()):
            rows = np.flatnonzero(owners == owner)
            ids[rows], labels[rows] = self._shards[owner].read(places[rows] - self._starts[owner])
        return ids, labels

    def sample_order(self, seed: int, epoch: int, shuffle: bool) -> SampleOrder:
        """The order in which an epoch reads the samples: ``Permutation`` with ``shuffle``, else one after another."""
        return Permutation(len(self), seed, epoch) if shuffle else InOrder(len(self))

    def __repr__(self) -> str:
        how = "" if self.crossing else ", crossing=False"
        return f"TokenDataset({str(self.directory)!r}, {self.length}{how}): {len(self):,} sequences"


class _OpenShard:
    """A shard and its sequences; its files are mapped when they are first read."""

    def __init__(self, directory: Path, about: Shard, index: Index, of: TokenDataset) -> None:
        self._path = directory / about.name
        self._dtype = f"<{np.dtype(index.dtype).str[1:]}"
        self._length = of.length
        self._crossing = of.crossing
        self._tokens: Any = None
        self._rows: Any = None
        self._begins: Any = None
        if of.crossing:
            self.sequences = about.tokens // of.length
        else:
            self._firsts = self._first_sequences()
            self.sequences = int(self._firsts[-1])

    def _ends(self) -> np.ndarray[Any, Any]:
        return np.fromfile(self._path.with_suffix(".ends"), dtype="<i8")

    def _first_sequences(self) -> np.ndarray[Any, Any]:
        """The number of the first sequence of each text, and of those after the last: texts + 1."""
        sizes = np.diff(self._ends(), prepend=0)
        return np.concatenate([[0], np.cumsum(-(-sizes // self._length))])

    def read(self, places: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Ids and labels of the sequences ``places``, each int64 [places, length]; one array where they are equal."""
        if self._tokens is None:
            self._tokens = np.memmap(self._path.with_suffix(".tokens"), dtype=self._dtype, mode="r")
            self._rows = (
                self._tokens[: self.sequences * self._length].reshape(-1, self._length) if self._crossing else None
            )
        if self._rows is not None:
            ids = self._rows[places].astype(np.int64)
            return ids, ids
        if self._begins is None:
            self._begins = np.concatenate([[0], self._ends()])
        ids = np.zeros((len(places), self._length), dtype=np.int64)
        labels = np.full_like(ids, _IGNORED)
        texts = np.searchsorted(self._firsts, places, side="right") - 1
        begins = self._begins[texts] + (places - self._firsts[texts]) * self._length
        ends = np.minimum(begins + self._length, self._begins[texts + 1])
        for row, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
            ids[row, : end - begin] = labels[row, : end - begin] = self._tokens[begin:end]
        return ids, labels
