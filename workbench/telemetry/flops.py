"""Floating point operations: what a model takes, what a device can do, and so how much of the device is used.

Everything here is arithmetic on numbers that a rank logs once, in events of the kind ``peak``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from workbench.core.columns import Columns
from workbench.core.records import EventKind
from workbench.events.decode import as_number, of_kind

#: Dense peak in 10**12 operations per second, per precision of a run: NVIDIA's data sheets, without sparsity. "fp32" is
#: what torch does by default (no TF32). A name matches the first entry it contains; longer names come first.
GPU_PEAKS: dict[str, dict[str, float]] = {
    "GH200": {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "GB200": {"bf16": 2500.0, "fp16": 2500.0, "tf32": 1250.0, "fp32": 80.0},
    "B200": {"bf16": 2250.0, "fp16": 2250.0, "tf32": 1125.0, "fp32": 75.0},
    "H200 NVL": {"bf16": 835.5, "fp16": 835.5, "tf32": 417.7, "fp32": 60.0},
    "H200": {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "H100 NVL": {"bf16": 835.5, "fp16": 835.5, "tf32": 417.7, "fp32": 60.0},
    "H100 PCIe": {"bf16": 756.5, "fp16": 756.5, "tf32": 378.0, "fp32": 51.2},
    "H100": {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "H800": {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "A100": {"bf16": 312.0, "fp16": 312.0, "tf32": 156.0, "fp32": 19.5},
    "A800": {"bf16": 312.0, "fp16": 312.0, "tf32": 156.0, "fp32": 19.5},
    "A30": {"bf16": 165.0, "fp16": 165.0, "tf32": 82.0, "fp32": 10.3},
    "A40": {"bf16": 149.7, "fp16": 149.7, "tf32": 74.8, "fp32": 37.4},
    "A10G": {"bf16": 70.0, "fp16": 70.0, "tf32": 35.0, "fp32": 31.5},
    "A10": {"bf16": 125.0, "fp16": 125.0, "tf32": 62.5, "fp32": 31.2},
    "L40S": {"bf16": 362.05, "fp16": 362.05, "tf32": 183.2, "fp32": 91.6},
    "L40": {"bf16": 181.05, "fp16": 181.05, "tf32": 90.5, "fp32": 90.5},
    "L4": {"bf16": 121.0, "fp16": 121.0, "tf32": 60.0, "fp32": 30.3},
    "V100S": {"fp16": 130.0, "fp32": 16.4},
    "V100-PCIE": {"fp16": 112.0, "fp32": 14.0},
    "V100": {"fp16": 125.0, "fp32": 15.7},
    "T4": {"fp16": 65.0, "fp32": 8.1},
    "RTX 5090": {"bf16": 209.5, "fp16": 209.5, "tf32": 104.8, "fp32": 104.8},
    "RTX 4090": {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6},
    "RTX 3090": {"bf16": 71.0, "fp16": 71.0, "tf32": 35.6, "fp32": 35.6},
}


def gpu_peak(name: str, precision: str) -> float:
    """Operations per second of the GPU that calls itself ``name``, at ``precision`` (bf16, fp16, tf32, fp32).

    NaN for a device that is not in the table, or that cannot do the precision.
    """
    for known, peaks in GPU_PEAKS.items():
        if known in name:
            return peaks.get(precision, math.nan) * 1e12
    return math.nan


def transformer_flops_per_token(
    parameters: int, *, layers: int = 0, heads: int = 0, head_size: int = 0, sequence_length: int = 0
) -> float:
    """Operations that forward and backward of one token take: ``6 N + 12 L H Q T``.

    PaLM (Chowdhery et al. 2022, appendix B): N parameters that are multiplied with, L layers, H heads of size Q, T
    tokens in a sequence. Attention counts as if every token saw all T (so does Megatron-LM, Narayanan et al. 2021).
    Recomputed activations don't count: these are the model's operations, not the hardware's. Without layers: ``6 N``.
    """
    return 6.0 * parameters + 12.0 * layers * heads * head_size * sequence_length


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run's model takes and its devices can do. NaN where it is not known.

    ``flops_per_token``: as in ``StepRecord.tokens`` (per sample, where a model has no tokens). ``peak``: operations
    per second of all ranks' devices together. ``source`` says how the peak is known.
    """

    flops_per_token: float = math.nan
    parameters: int = 0
    formula: str = ""
    peak: float = math.nan
    source: str = ""

    @property
    def known(self) -> bool:
        """Whether the model's operations per token are known."""
        return math.isfinite(self.flops_per_token)


def cost_of(events: Columns, ranks: int) -> Cost:
    """The cost that ranks logged at their start (events ``peak``). Peaks are added over ranks: all or NaN."""
    peaks: dict[int, float] = {}
    model = Cost()
    source = ""
    for event in of_kind(events, EventKind.PEAK):
        value = event.fields
        if event.name == "flops":
            peaks[event.rank] = as_number(value.get("flops_per_s"))
            source = source or str(value.get("source", ""))
        elif event.name == "model":
            parameters = as_number(value.get("parameters"))
            model = Cost(
                flops_per_token=as_number(value.get("flops_per_token")),
                parameters=int(parameters) if math.isfinite(parameters) else 0,
                formula=str(value.get("formula", "")),
            )
    return replace(model, peak=sum(peaks.values()) if len(peaks) == ranks else math.nan, source=source)


def tflops_per_device(tokens_per_s_per_device: Any, cost: Cost) -> Any:
    """10**12 model operations per second and device; of a number or of an array."""
    return tokens_per_s_per_device * cost.flops_per_token / 1e12


def mfu_percent(tokens_per_s_per_device: Any, cost: Cost, ranks: int) -> Any:
    """Model FLOPs utilisation in percent: model operations per second over what all devices can do (Chowdhery et al.
    2022, appendix B); of a number or of an array. NaN where the peak is not known."""
    return 100.0 * tokens_per_s_per_device * ranks * cost.flops_per_token / cost.peak
