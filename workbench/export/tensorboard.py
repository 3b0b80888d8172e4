"""Writes a run as a TensorBoard event file.

The file contains scalars of the run and of each rank's device, the norms of each layer's gradient, weights and update,
histograms of gradient magnitudes, text samples, what the cell logged (numbers, texts and images), the spec and the
cell.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workbench.export.source import ExportSource, estimate_bucket_sums
from workbench.history.tensorboard_file import EventFile, histogram, image, scalar, text

SCALARS = ("loss", "lr", "grad_norm", "tps", "tokens", "step_time_ms", "data_wait_ms")
_DEVICE_SCALARS = ("cpu_percent", "rss_bytes", "gpu_percent", "gpu_memory_bytes", "gpu_power_watts")


def write(source: ExportSource, out: Path) -> Path:
    """Write one event file into the folder ``out`` and return ``out``, for ``tensorboard --logdir``."""
    events = [
        *_metrics(source),
        *_validation(source),
        *_logged(source),
        *_devices(source),
        *_gradients(source),
        *_texts(source),
    ]
    events.sort(key=lambda event: event[:2])
    with EventFile(out, began=events[0][0] if events else None) as file:
        for time, step, values in events:
            file.add(time, step, values)
    return out


_Events = list[tuple[float, int, list[bytes]]]  # (time, step, encoded values)


def _metrics(source: ExportSource) -> _Events:
    columns = [source.metrics[name].tolist() for name in SCALARS]
    times, steps = source.metrics["time"].tolist(), source.metrics["step"].tolist()
    return [
        (time, int(step), [scalar(name, value) for name, value in zip(SCALARS, values, strict=True)])
        for time, step, *values in zip(times, steps, *columns, strict=True)
    ]


def _validation(source: ExportSource) -> _Events:
    return [(time, step, [scalar(f"validation/{name}", value)]) for time, step, name, value in source.validation()]


def _logged(source: ExportSource) -> _Events:
    """What the cell logged: numbers, texts and images."""
    events: _Events = [(time, step, [scalar(name, value)]) for time, step, name, value in source.logged_values]
    for time, one in source.logged_media():
        name = f"log/{one.name}" if one.rank == 0 else f"log/{one.name}/rank {one.rank}"
        if one.kind == "text":
            events.append((time, one.step, [text(name, one.text)]))
        elif one.file is not None:
            events.append((time, one.step, [image(name, one.file.read_bytes(), one.width, one.height)]))
    return events


def _devices(source: ExportSource) -> _Events:
    events: _Events = []
    for row in source.arrow("devices").select(["time", "step", "rank", *_DEVICE_SCALARS]).to_pylist():
        finite = [(name, row[name]) for name in _DEVICE_SCALARS if np.isfinite(row[name])]
        values = [scalar(f"rank {row['rank']}/{name}", value) for name, value in finite]
        events.append((row["time"], row["step"], values))
    return events


def _gradients(source: ExportSource) -> _Events:
    start = source.metrics["time"][0] if source.metrics["time"].size else 0.0
    times = source.time_of_step
    events: _Events = [
        (times.get(step, start), step, [scalar(f"{kind}/{layer}", norm)])
        for step, kind, layer, norm in source.layer_norms
    ]
    for step, layer, first, (zeros, *counts) in source.histograms():
        limits, total, squares = estimate_bucket_sums(first, counts)
        low = 0.0 if zeros or not counts else limits[0] / 2
        sums = (low, limits[-1] if limits else 0.0, total, squares)
        # an additional first bucket, below all magnitudes, holds the zeros
        edges = [limits[0] / 2 if limits else 0.0, *limits]
        value = histogram(f"gradient magnitude/{layer or 'model'}", edges, [zeros, *counts], sums)
        events.append((times.get(step, start), step, [value]))
    return events


def _texts(source: ExportSource) -> _Events:
    start = source.metrics["time"][0] if source.metrics["time"].size else 0.0
    events: _Events = [(time, step, [text("sample", sample)]) for time, step, sample in source.samples()]
    events.append((start, 0, [text("spec", _indent_as_code(source.spec_text))]))
    if source.cell:
        events.append((start, 0, [text("cell.py", _indent_as_code(source.cell))]))
    return events


def _indent_as_code(code: str) -> str:
    """Markdown of a code block."""
    return "\n".join(f"    {line}" for line in code.splitlines())
