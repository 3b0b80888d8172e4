"""What ``tests/gpu`` does, tried where there is no GPU: everything it calls is there and means what it expects."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from tests.gpu import test_faults, test_one_gpu, test_watching
from tests.unit.engine.watch.test_gpu_reader import RichNvml
from workbench.cluster.session import Session

#: what an nvidia-smi of the machine of ``RichNvml`` says, by query
SAID = {"power.draw": 321.5, "temperature.gpu": 61, "clocks.sm": 1980, "clocks.mem": 2619, "memory.used": 0}


@pytest.mark.parametrize("figure", test_one_gpu.FIGURES, ids=lambda figure: figure[0])
def test_readings_are_compared_with_nvidia_smi_in_one_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: tuple[str, str, float, float]
) -> None:
    query, name, unit, _ = figure
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb")
    monkeypatch.setitem(sys.modules, "pynvml", RichNvml())

    def says(number: float) -> None:
        asked = f'[ "$1" = "--query-gpu={query}" ] && [ "$3" = "--id=GPU-bbbb" ]'
        tool.write_text(f'#!/bin/sh\n{asked} && echo "{number}"\n')
        tool.chmod(0o755)

    says(SAID[query])
    test_one_gpu.test_a_reading_agrees_with_nvidia_smi(query, name, unit, 0.01 if unit == 1 else unit)
    says(SAID[query] + 5)
    with pytest.raises(AssertionError):
        test_one_gpu.test_a_reading_agrees_with_nvidia_smi(query, name, unit, 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_taken_on_any_device(dtype: torch.dtype) -> None:
    records = test_watching._taken(test_watching._parts("cpu", dtype))
    assert [type(record).__name__ for record in records] == (
        ["GradientStats"] * 3 + ["HistogramStats"] * 3 + ["GradientSketch"] * 3
    )


def test_levels_of_watching_are_compared_and_what_they_log_is_checked(shell: InteractiveShell) -> None:
    times = test_watching.compared(shell, "--size tiny --batch-size 2 --steps 24", rounds=1)
    assert {level: len(found) for level, found in times.items()} == {"off": 1, "light": 1, "full": 1}
    assert all(found[0] > 0 for found in times.values())


@pytest.mark.parametrize("check", test_faults.FAULTS)
def test_faults_in_collectives(check: Callable[[Session], None], two_ranks: Session) -> None:
    check(two_ranks)
