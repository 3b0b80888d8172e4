"""Reads a run directory for an export: tables, metrics, events, norms of layers and histograms of gradients."""

from __future__ import annotations

import math
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
from workbench.telemetry.logged.curves import curves
from workbench.telemetry.logged.media import Logged, media
from workbench.telemetry.rollbacks import validated, without_taken_back


class ExportSource:
    """The run to export. ``steps``: the first and the last step to read (None: all steps).

    Raises ``ConfigError`` if the spec cannot be read.
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
        """A table of the logs of all ranks. Raises ``RunDirectoryError`` if a log cannot be read."""
        rows = logs.read_table(self.path, table)
        if self.steps is not None:
            first, last = self.steps
            rows = rows.filter(pc.and_(pc.greater_equal(rows["step"], first), pc.less_equal(rows["step"], last)))
        return rows

    def columns(self, table: str) -> Columns:
        """A table of the logs as NumPy columns."""
        return _columns(self.arrow(table))

    @cached_property
    def metrics(self) -> Columns:
        """The columns of ``Run.metrics()``, and ``tokens``: the tokens that all replicas have consumed so far."""
        events = _columns(logs.read_table(self.path, "events"))
        cost, logged = cost_of(events, self.mesh.world_size), self._logged("values")
        frame = metrics_frame(self.columns("steps"), self.mesh, cost=cost, events=events, logged=logged)
        columns = {name: frame[name].to_numpy() for name in frame}
        return {**columns, "tokens": cumulative_tokens(columns, self.mesh.world_size)}

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The events in order of time, with decoded values."""
        rows = self.arrow("events").to_pylist()
        for row in rows:
            row["value"], row["old_value"] = decode(row["value"]), decode(row["old_value"])
        return sorted(rows, key=lambda row: row["time"])

    def validation(self) -> list[tuple[float, int, str, float]]:
        """The numeric validation metrics, without what a rollback took back: (time, step, name, value)."""
        first, last = self.steps or (0, math.inf)
        found = validated(_columns(logs.read_table(self.path, "events")))
        return [
            (event.time, event.step, event.name, as_number(event.value))
            for event in sorted(found, key=lambda event: event.time)
            if first <= event.step <= last
        ]

    @cached_property
    def logged_values(self) -> list[tuple[float, int, str, float]]:
        """What the cell logged with ``log``: (time, step, name, value); the name with its rank where ranks are not
        combined. Sorted by step."""
        start = float(self.metrics["time"][0]) if self.metrics["time"].size else 0.0
        found = [
            (self.time_of_step.get(step, start), step, f"log/{curve.label}", value)
            for curve in curves(self._logged("values"), self.mesh)
            for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
        ]
        return sorted(found, key=lambda row: row[1])

    def _logged(self, table: str) -> Columns:
        """What the cell logged, without what a rollback took back, of the steps to export."""
        rows, events = (_columns(logs.read_table(self.path, name)) for name in (table, "events"))
        rows = without_taken_back(table, rows, events)
        if self.steps is None:
            return rows
        wanted = (rows["step"] >= self.steps[0]) & (rows["step"] <= self.steps[1])
        return {name: values[wanted] for name, values in rows.items()}

    def logged_media(self) -> list[tuple[float, Logged]]:
        """The images and texts that the cell logged, each with its time."""
        start = float(self.metrics["time"][0]) if self.metrics["time"].size else 0.0
        found = media(self._logged("media"), self.path)
        return [(self.time_of_step.get(one.step, start), one) for one in found]

    def samples(self) -> list[tuple[float, int, str]]:
        """The texts generated by the model: (time, step, text)."""
        return [(row["time"], row["step"], str(row["value"])) for row in self.events if row["kind"] == EventKind.SAMPLE]

    @cached_property
    def time_of_step(self) -> dict[int, float]:
        """Step -> the time at which its slowest rank completed it."""
        return dict(zip(self.metrics["step"].astype(int).tolist(), self.metrics["time"].tolist(), strict=True))

    @cached_property
    def layer_norms(self) -> list[tuple[int, str, str, float]]:
        """L2 norms of whole layers: (step, kind, layer, norm). Norms that are not finite are left out.

        ``kind``: ``gradient norm`` (of the reduced gradient), ``weight norm``, ``update norm`` (of the last update);
        with ``--watch weights`` also ``largest singular value`` and ``stable rank`` of each weight.
        """
        from workbench.telemetry.gradients import combine, combine_weights
        from workbench.telemetry.inside.spectra import combine_spectra
        from workbench.telemetry.layer_norms import LayerLists, with_norms

        lists = LayerLists().read(self.columns("events"))
        rows = with_norms(self.columns("gradients"), self.columns("layer_norms"), lists, self.mesh)
        gradients = combine(rows, self.mesh)
        gradients = gradients[gradients["scope"] == "reduced"].drop_duplicates(["step", "layer"])
        weights = combine_weights(self.columns("weights"), self.mesh)
        spectra = combine_spectra(self.columns("spectra"))
        norms: list[tuple[int, str, str, float]] = []
        for kind, rows, column in (
            ("gradient norm", gradients, "norm"),
            ("weight norm", weights, "weight_norm"),
            ("update norm", weights, "update_norm"),
            ("largest singular value", spectra, "sigma_max"),
            ("stable rank", spectra, "stable_rank"),
        ):
            finite = rows[np.isfinite(rows[column].to_numpy(dtype=float))]
            layers = [str(layer) or "model" for layer in finite["layer"]]
            norms += zip(finite["step"].tolist(), [kind] * len(layers), layers, finite[column].tolist(), strict=True)
        return norms

    def histograms(self) -> list[tuple[int, str, int, list[int]]]:
        """Histograms of the magnitudes of the reduced gradient: (step, layer, first exponent, counts).

        ``counts[0]`` is the number of zeros. ``counts[1 + i]`` is the number of magnitudes in the bucket
        [2**e, 2**(e+1)), where e is the first exponent plus i. Shards of a layer are added up; elements that several
        ranks hold are counted once, as in ``telemetry.gradients.combine``.
        """
        seen: set[tuple[Any, ...]] = set()
        sums: dict[tuple[int, str], dict[int, int]] = {}
        zeros: dict[tuple[int, str], int] = {}
        rows = self.arrow("histograms").to_pylist()
        for row in sorted(rows, key=lambda row: row["rank"]):
            if row["scope"] != "reduced":
                continue
            coordinates = self.mesh.coordinates(row["rank"])
            sharded_axes = {*row["sharded"].split("+"), "pp"}
            shard = (row["step"], row["layer"], *(getattr(coordinates, axis) for axis in AXES if axis in sharded_axes))
            if shard in seen:
                continue  # another rank holds the same elements
            seen.add(shard)
            key = (row["step"], row["layer"])
            zeros[key] = zeros.get(key, 0) + row["zero_count"]
            buckets = sums.setdefault(key, {})
            for index, count in enumerate(row["counts"]):
                exponent = row["first_exponent"] + index
                buckets[exponent] = buckets.get(exponent, 0) + count
        histograms = []
        for key, buckets in sums.items():
            first = min(buckets, default=0)
            counts = [buckets.get(e, 0) for e in range(first, max(buckets, default=first - 1) + 1)]
            histograms.append((key[0], key[1], first, [zeros[key], *counts]))
        return histograms


def estimate_bucket_sums(first_exponent: int, counts: list[int]) -> tuple[list[float], float, float]:
    """The upper limits of the buckets, and estimates of the sum and the sum of squares of the magnitudes.

    Every magnitude in the bucket [2**e, 2**(e+1)) is taken to be its geometric middle, 2**(e + 0.5), so each is
    estimated within a factor of sqrt(2).
    """
    exponents = np.arange(first_exponent, first_exponent + len(counts), dtype=float)
    middles = np.exp2(exponents + 0.5)
    weights = np.asarray(counts, dtype=float)
    limits = np.exp2(exponents + 1).tolist()
    return limits, float((weights * middles).sum()), float((weights * middles**2).sum())


def _columns(table: pa.Table) -> Columns:
    return {name: table.column(name).to_numpy() for name in table.column_names}
