"""An MLflow run through MLflow's own client (``pip install mlflow`` or ``mlflow-skinny``).

``MLFLOW_TRACKING_URI`` decides where it goes, as everywhere in MLflow; without it, into a file store in the folder of
the export, which ``mlflow ui --backend-store-uri FOLDER`` opens.
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
from workbench.export.source import Source
from workbench.export.tensorboard import SCALARS
from workbench.history import labels
from workbench.rundir.directory import CELL_FILE

EXPERIMENT = "dist-workbench"
#: what one call of the protocol takes
_BATCH = 1000
_LONGEST_PARAMETER = 500
#: MLflow takes these, slashes and spaces in a metric's name
_ALLOWED = frozenset("_-. /")


def write(source: Source, out: Path) -> Path:
    """Write the run and return the folder of the file store (``out`` where it went to a server).

    ``ConfigError`` without MLflow, or when it refuses.
    """
    client_type, entities, refusal = _client()
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        address = out.as_uri()
        os.environ.setdefault(
            "MLFLOW_ALLOW_FILE_STORE", "true"
        )  # MLflow 3 asks for it; a folder is what was asked here
    try:
        client = client_type(tracking_uri=address)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known is not None else client.create_experiment(name)
        _fill(client, entities, experiment, source)
    except refusal as error:
        raise ConfigError(f"MLflow refuses: {error}", field="--to") from error
    return out


def _client() -> tuple[Any, Any, type[Exception]]:
    try:
        from mlflow import entities
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise ConfigError(
            f"--to mlflow needs MLflow, which cannot be imported here ({error}): pip install mlflow", field="--to"
        ) from error
    return MlflowClient, entities, MlflowException


def _fill(client: Any, entities: Any, experiment: str, source: Source) -> None:
    begun = int(source.metrics["time"][0] * 1e3) if source.metrics["time"].size else None
    tags = dict.fromkeys(labels.read(source.path).tags, "")
    run = client.create_run(experiment, start_time=begun, run_name=source.path.name, tags=tags)
    identity = run.info.run_id
    options = [entities.Param(name, str(value)[:_LONGEST_PARAMETER]) for name, value in source.spec.options().items()]
    for start in range(0, len(options), 100):
        client.log_batch(identity, params=options[start : start + 100])
    found = [entities.Metric(_name(name), value, int(when * 1e3), step) for when, step, name, value in _metrics(source)]
    for start in range(0, len(found), _BATCH):
        client.log_batch(identity, metrics=found[start : start + _BATCH])
    for file in (SPEC_FILE, CELL_FILE):
        if (source.path / file).exists():
            client.log_artifact(identity, str(source.path / file))
    texts = [{"step": step, "text": text} for _, step, text in source.samples()]
    if texts:
        client.log_text(identity, json.dumps(texts, indent=1, ensure_ascii=False), "samples.json")
    ended = int(source.metrics["time"][-1] * 1e3) if source.metrics["time"].size else None
    client.set_terminated(identity, status=_status(source), end_time=ended)


def _status(source: Source) -> str:
    names = {row["name"] for row in source.events if row["kind"] == EventKind.STATE}
    if "failed" in names:
        return "FAILED"
    return "FINISHED" if "finished" in names else "KILLED"


def _metrics(source: Source) -> list[tuple[float, int, str, float]]:
    """Time, step, name, value: all that are numbers."""
    times, steps = source.metrics["time"].tolist(), source.metrics["step"].astype(int).tolist()
    out = [
        (when, step, name, value)
        for name in SCALARS
        for when, step, value in zip(times, steps, source.metrics[name].tolist(), strict=True)
        if math.isfinite(value)
    ]
    out += [(when, step, f"validation/{name}", value) for when, step, name, value in source.validation()]
    at, first = source.time_of_step, times[0] if times else 0.0
    return out + [
        (at.get(step, first), step, f"{what}/{layer}", norm) for step, what, layer, norm in source.layer_norms
    ]


def _name(name: str) -> str:
    """A name that MLflow takes, which is also a path in its store: other characters become ``_``."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in _ALLOWED) else "_" for c in name[:250])
    folder, slash, rest = plain.partition("/")
    return folder + slash + rest.replace("/", "_").replace("..", "__")
