"""Derived figures: pure functions from columns to columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.core.records import EventKind, Record
from workbench.core.rules.expressions import METRICS, VALIDATION
from workbench.events.decode import as_number, of_kind
from workbench.telemetry.flops import Cost, mfu_percent, tflops_per_device
from workbench.telemetry.logged.curves import add_columns
from workbench.telemetry.rollbacks import standing, validated

if TYPE_CHECKING:
    import pandas as pd


def with_rows(columns: Columns, rows: Sequence[Record]) -> Columns:
    """``columns`` and these records of the same table after them."""
    if not rows:
        return columns
    added = {name: [getattr(row, name) for row in rows] for name in columns}
    return {name: np.append(values, np.array(added[name], dtype=values.dtype)) for name, values in columns.items()}


def seconds_per_step(step: np.ndarray, time: np.ndarray, recent: int = 50) -> float:
    """Seconds from one step's end to the next over the last ``recent`` steps, evaluations included; NaN before two are
    known. What is left of a run is its steps left times this. ``time``: when each step ended, less the pauses before
    it (``pauses.Pauses.before``)."""
    step, time = step[-recent:], time[-recent:]
    if step.size < 2 or step[-1] <= step[0]:
        return float("nan")
    return float(time[-1] - time[0]) / float(step[-1] - step[0])


def batch_of(events: Columns) -> tuple[int, str]:
    """Samples of a global batch (0: not known yet), and what ``tps`` counts: "tokens" or "samples"."""
    for event in of_kind(events, EventKind.DATA, "batch"):
        samples = as_number(event.fields.get("samples"))
        if math.isfinite(samples) and "unit" in event.fields:
            return int(samples), str(event.fields["unit"])
    return 0, "tokens"


def global_metrics(steps: Columns, mesh: Mesh, absent: int = 0) -> Columns:
    """One row per step that all ranks (but ``absent`` many) reported, ascending: the columns of ``METRICS``. Steps that
    a rollback took back are left out, those trained again are there once (``standing``).

    ``loss``: mean over the ranks that have one (shares of a batch are equal). ``grad_norm``: square root of the sum of
    the ranks' ``grad_sq``, before clipping; ``grad_norm_clipped`` after it, the smaller of that and the limit in force;
    ``framework_norm`` is what the framework says the norm before clipping is (NaN where it says nothing).
    ``step_time_ms``: the slowest rank's; ``monitor_ms``: what watching cost where it cost most. ``tps``: tokens per
    second *per device*: tokens of all data-parallel replicas, divided by the slowest rank's time and by the number of
    ranks that these replicas have. Without a rank there is no ``grad_norm``.
    """
    steps = standing(steps)
    step, rank = steps["step"], steps["rank"]
    if step.size == 0:
        return {name: np.empty(0, dtype=bool if name == "skipped" else float) for name in METRICS}
    numbers, index = np.unique(step, return_inverse=True)
    reported = np.bincount(index)
    complete = reported >= mesh.world_size - absent

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, weights=values, minlength=numbers.size)

    def largest(values: np.ndarray) -> np.ndarray:
        out = np.full(numbers.size, -np.inf)
        np.maximum.at(out, index, values)
        return out

    has_loss = ~_is_stage_without_loss(rank, mesh)
    with np.errstate(invalid="ignore", divide="ignore"):
        loss = total(np.where(has_loss, steps["loss"], 0.0)) / total(has_loss.astype(float))
        grad_norm = np.where(reported >= mesh.world_size, np.sqrt(total(steps["grad_sq"])), np.nan)
        # each replica's tokens once: on its first rank
        speaks = rank % mesh.replica_size == 0
        tokens = total(np.where(speaks, steps["tokens"], 0))
        slowest = largest(steps["step_time_ms"])
        clip = largest(steps["clip"])
        tps = tokens / (slowest / 1e3) / (total(speaks.astype(float)) * mesh.replica_size)
    columns = {
        "step": numbers,
        "time": largest(steps["time"]),
        "loss": loss,
        "lr": largest(steps["lr"]),
        "grad_norm": grad_norm,
        "grad_norm_clipped": clipped(grad_norm, clip),
        "framework_norm": largest(np.where(np.isnan(steps["framework_norm"]), -np.inf, steps["framework_norm"])),
        "loss_scale": largest(steps["loss_scale"]),
        "tps": tps,
        "step_time_ms": slowest,
        "data_wait_ms": largest(steps["data_wait_ms"]),
        "monitor_ms": largest(steps["monitor_ms"]),
        "skipped": total(steps["skipped"].astype(float)) > 0,
    }
    columns["framework_norm"] = np.where(np.isneginf(columns["framework_norm"]), np.nan, columns["framework_norm"])
    return {name: values[complete] for name, values in columns.items()}


def cumulative_tokens(metrics: Columns, ranks: int, *, before: float = 0.0) -> np.ndarray:
    """Tokens (samples, where a model has none) that all replicas consumed up to each row of ``global_metrics``.

    ``before``: those of the steps before the first row. A step of unknown speed counts none.
    """
    with np.errstate(invalid="ignore"):
        each = metrics["tps"].astype(float) * (metrics["step_time_ms"].astype(float) / 1e3) * ranks
    return before + np.cumsum(np.round(np.nan_to_num(each, posinf=0.0)))


def clipped(norm: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """The norm after clipping to ``clip`` (0: none)."""
    return np.where((clip > 0) & (norm > clip), clip, norm)


def _is_stage_without_loss(rank: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Ranks that are not on the last pipeline stage."""
    return (rank // mesh.peers) % mesh.pp != mesh.pp - 1


def metrics_frame(
    steps: Columns,
    mesh: Mesh,
    *,
    per_rank: bool = False,
    cost: Cost | None = None,
    events: Columns | None = None,
    logged: Columns | None = None,
) -> pd.DataFrame:
    """``global_metrics`` as a DataFrame; ``per_rank`` adds a column ``rank`` and a row per rank and step.

    Global rows then have rank -1. A rank's ``tps`` is its replica's tokens over its own time and the replica's ranks;
    its ``grad_norm`` is the global one's share (square root of ``grad_sq``). ``tokens_per_s`` (of all devices),
    ``tflops`` (per device) and ``mfu`` (percent) follow from ``tps`` and ``cost``: NaN where that is not known.
    ``events`` adds a column per metric of the validation that is a number, ``logged``,
    the table ``values``, one per curve (``telemetry.logged.curves.add_columns``).
    """
    frame = _own_metrics(steps, mesh, per_rank=per_rank, cost=cost)
    if events is not None:
        frame = _with_validations(frame, events)
    return frame if logged is None else add_columns(frame, logged, mesh)


def _own_metrics(steps: Columns, mesh: Mesh, *, per_rank: bool, cost: Cost | None) -> pd.DataFrame:
    import pandas as pd

    steps = standing(steps)
    whole = pd.DataFrame(global_metrics(steps, mesh))
    if not per_rank:
        return _with_speed(whole, mesh, cost)
    own = pd.DataFrame({name: steps[name] for name in ("step", "rank", *METRICS[1:]) if name in steps})
    own["grad_norm"] = np.sqrt(steps["grad_sq"])
    own["grad_norm_clipped"] = np.nan  # a limit is for the global norm
    with np.errstate(divide="ignore"):
        own["tps"] = steps["tokens"] / (steps["step_time_ms"] / 1e3) / mesh.replica_size
    whole.insert(1, "rank", -1)
    rows = pd.concat([whole, own]) if len(own) else whole
    return _with_speed(rows.sort_values(["step", "rank"], ignore_index=True)[list(whole.columns)], mesh, cost)


def _with_validations(frame: pd.DataFrame, events: Columns) -> pd.DataFrame:
    """A column per metric: NaN in steps without a validation, and in rows of one rank."""
    values: dict[str, dict[int, float]] = {}
    for event in validated(events):
        values.setdefault(VALIDATION + event.name, {})[event.step] = as_number(event.value)
    if not values:
        return frame
    import pandas as pd

    steps = frame["step"].astype(int).to_numpy()
    if "rank" in frame:
        steps = np.where(frame["rank"] < 0, steps, -1)
    added = {name: [of_step.get(step, np.nan) for step in steps.tolist()] for name, of_step in values.items()}
    return pd.concat([frame, pd.DataFrame(added, index=frame.index, dtype=float)], axis=1)


def _with_speed(frame: pd.DataFrame, mesh: Mesh, cost: Cost | None) -> pd.DataFrame:
    known = cost or Cost()
    frame["tokens_per_s"] = frame["tps"] * mesh.world_size
    frame["tflops"] = tflops_per_device(frame["tps"], known)
    frame["mfu"] = mfu_percent(frame["tps"], known, mesh.world_size)
    return frame


def devices_frame(devices: Columns) -> pd.DataFrame:
    """Rows of the ``devices`` table, and ``gpu_fragmentation``: the share of the memory that torch's caching allocator
    holds and has not given out (NaN without a GPU)."""
    import pandas as pd

    frame = pd.DataFrame(devices)
    frame["gpu_fragmentation"] = 1 - frame["gpu_allocated_bytes"] / frame["gpu_reserved_bytes"]
    return frame
