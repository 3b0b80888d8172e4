"""Derived figures: pure functions from columns to columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.mesh import Mesh
from workbench.telemetry.flops import Cost, mfu_percent, tflops_per_device
from workbench.telemetry.store import Columns

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("step", "time", "loss", "lr", "grad_norm", "tps", "step_time_ms", "data_wait_ms", "skipped")


def global_metrics(steps: Columns, mesh: Mesh) -> Columns:
    """One row per step that all ranks reported, ascending: the columns of ``METRICS``.

    ``loss``: mean over the ranks that have one (shares of a batch are equal). ``grad_norm``: square root of the sum of
    the ranks' ``grad_sq``. ``step_time_ms``: the slowest rank's. ``tps``: tokens per second *per device*: tokens of all
    data-parallel replicas, divided by the slowest rank's time and by the number of ranks.
    """
    step, rank = steps["step"], steps["rank"]
    if step.size == 0:
        return {name: np.empty(0, dtype=bool if name == "skipped" else float) for name in METRICS}
    numbers, index = np.unique(step, return_inverse=True)
    complete = np.bincount(index) >= mesh.world_size

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, weights=values, minlength=numbers.size)

    def largest(values: np.ndarray) -> np.ndarray:
        out = np.full(numbers.size, -np.inf)
        np.maximum.at(out, index, values)
        return out

    has_loss = ~_is_stage_without_loss(rank, mesh)
    with np.errstate(invalid="ignore", divide="ignore"):
        loss = total(np.where(has_loss, steps["loss"], 0.0)) / total(has_loss.astype(float))
        grad_norm = np.sqrt(total(steps["grad_sq"]))
        # each replica's tokens once: on the first rank of its tp x pp block
        tokens = total(np.where(rank % (mesh.tp * mesh.pp) == 0, steps["tokens"], 0))
        slowest = largest(steps["step_time_ms"])
        tps = tokens / (slowest / 1e3) / mesh.world_size
    columns = {
        "step": numbers,
        "time": largest(steps["time"]),
        "loss": loss,
        "lr": largest(steps["lr"]),
        "grad_norm": grad_norm,
        "tps": tps,
        "step_time_ms": slowest,
        "data_wait_ms": largest(steps["data_wait_ms"]),
        "skipped": total(steps["skipped"].astype(float)) > 0,
    }
    return {name: values[complete] for name, values in columns.items()}


def _is_stage_without_loss(rank: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Ranks that are not on the last pipeline stage."""
    return (rank // mesh.tp) % mesh.pp != mesh.pp - 1


def metrics_frame(steps: Columns, mesh: Mesh, *, per_rank: bool = False, cost: Cost | None = None) -> pd.DataFrame:
    """``global_metrics`` as a DataFrame; ``per_rank`` adds a column ``rank`` and a row per rank and step.

    Global rows then have rank -1. A rank's ``tps`` is its replica's tokens over its own time and the replica's ranks;
    its ``grad_norm`` is the global one's share (square root of ``grad_sq``). ``tokens_per_s`` (of all devices),
    ``tflops`` (per device) and ``mfu`` (percent) follow from ``tps`` and ``cost``: NaN where that is not known.
    """
    import pandas as pd

    whole = pd.DataFrame(global_metrics(steps, mesh))
    if not per_rank:
        return _with_speed(whole, mesh, cost)
    own = pd.DataFrame({name: steps[name] for name in ("step", "rank", *METRICS[1:]) if name in steps})
    own["grad_norm"] = np.sqrt(steps["grad_sq"])
    with np.errstate(divide="ignore"):
        own["tps"] = steps["tokens"] / (steps["step_time_ms"] / 1e3) / (mesh.tp * mesh.pp)
    whole.insert(1, "rank", -1)
    rows = pd.concat([whole, own]) if len(own) else whole
    return _with_speed(rows.sort_values(["step", "rank"], ignore_index=True)[list(whole.columns)], mesh, cost)


def _with_speed(frame: pd.DataFrame, mesh: Mesh, cost: Cost | None) -> pd.DataFrame:
    known = cost or Cost()
    frame["tokens_per_s"] = frame["tps"] * mesh.world_size
    frame["tflops"] = tflops_per_device(frame["tps"], known)
    frame["mfu"] = mfu_percent(frame["tps"], known, mesh.world_size)
    return frame
