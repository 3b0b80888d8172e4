"""The vocabulary of a run: every typed record that crosses a process or a file.

A rank appends these to one Arrow table per record type (``TABLES``). ``docs/run-directory.md`` shows the same columns;
a test keeps them equal. Times are seconds since the epoch on the host that wrote them. Steps count from 1; step 0 means
"before the first step".

``steps`` has what a step did, ``statistics`` what was measured inside the model, ``events`` what happened and what
people asked for.
"""

from __future__ import annotations

from dataclasses import fields

from workbench.core.records.events import (
    END_STATES,
    RESTARTING,
    SCHEMA_VERSION,
    SESSION_RANK,
    Command,
    Event,
    EventKind,
)
from workbench.core.records.statistics import (
    ActivationStats,
    AttentionStats,
    GradientSketch,
    GradientStats,
    HistogramStats,
    LayerNorms,
    RouterStats,
    SpectralStats,
    WeightStats,
)
from workbench.core.records.steps import (
    CollectiveRecord,
    DeviceSample,
    MediaRecord,
    PhaseRecord,
    StepRecord,
    ValueRecord,
)

__all__ = [
    "END_STATES",
    "RESTARTING",
    "SCHEMA_VERSION",
    "SESSION_RANK",
    "STEP_TABLES",
    "TABLES",
    "ActivationStats",
    "AttentionStats",
    "CollectiveRecord",
    "Command",
    "DeviceSample",
    "Event",
    "EventKind",
    "GradientSketch",
    "GradientStats",
    "HistogramStats",
    "LayerNorms",
    "MediaRecord",
    "PhaseRecord",
    "Record",
    "RouterStats",
    "SpectralStats",
    "StepRecord",
    "ValueRecord",
    "WeightStats",
    "columns_of",
]

Record = (
    StepRecord
    | DeviceSample
    | GradientStats
    | LayerNorms
    | HistogramStats
    | GradientSketch
    | WeightStats
    | ActivationStats
    | AttentionStats
    | RouterStats
    | SpectralStats
    | PhaseRecord
    | CollectiveRecord
    | ValueRecord
    | MediaRecord
    | Event
)

#: table name (also the file's stem in a rank's directory) -> record type
TABLES: dict[str, type] = {
    "steps": StepRecord,
    "devices": DeviceSample,
    "gradients": GradientStats,
    "layer_norms": LayerNorms,
    "histograms": HistogramStats,
    "sketches": GradientSketch,
    "weights": WeightStats,
    "activations": ActivationStats,
    "attention": AttentionStats,
    "routers": RouterStats,
    "spectra": SpectralStats,
    "phases": PhaseRecord,
    "collectives": CollectiveRecord,
    "values": ValueRecord,
    "media": MediaRecord,
    "events": Event,
}

#: tables whose rows are of a step of training, which a rollback takes back
STEP_TABLES = tuple(table for table in TABLES if table not in ("devices", "events"))

_KINDS = {"float": "f8", "int": "i8", "str": "U", "bool": "?", "list[int]": "L", "list[float]": "F"}


def columns_of(table: str) -> dict[str, str]:
    """Column name -> kind ("f8", "i8", "U" text, "?" bool, "L" list of integers, "F" list of single floats) of a table,
    in file order."""
    return {f.name: _KINDS[str(f.type)] for f in fields(TABLES[table])}
