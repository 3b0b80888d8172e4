"""Model operations against a count of every product, and speed figures by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.engine import models
from workbench.core.mesh import Mesh
from workbench.core.records import columns_of
from workbench.engine.watch.torch.peak_flops import count_model_flops, find_device_peak, measure_cpu_peak_per_thread
from workbench.telemetry.derive import metrics_frame
from workbench.telemetry.flops import Cost, cost_of, gpu_peak, mfu_percent, transformer_flops_per_token
from workbench.telemetry.store import empty


def counted(kind: str) -> int:
    """Operations of forward and backward of one batch, as torch counts them."""
    network, batch = models.model(kind), models.batch(kind, 0)
    if hasattr(network, "config"):
        network.config._attn_implementation = "eager"  # fused attention on a CPU is not counted
    with FlopCounterMode(display=False) as counter:
        models.criterion(models.outputs(network, batch), batch).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("kind", "tokens", "tolerance"), [("llama", 16, 0.03), ("gpt2", 16, 0.03), ("tied", 16, 0.03), ("vit", 1, 0.08)]
)
def test_the_formula_is_what_a_transformer_does(kind: str, tokens: int, tolerance: float) -> None:
    """Norms and biases are no matrices, and an image's head sees one token of many: the formula is a little high."""
    per_token, parameters, formula = count_model_flops(models.model(kind), tokens)
    assert parameters == sum(p.numel() for p in models.model(kind).parameters())
    assert "PaLM" in formula
    assert per_token * tokens * models.BATCH == pytest.approx(counted(kind), rel=tolerance)


def test_a_plain_model_takes_six_per_parameter() -> None:
    per_sample, parameters, formula = count_model_flops(models.model("plain"), 1)
    assert (per_sample, formula) == (6 * parameters, "6 N")
    first_input = 2 * 17 * 32 * models.BATCH  # no gradient goes to the data
    biases = 6 * (32 + 3) * models.BATCH
    assert counted("plain") == per_sample * models.BATCH - first_input - biases


def test_a_model_whose_use_of_parameters_is_not_known_says_so() -> None:
    per_sample, _, formula = count_model_flops(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten()), 1)
    assert math.isnan(per_sample) and formula.startswith("unknown")


def test_a_known_model_by_hand() -> None:
    """GPT-3: 175 B parameters, 96 layers, 96 heads of 128, 2048 tokens (Narayanan et al. 2021, equation 3: the share of
    attention is s / 6 h)."""
    with_attention = transformer_flops_per_token(
        175_000_000_000, layers=96, heads=96, head_size=128, sequence_length=2048
    )
    share = with_attention / transformer_flops_per_token(175_000_000_000) - 1
    assert share == pytest.approx(2048 / (6 * 12288), rel=0.02)


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H200", "fp16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156.0),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
        ("NVIDIA L40S", "bf16", 362.05),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA A10G", "bf16", 70.0),
    ],
)
def test_peaks_of_devices(name: str, precision: str, tflops: float) -> None:
    assert gpu_peak(name, precision) == tflops * 1e12


def test_what_is_not_known_is_nan() -> None:
    assert math.isnan(gpu_peak("Tesla V100-SXM2-16GB", "bf16")), "it has none"
    assert math.isnan(gpu_peak("Some GPU", "fp32"))
    assert math.isnan(mfu_percent(1000.0, Cost(flops_per_token=1e6), 2))


def test_the_peak_of_a_cpu_is_measured_once() -> None:
    peak, source = find_device_peak("cpu", "bf16")
    assert 1e8 < peak < 1e14 and source.startswith("measured: fp32")
    assert measure_cpu_peak_per_thread() * torch.get_num_threads() == peak, "the same again"


def events(*values: tuple[int, str, object]) -> dict[str, np.ndarray]:
    rows = empty("events")
    for name in rows:
        column = {"rank": [v[0] for v in values], "name": [v[1] for v in values], "kind": ["peak"] * len(values)}
        column["value"] = [json.dumps(v[2]) for v in values]
        rows[name] = np.array(column.get(name, [0] * len(values)), dtype=object if name in column else float)
    return rows


def test_metrics_have_speed_and_utilisation() -> None:
    model = {"flops_per_token": 2e9, "parameters": 300, "formula": "6 N"}
    cost = cost_of(
        events(
            (0, "flops", {"flops_per_s": 1e12, "source": "here"}),
            (0, "model", model),
            (1, "flops", {"flops_per_s": 3e12, "source": "there"}),
            (1, "model", model),
        ),
        ranks=2,
    )
    assert (cost.peak, cost.parameters, cost.source) == (4e12, 300, "here")
    row = {"step": 1, "loss": 1.0, "tokens": 100, "step_time_ms": 500.0}
    steps = {
        name: np.array([{**row, "rank": rank}.get(name, 0.0) for rank in (0, 1)], dtype=kind if kind != "?" else bool)
        for name, kind in columns_of("steps").items()
    }
    frame = metrics_frame(steps, Mesh(dp=2), cost=cost)
    assert frame["tps"].tolist() == [200.0] and frame["tokens_per_s"].tolist() == [400.0]
    assert frame["tflops"].tolist() == [0.4]
    assert frame["mfu"].tolist() == [pytest.approx(100 * 400 * 2e9 / 4e12)]
    assert metrics_frame(steps, Mesh(dp=2), per_rank=True, cost=cost)["rank"].tolist() == [-1, 0, 1]
    assert metrics_frame(steps, Mesh(dp=2))["mfu"].isna().all()


def test_a_rank_that_did_not_say_its_peak_leaves_it_unknown() -> None:
    one = (0, "flops", {"flops_per_s": 1e12, "source": "here"})
    assert math.isnan(cost_of(events(one), ranks=2).peak)
    assert math.isnan(cost_of(events(one, (1, "flops", {"flops_per_s": None, "source": "?"})), ranks=2).peak)
    assert not cost_of(empty("events"), ranks=1).known
