"""A run as exports read it: its tables whole, its metrics, its histograms over shards."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workbench.core.columns import Columns
from workbench.core.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.core.mesh import AXES, Mesh
from workbench.core.records import EventKind
from workbench.events.decode import as_number, decode
from workbench.history import logs
from workbench.rundir.directory import CELL_FILE
from workbench.telemetry.derive import cumulative_tokens, metrics_frame
from workbench.telemetry.flops import cost_of


class Source:
    """A run directory, read once per table; ``steps``: first and last step that count (None: all).

    Raises ``ConfigError`` when the spec cannot be read.
    """

    def __init__(self, path: Path, steps: tuple[int, int] | None = None) -> None:
        self.path = path
        self.steps = steps
        self.spec = TrainSpec.from_options(read_spec_options(path / SPEC_FILE))
        self.spec_text = (path / SPEC_FILE).read_text(encoding="utf-8", errors="replace")
        cell = path / CELL_FILE
        self.cell = cell.read_text(encoding="utf-8", errors="replace") if cell.exists() else ""

    @property
    def mesh(self) -> Mesh:
        """The mesh of the run's plan."""
        return self.spec.plan.mesh

    def arrow(self, table: str) -> pa.Table:
        """A table of the log. ``RunDirectoryError`` when a log cannot be read."""
        found = logs.read_table(self.path, table)
        if self.steps is not None:
            first, last = self.steps
            found = found.filter(pc.and_(pc.greater_equal(found["step"], first), pc.less_equal(found["step"], last)))
        return found

    def columns(self, table: str) -> Columns:
        """The same as NumPy columns."""
        found = self.arrow(table)
        return {name: found.column(name).to_numpy() for name in found.column_names}

    @cached_property
    def metrics(self) -> Columns:
        """The columns of ``Run.metrics()``, and ``tokens``: consumed so far by all replicas."""
        cost = cost_of(self.columns("events"), self.mesh.world_size)
        frame = metrics_frame(self.columns("steps"), self.mesh, cost=cost)
        found = {name: frame[name].to_numpy() for name in frame}
        return {**found, "tokens": cumulative_tokens(found, self.mesh.world_size)}

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Events in order of time, values decoded."""
        rows = self.arrow("events").to_pylist()
        for row in rows:
            row["value"], row["old_value"] = decode(row["value"]), decode(row["old_value"])
        return sorted(rows, key=lambda row: row["time"])

    def validation(self) -> list[tuple[float, int, str, float]]:
        """Validation values that are numbers: time, step, name, value."""
        return [
            (row["time"], row["step"], row["name"], as_number(row["value"]))
            for row in self.events
            if row["kind"] == EventKind.VALIDATION
            and isinstance(row["value"], (int, float))
            and not isinstance(row["value"], bool)
        ]

    def samples(self) -> list[tuple[float, int, str]]:
        """What the model wrote: time, step, text."""
        return [(row["time"], row["step"], str(row["value"])) for row in self.events if row["kind"] == EventKind.SAMPLE]

    @cached_property
    def time_of_step(self) -> dict[int, float]:
        """When a step was over on its slowest rank."""
        return dict(zip(self.metrics["step"].astype(int).tolist(), self.metrics["time"].tolist(), strict=True))

    @cached_property
    def layer_norms(self) -> list[tuple[int, str, str, float]]:
        """L2 norms of whole layers, those that are numbers: step, what, layer, norm. What: ``gradient norm`` (reduced
        over ranks), ``weight norm``, ``update norm`` (of the last update)."""
        from workbench.telemetry.gradients import combine, combine_weights

        gradients = combine(self.columns("gradients"), self.mesh)
        gradients = gradients[gradients["scope"] == "reduced"].drop_duplicates(["step", "layer"])
        weights = combine_weights(self.columns("weights"), self.mesh)
        found: list[tuple[int, str, str, float]] = []
        for what, rows, column in (
            ("gradient norm", gradients, "norm"),
            ("weight norm", weights, "weight_norm"),
            ("update norm", weights, "update_norm"),
        ):
            known = rows[np.isfinite(rows[column].to_numpy(dtype=float))]
            layers = [str(layer) or "model" for layer in known["layer"]]
            found += zip(known["step"].tolist(), [what] * len(layers), layers, known[column].tolist(), strict=True)
        return found

    def histograms(self) -> list[tuple[int, str, int, list[int]]]:
        """Magnitudes of the reduced gradient: step, layer, zeros, and counts by exponent, as (first exponent, counts).

        Shards are summed, replicated parts counted once, as in ``telemetry.gradients.combine``. Given as (step, layer,
        first exponent, [zeros, count, count ...]).
        """
        seen: set[tuple[Any, ...]] = set()
        sums: dict[tuple[int, str], dict[int, int]] = {}
        zeros: dict[tuple[int, str], int] = {}
        rows = self.arrow("histograms").to_pylist()
        for row in sorted(rows, key=lambda row: row["rank"]):
            if row["scope"] != "reduced":
                continue
            here = self.mesh.coordinates(row["rank"])
            apart = {*row["sharded"].split("+"), "pp"}
            part = (row["step"], row["layer"], *(getattr(here, axis) for axis in AXES if axis in apart))
            if part in seen:
                continue  # the same elements, held by another rank too
            seen.add(part)
            key = (row["step"], row["layer"])
            zeros[key] = zeros.get(key, 0) + row["zero_count"]
            buckets = sums.setdefault(key, {})
            for place, count in enumerate(row["counts"]):
                exponent = row["first_exponent"] + place
                buckets[exponent] = buckets.get(exponent, 0) + count
        out = []
        for key, buckets in sums.items():
            first = min(buckets, default=0)
            counts = [buckets.get(e, 0) for e in range(first, max(buckets, default=first - 1) + 1)]
            out.append((key[0], key[1], first, [zeros[key], *counts]))
        return out


def bucket_sums(first_exponent: int, counts: list[int]) -> tuple[list[float], float, float]:
    """Upper limits of the buckets, and estimates of the sum and the sum of squares of the magnitudes.

    A bucket [2**e, 2**(e+1)) counts at its geometric middle, 2**(e + 0.5): within a factor of sqrt(2).
    """
    exponents = np.arange(first_exponent, first_exponent + len(counts), dtype=float)
    middles = np.exp2(exponents + 0.5)
    weights = np.asarray(counts, dtype=float)
    limits = np.exp2(exponents + 1).tolist()
    return limits, float((weights * middles).sum()), float((weights * middles**2).sum())
