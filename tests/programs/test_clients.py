"""Weights & Biases and MLflow through their own clients, offline: read back from what they wrote.

Each runs in a process of its own, as a person's export does: their clients leave threads and services behind.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rich_run import NORMS, SAMPLE, STEPS
from workbench.errors import ConfigError
from workbench.export import export
from workbench.export.to_mlflow import _metric_name

ROOT = Path(__file__).parents[2]


def exported(run: Path, to: str, out: Path, **more: str) -> str:
    command = [sys.executable, "-m", "workbench.cli.main", "export", str(run), "--to", to, "-o", str(out)]
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW"))}
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, env={**outside, "PYTHONPATH": places, **more}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file: LevelDB's log format (blocks of 32 KiB; chunks of crc, length, type) of messages."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_wandb_offline(run: Path, tmp_path: Path) -> None:
    out = exported(run, "wandb", tmp_path)
    folder = Path(out.splitlines()[0])
    assert f"wandb sync {folder}" in out and folder.is_relative_to(tmp_path)
    (file,) = folder.glob("*.wandb")
    found = list(wandb_records(file))
    config = {item.key: json.loads(item.value_json) for r in found for item in r.run.config.update}
    assert config["ranks"] == 2 and config["tp"] == 2 and config["plan"] == "tp2"
    history = []
    for each in found:
        if each.WhichOneof("record_type") == "history":
            history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in each.history.item})
    losses = {row["_step"]: row["loss"] for row in history if "loss" in row}
    assert losses == {1: 1.0, 2: 0.5, 4: 0.25}  # a loss that is no number is left out
    assert [row["validation/loss"] for row in history if "validation/loss" in row] == [0.5]
    assert [history[0][f"{what}_norm/split"] for what in ("gradient", "weight", "update")] == NORMS
    magnitudes = {key.rpartition("/")[2]: value for key, value in history[0].items() if "magnitude/split/" in key}
    assert magnitudes == {"_type": "histogram", "values": [2, 1, 4, 8, 5], "bins": [0, 0.125, 0.25, 0.5, 1, 2]}
    (table,) = folder.rglob("*.table.json")
    assert json.loads(table.read_text()) == {"columns": ["step", "text"], "data": [[2, SAMPLE]]}


def test_mlflow_into_a_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    out = exported(run, "mlflow", tmp_path)
    assert f"--backend-store-uri {tmp_path}" in out
    client = MlflowClient(tracking_uri=tmp_path.as_uri())
    experiment = client.get_experiment_by_name("dist-workbench")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == run.name and found.info.status == "FINISHED"
    assert found.data.params["tp"] == "2" and found.data.params["steps"] == str(STEPS)
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (4, 0.25)]
    assert found.data.metrics["validation/loss"] == 0.5
    assert [found.data.metrics[f"{what} norm/split"] for what in ("gradient", "weight", "update")] == NORMS
    assert {f.path for f in client.list_artifacts(found.info.run_id)} == {"spec.toml", "cell.py", "samples.json"}


@pytest.mark.parametrize(("to", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_client_raises(
    run: Path, tmp_path: Path, to: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        export(run, to, tmp_path)


def test_metric_names_that_mlflow_accepts() -> None:
    assert _metric_name("gradient norm/../../etc/<b>") == "gradient norm/______etc__b_"
    assert _metric_name("tokens") == "tokens" and len(_metric_name("x" * 400)) == 250
