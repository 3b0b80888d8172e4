"""One real GPU: a warm spare bound at birth, bf16 training, NVML figures. Skipped without one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

from workbench.session import Session

pytestmark = pytest.mark.gpu


def test_a_rank_trains_on_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "workbench")
    try:
        line = "--recipe stdlib-llama -n 1 --plugin zero1 --precision bf16 --steps 50 --quiet"
        run = shell.run_line_magic("dist_train", line).wait(timeout=300)
        losses = run.metrics()["loss"]
        assert np.isfinite(losses).all() and losses.iloc[-1] < losses.iloc[0]
        session = Session.current()
        assert session is not None and "cuda" in session.status()[0].device
        devices = run.devices().dropna(subset=["gpu_memory_bytes"])
        assert len(devices) and (devices["gpu_power_watts"] > 0).all()
    finally:
        shell.run_line_magic("dist_down", "")


def test_memory_agrees_with_nvidia_smi(tmp_path: Path) -> None:
    import pynvml

    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    told = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 2**20
    pynvml.nvmlInit()
    measured = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used
    assert measured == pytest.approx(told, rel=0.1, abs=600 * 2**20)
