"""TensorBoard event files: scalars of the run and of each rank's device, norms of each layer's gradient, weights and
update, histograms of gradients, texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workbench.export.source import Source, bucket_sums
from workbench.history.tensorboard_file import EventFile, histogram, scalar, text

SCALARS = ("loss", "lr", "grad_norm", "tps", "tokens", "step_time_ms", "data_wait_ms")
_DEVICE = ("cpu_percent", "rss_bytes", "gpu_percent", "gpu_memory_bytes", "gpu_power_watts")


def write(source: Source, out: Path) -> Path:
    """Write one event file into ``out``; returns ``out``, which is what ``tensorboard --logdir`` takes."""
    found = [*_metrics(source), *_validation(source), *_devices(source), *_gradients(source), *_texts(source)]
    found.sort(key=lambda event: event[:2])
    with EventFile(out, began=found[0][0] if found else None) as file:
        for when, step, values in found:
            file.add(when, step, values)
    return out


_Events = list[tuple[float, int, list[bytes]]]


def _metrics(source: Source) -> _Events:
    columns = [source.metrics[name].tolist() for name in SCALARS]
    times, steps = source.metrics["time"].tolist(), source.metrics["step"].tolist()
    return [
        (when, int(step), [scalar(name, value) for name, value in zip(SCALARS, values, strict=True)])
        for when, step, *values in zip(times, steps, *columns, strict=True)
    ]


def _validation(source: Source) -> _Events:
    return [(when, step, [scalar(f"validation/{name}", value)]) for when, step, name, value in source.validation()]


def _devices(source: Source) -> _Events:
    out: _Events = []
    for row in source.arrow("devices").select(["time", "step", "rank", *_DEVICE]).to_pylist():
        known = [(name, row[name]) for name in _DEVICE if np.isfinite(row[name])]
        out.append((row["time"], row["step"], [scalar(f"rank {row['rank']}/{name}", value) for name, value in known]))
    return out


def _gradients(source: Source) -> _Events:
    start = source.metrics["time"][0] if source.metrics["time"].size else 0.0
    at = source.time_of_step
    out: _Events = [
        (at.get(step, start), step, [scalar(f"{what}/{layer}", norm)]) for step, what, layer, norm in source.layer_norms
    ]
    for step, layer, first, (zeros, *counts) in source.histograms():
        limits, total, squares = bucket_sums(first, counts)
        low = 0.0 if zeros or not counts else limits[0] / 2
        sums = (low, limits[-1] if limits else 0.0, total, squares)
        # the first bucket ends where magnitudes begin: what is in it is zero
        edges = [limits[0] / 2 if limits else 0.0, *limits]
        value = histogram(f"gradient magnitude/{layer or 'model'}", edges, [zeros, *counts], sums)
        out.append((at.get(step, start), step, [value]))
    return out


def _texts(source: Source) -> _Events:
    start = source.metrics["time"][0] if source.metrics["time"].size else 0.0
    out: _Events = [(when, step, [text("sample", words)]) for when, step, words in source.samples()]
    out.append((start, 0, [text("spec", _indented(source.spec_text))]))
    if source.cell:
        out.append((start, 0, [text("cell.py", _indented(source.cell))]))
    return out


def _indented(code: str) -> str:
    """Markdown that shows code as it is."""
    return "\n".join(f"    {line}" for line in code.splitlines())
