"""Logs once per rank how many operations the model needs per token and how many the device can do per second."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from workbench.core.records import EventKind
from workbench.engine.base.workload import Workload
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.flops import gpu_peak, transformer_flops_per_token

_GEMM_SIZE = 512
_GEMM_S = 0.03

#: measured operations per second of one thread; a process that forks ranks measures once for all of them
_per_thread: list[float] = []


def measure_cpu_peak_per_thread() -> float:
    """Operations per second of one CPU thread: the fastest of several fp32 matrix products.

    Takes 30 ms at the first call in a process; later calls return the same number.
    """
    if not _per_thread:
        threads = torch.get_num_threads()
        left, right = torch.ones(2, _GEMM_SIZE, _GEMM_SIZE)
        best, end = math.inf, time.perf_counter() + _GEMM_S
        while time.perf_counter() < end or best == math.inf:
            began = time.perf_counter()
            torch.mm(left, right)
            best = min(best, time.perf_counter() - began)
        _per_thread.append(2.0 * _GEMM_SIZE**3 / best / threads)
    return _per_thread[0]


def find_device_peak(device: str, precision: str) -> tuple[float, str]:
    """Peak operations per second of ``device`` at ``precision``, and its source in words.

    For a GPU the peak is that of its data sheet (NaN if unknown), for a CPU it is measured with matrix products.
    """
    if device != "cuda":
        threads = torch.get_num_threads()
        threads_text = f"{threads} thread{'s' if threads > 1 else ''}"
        return (
            measure_cpu_peak_per_thread() * threads,
            f"measured: fp32 products of {_GEMM_SIZE} x {_GEMM_SIZE}, {threads_text}",
        )
    name = torch.cuda.get_device_name()
    used = "tf32" if precision == "fp32" and torch.backends.cuda.matmul.allow_tf32 else precision
    peak = gpu_peak(name, used)
    return peak, f"data sheet: {name}, dense {used}" if math.isfinite(peak) else f"unknown: {name}, {used}"


def count_model_flops(model: torch.nn.Module, tokens_per_sample: int | None) -> tuple[float, int, str]:
    """Operations per token (per sample if ``tokens_per_sample`` is 1), number of parameters, and the formula in words.

    ``tokens_per_sample`` None: the length is unknown, so the attention term, which grows with it, is left out.
    Embedding tables do not count, as they are looked up and not multiplied, unless an output layer shares them. NaN for
    a model that uses parameters more than once per sample in an unknown way: convolutions, recurrent layers or
    attention outside of a known transformer. Formula: PaLM (Chowdhery et al. 2022), appendix B.
    """
    parameters = {id(p): p for p in model.parameters()}
    total = sum(p.numel() for p in parameters.values())
    multiplied = {id(p) for m in model.modules() if not _is_embedding(m) for p in m.parameters(recurse=False)}
    counted = sum(p.numel() for key, p in parameters.items() if key in multiplied)
    config: Any = getattr(model, "config", None)
    layers = getattr(config, "num_hidden_layers", None) or 0
    if layers:
        known = tokens_per_sample is not None or getattr(config, "patch_size", None)
        per_token = _count_transformer_flops(config, counted, layers, tokens_per_sample or 1)
        return per_token, total, _TRANSFORMER_FORMULA if known else "6 N, attention left out"
    repeated = (torch.nn.modules.conv._ConvNd, torch.nn.RNNBase, torch.nn.MultiheadAttention)
    if any(isinstance(module, repeated) for module in model.modules()):
        return math.nan, total, "unknown: convolutions, recurrence or attention outside of a known transformer"
    return transformer_flops_per_token(counted), total, "6 N"


_TRANSFORMER_FORMULA = "6 N + 12 L H Q T (PaLM, appendix B)"


def _count_transformer_flops(config: Any, counted: int, layers: int, tokens_per_sample: int) -> float:
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    tokens, scale = tokens_per_sample, 1
    if tokens_per_sample == 1 and getattr(config, "patch_size", None):  # an image: its patches and the class token
        tokens = scale = (config.image_size // config.patch_size) ** 2 + 1
    per_token = transformer_flops_per_token(
        counted, layers=layers, heads=heads, head_size=head_size, sequence_length=tokens
    )
    return per_token * scale


def _is_embedding(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag)


def log_peak_events(log: RankLogWriter, workload: Workload, precision: str, device: str) -> None:
    """Log the events ``peak flops`` (this rank's device) and ``peak model`` (the user's model before it is sharded)."""
    peak, source = find_device_peak(device, precision)
    log.event(EventKind.PEAK, "flops", {"flops_per_s": _finite_or_none(peak), "precision": precision, "source": source})
    per_token, parameters, formula = count_model_flops(workload.model, workload.tokens_per_sample)
    value = {"flops_per_token": _finite_or_none(per_token), "parameters": parameters, "formula": formula}
    log.event(EventKind.PEAK, "model", value)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
