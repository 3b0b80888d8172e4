"""What a rank says once at its start: how many operations its model takes, and how many its device could do."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from workbench.engine.base.workload import Workload
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.flops import gpu_peak, transformer_flops_per_token

_GEMM_SIZE = 512
_GEMM_S = 0.03

#: operations per second of one thread, once measured; a process that forks ranks measures it for all of them
_per_thread: list[float] = []


def cpu_peak_per_thread() -> float:
    """Operations per second of one thread in the best of some fp32 matrix products; 30 ms, once per process."""
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


def device_peak(device: str, precision: str) -> tuple[float, str]:
    """Operations per second, and how that is known: a GPU's data sheet, or products measured on the CPU."""
    if device != "cuda":
        threads = torch.get_num_threads()
        threads_text = f"{threads} thread{'s' if threads > 1 else ''}"
        return (
            cpu_peak_per_thread() * threads,
            f"measured: fp32 products of {_GEMM_SIZE} x {_GEMM_SIZE}, {threads_text}",
        )
    name = torch.cuda.get_device_name()
    used = "tf32" if precision == "fp32" and torch.backends.cuda.matmul.allow_tf32 else precision
    peak = gpu_peak(name, used)
    return peak, f"data sheet: {name}, dense {used}" if math.isfinite(peak) else f"unknown: {name}, {used}"


def model_flops(model: torch.nn.Module, tokens_per_sample: int | None) -> tuple[float, int, str]:
    """Operations per token (per sample, where ``tokens_per_sample`` is 1), parameters, and the formula in words.
    ``tokens_per_sample`` None: not known before the data are, so what grows with it is left out.

    Tables that are looked up and not multiplied with (``torch.nn.Embedding``, unless an output layer shares it) don't
    count. NaN for a model whose parameters are used more than once per sample in a way that is not known (convolutions
    outside of a transformer, recurrent layers).
    """
    parameters = {id(p): p for p in model.parameters()}
    total = sum(p.numel() for p in parameters.values())
    multiplied = {id(p) for m in model.modules() if not _is_table(m) for p in m.parameters(recurse=False)}
    counted = sum(p.numel() for key, p in parameters.items() if key in multiplied)
    config: Any = getattr(model, "config", None)
    layers = getattr(config, "num_hidden_layers", None) or 0
    if layers:
        known = tokens_per_sample is not None or getattr(config, "patch_size", None)
        per_token = _of_transformer(config, counted, layers, tokens_per_sample or 1)
        return per_token, total, _TRANSFORMER if known else "6 N, attention left out"
    repeated = (torch.nn.modules.conv._ConvNd, torch.nn.RNNBase, torch.nn.MultiheadAttention)
    if any(isinstance(module, repeated) for module in model.modules()):
        return math.nan, total, "unknown: convolutions, recurrence or attention outside of a known transformer"
    return transformer_flops_per_token(counted), total, "6 N"


_TRANSFORMER = "6 N + 12 L H Q T (PaLM, appendix B)"


def _of_transformer(config: Any, counted: int, layers: int, tokens_per_sample: int) -> float:
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    tokens, scale = tokens_per_sample, 1
    if tokens_per_sample == 1 and getattr(config, "patch_size", None):  # an image: its patches and the class token
        tokens = scale = (config.image_size // config.patch_size) ** 2 + 1
    per_token = transformer_flops_per_token(
        counted, layers=layers, heads=heads, head_size=head_size, sequence_length=tokens
    )
    return per_token * scale


def _is_table(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag)


def log_cost(log: RankLogWriter, workload: Workload, precision: str, device: str) -> None:
    """Events ``peak``: ``flops`` of this rank's device, ``model`` of the user's model before a plan splits it."""
    peak, source = device_peak(device, precision)
    log.event("peak", "flops", {"flops_per_s": _json(peak), "precision": precision, "source": source})
    per_token, parameters, formula = model_flops(workload.model, workload.tokens_per_sample)
    value = {"flops_per_token": _json(per_token), "parameters": parameters, "formula": formula}
    log.event("peak", "model", value)


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
