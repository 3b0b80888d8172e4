"""Writes a run as an MLflow run with MLflow's client (``pip install mlflow`` or ``mlflow-skinny``).

The run goes to the server or store that ``MLFLOW_TRACKING_URI`` names. If that is not set, it goes to a file store in
the folder of the export, which ``mlflow ui --backend-store-uri FOLDER`` opens.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from workbench.core.config import SPEC_FILE
from workbench.core.records import EventKind
from workbench.errors import ConfigError
from workbench.export.source import ExportSource
from workbench.export.tensorboard import SCALARS
from workbench.history import labels
from workbench.rundir.directory import CELL_FILE

EXPERIMENT = "dist-workbench"
#: limits that MLflow sets
_MAX_METRICS_PER_CALL = 1000
_MAX_PARAMETERS_PER_CALL = 100
_MAX_PARAMETER_LENGTH = 500
_MAX_NAME_LENGTH = 250
#: characters that MLflow allows in the name of a metric, besides letters and digits
_ALLOWED_CHARACTERS = frozenset("_-. /")


def write(source: ExportSource, out: Path) -> Path:
    """Write the run to MLflow and return ``out``, which is the folder of the file store if no server is set.

    Raises ``ConfigError`` if MLflow is not installed or reports an error.
    """
    client_type, entities, mlflow_error = _import_mlflow()
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking_uri:
        tracking_uri = out.as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses a file store without it
    try:
        client = client_type(tracking_uri=tracking_uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment is not None else client.create_experiment(name)
        _log_run(client, entities, experiment_id, source)
    except mlflow_error as error:
        raise ConfigError(
            f"MLflow refused the run: {error}; check MLFLOW_TRACKING_URI, or unset it to write a file store",
            field="--to",
        ) from error
    return out


def _import_mlflow() -> tuple[Any, Any, type[Exception]]:
    try:
        from mlflow import entities
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise ConfigError(
            f"--to mlflow needs MLflow, which cannot be imported ({error}): pip install mlflow", field="--to"
        ) from error
    return MlflowClient, entities, MlflowException


def _log_run(client: Any, entities: Any, experiment_id: str, source: ExportSource) -> None:
    start_time = int(source.metrics["time"][0] * 1e3) if source.metrics["time"].size else None
    tags = dict.fromkeys(labels.read(source.path).tags, "")
    run = client.create_run(experiment_id, start_time=start_time, run_name=source.path.name, tags=tags)
    run_id = run.info.run_id
    options = [
        entities.Param(name, str(value)[:_MAX_PARAMETER_LENGTH]) for name, value in source.spec.options().items()
    ]
    for start in range(0, len(options), _MAX_PARAMETERS_PER_CALL):
        client.log_batch(run_id, params=options[start : start + _MAX_PARAMETERS_PER_CALL])
    metrics = [
        entities.Metric(_metric_name(name), value, int(time * 1e3), step)
        for time, step, name, value in _finite_metrics(source)
    ]
    for start in range(0, len(metrics), _MAX_METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS_PER_CALL])
    for file in (SPEC_FILE, CELL_FILE):
        if (source.path / file).exists():
            client.log_artifact(run_id, str(source.path / file))
    texts = [{"step": step, "text": text} for _, step, text in source.samples()]
    if texts:
        client.log_text(run_id, json.dumps(texts, indent=1, ensure_ascii=False), "samples.json")
    for _, one in source.logged_media():
        if one.file is not None:
            client.log_artifact(run_id, str(one.file), f"media/rank {one.rank}")
    logged = [
        {"step": o.step, "rank": o.rank, "name": o.name, "text": o.text}
        for _, o in source.logged_media()
        if o.kind == "text"
    ]
    if logged:
        client.log_text(run_id, json.dumps(logged, indent=1, ensure_ascii=False), "texts.json")
    end_time = int(source.metrics["time"][-1] * 1e3) if source.metrics["time"].size else None
    client.set_terminated(run_id, status=_status(source), end_time=end_time)


def _status(source: ExportSource) -> str:
    names = {row["name"] for row in source.events if row["kind"] == EventKind.STATE}
    if "failed" in names:
        return "FAILED"
    return "FINISHED" if "finished" in names else "KILLED"


def _finite_metrics(source: ExportSource) -> list[tuple[float, int, str, float]]:
    """All metrics, validation metrics, logged values and norms of layers that are finite: (time, step, name, value)."""
    times, steps = source.metrics["time"].tolist(), source.metrics["step"].astype(int).tolist()
    metrics = [
        (time, step, name, value)
        for name in SCALARS
        for time, step, value in zip(times, steps, source.metrics[name].tolist(), strict=True)
        if math.isfinite(value)
    ]
    metrics += [(time, step, f"validation/{name}", value) for time, step, name, value in source.validation()]
    metrics += [row for row in source.logged_values if math.isfinite(row[3])]
    time_of_step, start = source.time_of_step, times[0] if times else 0.0
    return metrics + [
        (time_of_step.get(step, start), step, f"{kind}/{layer}", norm) for step, kind, layer, norm in source.layer_norms
    ]


def _metric_name(name: str) -> str:
    """A name that MLflow accepts. The name is also a path in its file store; other characters become ``_``."""
    plain = "".join(
        c if c.isascii() and (c.isalnum() or c in _ALLOWED_CHARACTERS) else "_" for c in name[:_MAX_NAME_LENGTH]
    )
    folder, slash, rest = plain.partition("/")
    return folder + slash + rest.replace("/", "_").replace("..", "__")
