"""The vocabulary of a run: every typed record that crosses a process or a file.

A rank appends these to one Arrow table per record type (``TABLES``). The page "Files of a run directory" in the
README shows the same columns; a test keeps them equal. Times are seconds since the epoch on the host that wrote
them. Steps count from 1; step 0 means "before the first step".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any

SCHEMA_VERSION = 1

#: rank number in records written by the session (the notebook's side), which is no rank
SESSION_RANK = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step as one rank saw it.

    ``loss`` is the mean over this rank's own share of the batch; NaN where the rank has none (a pipeline stage that is
    not the last). ``grad_sq`` is this rank's share of the squared L2 norm of the reduced gradient before clipping:
    the sum over all ranks is the squared global norm (each parameter element counted once). ``tokens`` is how many
    tokens (samples, where a model has no tokens) this rank's data-parallel replica consumed. ``skipped`` marks a step
    that the loss scaler dropped.
    """

    time: float
    step: int
    rank: int
    loss: float
    lr: float
    grad_sq: float
    tokens: int
    step_time_ms: float
    data_wait_ms: float
    skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """What a rank used at one moment. GPU columns are NaN without a GPU, and ``device`` says "cpu".

    ``cpu_percent`` is of one core (two busy threads: 200). Byte counters of network and disk are the host's network
    and this process' disk traffic since the rank started.
    """

    time: float
    rank: int
    step: int
    phase: str
    cpu_percent: float
    rss_bytes: int
    threads: int
    net_sent_bytes: int
    net_received_bytes: int
    disk_read_bytes: int
    disk_write_bytes: int
    device: str
    gpu_percent: float = math.nan
    gpu_memory_bytes: float = math.nan
    gpu_power_watts: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientStats:
    """Sums over one rank's part of one layer's gradient: what a reader needs to combine shards exactly.

    ``scope`` is "local" (this data-parallel rank's own batch share, before reduction; loss scale removed) or "reduced"
    (averaged over data-parallel ranks, before clipping). ``layer`` is the qualified name of the module that owns the
    parameters in the user's own model ("" for parameters of the root). ``sharded`` names the mesh axes over which the
    elements counted here are split ("", "tp", "dp", "dp+tp"); along every other axis of the layer's ranks the same
    numbers are replicated. ``telemetry.gradients.combine`` turns rows into norm, max_abs, mean, zero_fraction.
    ``sum``, ``sum_sq`` and ``max_abs`` are over finite elements.
    """

    step: int
    rank: int
    layer: str
    scope: str
    sharded: str
    numel: int
    sum: float
    sum_sq: float
    max_abs: float
    zero_count: int
    nonfinite_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. ``value`` and ``old_value`` are JSON texts (a number, a string, a matrix).

    Kinds: ``state`` (name: starting, running, finished, stopped, failed), ``control`` (name: what was set),
    ``validation`` (name: loss, accuracy, bits_per_byte, confusion_matrix), ``sample`` (name: text), ``warning``,
    ``log`` (name: dropped; value: how many records did not fit), ``rank`` (name: died).
    """

    time: float
    step: int
    rank: int
    kind: str
    name: str
    value: str = "null"
    old_value: str = "null"


Record = StepRecord | DeviceSample | GradientStats | Event

#: table name (also the file's stem in a rank's directory) -> record type
TABLES: dict[str, type] = {
    "steps": StepRecord,
    "devices": DeviceSample,
    "gradients": GradientStats,
    "events": Event,
}

_KINDS = {"float": "f8", "int": "i8", "str": "U", "bool": "?"}


def columns_of(table: str) -> dict[str, str]:
    """Column name -> kind ("f8", "i8", "U" text, "?" bool) of a table, in file order."""
    return {f.name: _KINDS[str(f.type)] for f in fields(TABLES[table])}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One line of ``control.jsonl``: what a person asked, when, and who. Rank 0 reads it; all ranks apply it."""

    time: float
    name: str
    value: Any = None
    who: str = ""
    id: int = 0

    def to_line(self) -> str:
        """One JSON line, newline included; one ``write`` of it is atomic for the reader."""
        record = {"v": SCHEMA_VERSION, "id": self.id, "time": self.time, "name": self.name, "value": self.value}
        return json.dumps({**record, "who": self.who}, allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Command:
        """Parse one line; ``ValueError`` for another schema version or a line that is no command."""
        data = json.loads(line)
        if not isinstance(data, dict) or data.pop("v", None) != SCHEMA_VERSION or "name" not in data:
            raise ValueError(f"not a command of schema version {SCHEMA_VERSION}: {line[:80]!r}")
        return cls(**data)
