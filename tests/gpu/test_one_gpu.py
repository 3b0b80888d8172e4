"""One real GPU: a warm spare bound at birth, bf16 training, NVML figures. Skipped without one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.shell import notebook_shell
from workbench.cluster.session import Session
from workbench.core.visible_devices import entries

pytestmark = pytest.mark.gpu


def test_a_rank_trains_on_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    with notebook_shell() as shell:
        line = "--recipe stdlib-llama -n 1 --plugin zero1 --precision bf16 --steps 50 --quiet"
        run = shell.run_line_magic("dist_train", line).wait(timeout=300)
        losses = run.metrics()["loss"]
        assert np.isfinite(losses).all() and losses.iloc[-1] < losses.iloc[0]
        session = Session.current()
        assert session is not None and "cuda" in session.status()[0].device
        devices = run.devices().dropna(subset=["gpu_memory_bytes"])
        assert len(devices) and (devices["gpu_power_watts"] > 0).all()


@pytest.mark.parametrize(
    "plan",
    [
        "colossal ddp1",
        "zero1 offload",
        "zero2",
        "gemini1",
        "gemini1 offload",
        "gemini1 auto-placement",
        "torch ddp1",
        "fsdp1",
        "fsdp1 offload",
    ],
)
def test_a_plan_trains_on_a_gpu_as_on_a_cpu(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank over NCCL, in bf16, beside one rank of plain DDP on the CPU in fp32."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    line = "--recipe stdlib-llama -n 1 --steps 20 --quiet"
    losses = {}
    for device, words in (("cuda", f"--plan '{plan}' --precision bf16"), ("cpu", "--plan 'torch ddp1'")):
        if device == "cpu":
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with notebook_shell() as shell:
            run = shell.run_line_magic("dist_train", f"{line} {words}").wait(timeout=300)
            session = Session.current()
            assert session is not None and device in session.status()[0].device
            losses[device] = run.metrics()["loss"].to_numpy()
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=5e-2)
    assert losses["cuda"][-1] < losses["cuda"][0] - 0.1


#: what nvidia-smi calls it, what a reading calls it, nvidia-smi's unit, and by how much two looks may differ
FIGURES = [
    ("power.draw", "power_watts", 1.0, 60.0),
    ("temperature.gpu", "temperature_c", 1.0, 5.0),
    ("clocks.sm", "clock_mhz", 1.0, 400.0),
    ("clocks.mem", "memory_clock_mhz", 1.0, 10.0),
    ("memory.used", "memory_bytes", 2.0**20, 600 * 2.0**20),
]


@pytest.mark.parametrize(("query", "name", "unit", "tolerance"), FIGURES)
def test_a_reading_agrees_with_nvidia_smi(query: str, name: str, unit: float, tolerance: float) -> None:
    from workbench.engine.watch.host.gpu_reader import NvmlGpu

    gpu = NvmlGpu.open("cuda", os.environ)
    try:
        reading = getattr(gpu.read(), name)
    finally:
        gpu.close()
    chosen = entries(os.environ.get("CUDA_VISIBLE_DEVICES"))
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", f"--id={(chosen or ['0'])[0]}"]
    told = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * unit
    assert reading == pytest.approx(told, abs=tolerance)


def test_events_time_a_step_as_the_host_does() -> None:
    import torch

    from workbench.engine.watch.host.clock import EventClock, HostClock

    host, device = HostClock(), EventClock()
    factor = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    began, first = host.now(), device.now()
    for _ in range(50):
        factor @ factor
    last = device.now()
    torch.cuda.synchronize()
    ended = host.now()
    assert device.ready(last)
    assert device.elapsed_ms(first, last) == pytest.approx(host.elapsed_ms(began, ended), rel=0.2)
