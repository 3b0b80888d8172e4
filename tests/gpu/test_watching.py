"""Gradient statistics on a GPU: the same figures as on a CPU, without a synchronisation, and what they cost.

The figures of cost are printed, not asserted: ``pytest tests/gpu -s``.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from tests.shell import notebook_shell
from workbench.core.records import GradientStats, HistogramStats
from workbench.engine.base.parts import Comparison, GradientPart
from workbench.engine.watch.torch.gradient_statistics import GradientCollector
from workbench.engine.watch.torch.sketch import Sketcher

pytestmark = pytest.mark.gpu


def _parts(device: str, dtype: torch.dtype) -> list[GradientPart]:
    random = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=random) * 1e-3 for size in ((300, 1000), (17,), (2000, 40))]
    tensors[0][0, :3] = torch.tensor([math.nan, math.inf, 0.0])
    return [GradientPart(f"layer{i}", t.to(device, dtype), "", 1024.0) for i, t in enumerate(tensors)]


def _taken(parts: list[GradientPart]) -> list:
    collector = GradientCollector(keep=True, sketcher=Sketcher())
    collector.take(parts)
    finite = [part.tensor.nan_to_num(0, 0, 0) for part in parts]
    collector.compare(Comparison("exact", [[(one, one)] for one in finite]))
    return collector.finish(1, 0, "local").records()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_figures_are_those_of_a_cpu(dtype: torch.dtype) -> None:
    for one, other in zip(_taken(_parts("cuda", dtype)), _taken(_parts("cpu", dtype)), strict=True):
        if isinstance(one, GradientStats):
            assert one.sum_sq == pytest.approx(other.sum_sq, rel=1e-5)
            assert one.sum == pytest.approx(other.sum, abs=1e-5 * math.sqrt(other.sum_sq * other.numel))
            assert one.dot == pytest.approx(other.dot, rel=1e-4)
            assert (one.max_abs, one.zero_count, one.nonfinite_count) == (
                other.max_abs,
                other.zero_count,
                other.nonfinite_count,
            )
        elif isinstance(one, HistogramStats):
            assert (one.first_exponent, one.counts) == (other.first_exponent, other.counts)
        else:
            assert one.values == pytest.approx(other.values, rel=1e-6, nan_ok=True)


def test_nothing_waits_for_the_device() -> None:
    parts = _parts("cuda", torch.bfloat16)
    sketcher = Sketcher()
    for is_warm in (False, True):  # the first draws the places of the sketch
        collector = GradientCollector(keep=True, sketcher=sketcher)
        torch.cuda.set_sync_debug_mode("error" if is_warm else "default")
        try:
            collector.take(parts)
            collector.compare(Comparison("exact", [[(part.tensor, part.tensor)] for part in parts]))
            pending = collector.finish(1, 0, "local")
            pending.ready()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(pending.records()) == 9


def test_watching_a_billion_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    with notebook_shell() as shell:
        times = compared(shell, "--size 1b --batch-size 4 --steps 80", rounds=2)
    assert {level: len(found) for level, found in times.items()} == dict.fromkeys(times, 2), "all runs were trained"
    for level in ("light", "full"):
        ratios = [one / bare for one, bare in zip(times[level], times["off"], strict=True)]
        print(f"{level}: {statistics.median(ratios):.3f}x of {statistics.median(times['off']):.1f} ms, goal <= 1.01x")


def compared(shell: InteractiveShell, options: str, *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a step after the 20th of a Llama in bf16 on one rank, unwatched and watched, by turns."""
    times: dict[str, list[float]] = {"off": [], "light": [], "full": []}
    for _ in range(rounds):
        for level, found in times.items():
            line = f"--recipe stdlib-llama -n 1 --plugin zero1 --precision bf16 {options} --eval-every 0 --quiet"
            run = shell.run_line_magic("dist_train", f"{line} --monitor {level}").wait(timeout=900)
            when = run.metrics()["time"].to_numpy()
            found.append(float((when[-1] - when[19]) / (len(when) - 20) * 1e3))
            assert run.last_step == len(run.metrics())
            assert run.gradients().empty is (level == "off") and run.histograms().empty is (level != "full")
            if level == "full":
                _check(run)
    return times


def _check(run) -> None:
    gradients = run.gradients()
    first = gradients[gradients["step"] == 1]
    assert np.isfinite(first["norm"]).all() and (first.query("scope == 'local'")["cosine"] > 0.999).all()
    total = math.sqrt((first.query("scope == 'reduced'")["norm"] ** 2).sum())
    assert total == pytest.approx(run.metrics()["grad_norm"].iloc[0], rel=1e-3)
    weights = run.weights()
    assert (weights["update_ratio"] > 0).all()
    assert not run.histograms().empty
    costs = run.events().query("kind == 'monitor' and name == 'cost'")["value"]
    print(f"the watch says: {costs.iloc[-1]:.2%}")
