"""Every change that this project makes to Colossal-AI, in one place.

Each repair names the upstream file and the reason. Those that only CPU ranks need are applied only there; those that
mend a silently wrong result are applied on every device. A version of Colossal-AI that these were not written for is
refused: a repair applied to other code is worse than none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import colossalai
import torch

from workbench.engine.frameworks.colossal.pipeline_parallel.tied_weights import add_up_trained
from workbench.errors import ConfigError

#: the version whose code the repairs below were written against
COLOSSALAI_VERSION = "0.5.0"


@dataclass(frozen=True)
class Repair:
    """One change: ``reason`` is for people; ``cpu_only`` repairs are never applied on GPU ranks."""

    name: str
    file: str
    reason: str
    cpu_only: bool
    apply: Callable[[], None]


def _causal_mask() -> None:
    from colossalai.shardformer.modeling import gpt2

    upstream = gpt2._get_attention_mask

    def get_attention_mask(  # noqa: PLR0917 - upstream's signature
        self: Any,
        shard_config: Any,
        hidden_states: torch.Tensor,
        past_key_values: Any,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
    ) -> tuple[Any, Any]:
        batch, length = hidden_states.shape[:2]
        if attention_mask is None:  # upstream reads its size without asking
            attention_mask = torch.ones(batch, length, device=hidden_states.device)
        arguments = (past_key_values, attention_mask, encoder_hidden_states, encoder_attention_mask)
        mask, encoder_mask = upstream(self, shard_config, hidden_states, *arguments)
        if shard_config.enable_flash_attention or self.config._attn_implementation != "sdpa":
            return mask, encoder_mask  # those paths add the causal part themselves
        past = 0 if not past_key_values or past_key_values[0] is None else past_key_values[0][0].shape[2]
        if past == 0 and bool(attention_mask.all()):
            return None, encoder_mask  # no mask at all: GPT2Attention then asks sdpa for a causal one
        lowest = torch.finfo(hidden_states.dtype).min
        hidden = torch.full((length, length + past), lowest, dtype=hidden_states.dtype, device=hidden_states.device)
        causal = torch.triu(hidden, diagonal=past + 1)[None, None]
        return torch.clamp(causal + mask.to(causal.dtype), min=lowest), encoder_mask

    gpt2._get_attention_mask = get_attention_mask


def _causal_window() -> None:
    from colossalai.shardformer.modeling import mixtral

    upstream = mixtral._prepare_4d_causal_attention_mask

    def prepare(
        mask: torch.Tensor | None, shape: Any, states: torch.Tensor, past: int, *, sliding_window: int | None
    ) -> torch.Tensor:
        if mask is not None and mask.dim() == 4:  # made by the cell
            return mask
        window = None if sliding_window is None else sliding_window - 1
        return upstream(mask, shape, states, past, sliding_window=window)

    mixtral._prepare_4d_causal_attention_mask = prepare


def _batch_norm() -> None:
    from colossalai.booster.plugin import hybrid_parallel_plugin, torch_ddp_plugin

    class AsItIs:
        @staticmethod
        def convert_sync_batchnorm(module: torch.nn.Module, process_group: Any = None) -> torch.nn.Module:
            return module

    class Nn:
        SyncBatchNorm = AsItIs

        def __getattr__(self, name: str) -> Any:
            return getattr(torch.nn, name)

    torch_ddp_plugin.nn = Nn()
    hybrid_parallel_plugin.SyncBatchNorm = AsItIs


def _set_device() -> None:
    upstream = torch.cuda.set_device

    def set_device(device: Any) -> None:
        if torch.device(device).type != "cpu":
            upstream(device)

    torch.cuda.set_device = set_device


def _hccl() -> None:
    from colossalai.pipeline import p2p

    p2p._check_for_nccl_hccl_backend = lambda group: False


def _layer_seeds() -> None:
    from colossalai.shardformer.layer.utils import Randomizer

    def seeded(self: Any, seed: int) -> None:
        kept = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        self.seed, self.device_rng_state, self.cpu_rng_state = seed, torch.get_rng_state(), torch.get_rng_state()
        torch.set_rng_state(kept)

    Randomizer.__init__ = seeded


def _reduce_scatter() -> None:
    """torch < 2.6 only: its gloo has no reduce_scatter, so ZeRO-2 reduces the whole and keeps its part."""
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 6):
        return
    import torch.distributed as dist
    from colossalai.zero.low_level import low_level_optim

    class DistributedOnGloo:
        @staticmethod
        def reduce_scatter_tensor(output: torch.Tensor, input: torch.Tensor, group: Any = None) -> None:
            dist.all_reduce(input, group=group)
            output.copy_(input.view(-1).chunk(dist.get_world_size(group))[dist.get_rank(group)])

        def __getattr__(self, name: str) -> Any:
            return getattr(dist, name)

    low_level_optim.dist = DistributedOnGloo()


def _ring_gather() -> None:
    import torch.distributed as dist
    from colossalai.shardformer.layer import _operation

    def ring_as_gather(  # noqa: PLR0917 - upstream's signature
        func: Callable[..., torch.Tensor],
        input_to_gather: dict[str, torch.Tensor],
        input_local: dict[str, torch.Tensor],
        process_group: Any = None,
        gather_dim: int = 1,
        keep_item: bool = False,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        ranks = dist.get_process_group_ranks(process_group)
        size, here = len(ranks), dist.get_rank(process_group)
        parts: list[dict[str, torch.Tensor]] = [{}] * size
        outputs = [torch.empty(0)] * size
        part = {name: tensor.contiguous() for name, tensor in input_to_gather.items()}
        for turn in range(size):
            received = {name: torch.empty_like(tensor) for name, tensor in part.items()} if turn < size - 1 else {}
            operations = []
            for name, tensor in received.items():
                operations.append(dist.P2POp(dist.irecv, tensor, ranks[(here + 1) % size], group=process_group))
                operations.append(dist.P2POp(dist.isend, part[name], ranks[here - 1], group=process_group))
            requests = dist.batch_isend_irecv(operations) if operations else []
            place = (here + turn) % size
            parts[place], outputs[place] = part, func(**part, **input_local)
            for request in requests:
                request.wait()
            part = received
        gathered = {name: torch.cat([each[name] for each in parts], dim=gather_dim) for name in input_to_gather}
        return torch.cat(outputs, dim=gather_dim), gathered

    _operation._ring_as_gather = ring_as_gather


class _CpuAdam:
    """What the compiled kernel of CPUAdam does (kernel/extensions/csrc/kernel/x86/cpu_adam.cpp), by torch."""

    def __init__(  # noqa: PLR0917 - upstream's signature
        self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, adamw_mode: bool
    ) -> None:
        self._is_adamw = adamw_mode

    def step(  # noqa: PLR0917 - upstream's signature
        self,
        step: int,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        bias_correction: bool,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        mean: torch.Tensor,
        square: torch.Tensor,
        loss_scale: float,
    ) -> None:
        gradient = gradient.to(weight.dtype)
        if loss_scale > 0:
            gradient = gradient / loss_scale
        if weight_decay > 0 and self._is_adamw:
            weight.mul_(1 - lr * weight_decay)
        elif weight_decay > 0:
            gradient = gradient.add(weight, alpha=weight_decay)
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        first, second = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
        weight.addcdiv_(mean, (square / second).sqrt_().add_(eps), value=-lr / first)


class _CpuAdamLoader:
    """Stands for upstream's, which finds no kernel."""

    CPUAdamOptimizer = _CpuAdam

    def load(self) -> type[_CpuAdamLoader]:
        return type(self)


def _cpu_adam() -> None:
    from colossalai.nn.optimizer import cpu_adam

    cpu_adam.CPUAdamLoader = _CpuAdamLoader


def _fused_kernels() -> None:
    from colossalai.kernel import kernel_loader
    from colossalai.nn.optimizer import galore

    class FusedOptimizerLoader(kernel_loader.FusedOptimizerLoader):
        def load(self, ext_name: str | None = None) -> Any:
            if not any(extension().is_available() for extension in self.REGISTRY):
                raise ConfigError(
                    "FusedAdam, FusedSGD and FusedLAMB of Colossal-AI have kernels for GPUs only: use HybridAdam, "
                    "which trains on both, or an optimizer of torch.optim",
                    field="optimizer",
                )
            return super().load(ext_name)

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ConfigError(
            "GaLoreAdamW8bit keeps its state in 8 bits, with kernels of bitsandbytes that were not tried here: use "
            "GaLoreAdamW of galore_torch with --plugin ddp, or an optimizer of torch.optim",
            field="optimizer",
        )

    kernel_loader.FusedOptimizerLoader = FusedOptimizerLoader
    galore.GaLoreAdamW8bit.__init__ = refuse


def _absent_weights() -> None:
    from colossalai.zero.gemini.chunk.chunk import Chunk

    upstream: Any = Chunk._Chunk__scatter

    def scatter(self: Any) -> None:
        upstream(self)
        if not self.is_gathered:
            absent = torch.full((), torch.nan, dtype=self.dtype, device=self.cuda_global_chunk.device)
            for tensor in self.tensors_info:
                tensor.data = absent.expand(tensor.shape)

    Chunk._Chunk__scatter = scatter


class _OnDevice:
    """Where a rank computes, by the name that Gemini asks for."""

    type = "cuda"


def _one_memory() -> None:
    from colossalai.zero.gemini.chunk import chunk, manager

    upstream = chunk.Chunk.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        upstream(self, *args, **{**kwargs, "pin_memory": False})
        self.shard_device = _OnDevice()

    chunk.Chunk.__init__ = init
    manager.ChunkManager.move_chunk = lambda self, *args, **kwargs: None


def forget_coordinator() -> None:
    """Drop the ``DistCoordinator`` singleton (cluster/dist_coordinator.py): it keeps the rank and world size of the
    process group in which it was first made, so after a relaunch ``is_master`` and saving are wrong. Call it whenever
    a process group begins or ends."""
    from colossalai.cluster import DistCoordinator
    from colossalai.context.singleton_meta import SingletonMeta

    SingletonMeta._instances.pop(DistCoordinator, None)


REPAIRS: tuple[Repair, ...] = (
    Repair(
        "causal-mask",
        "shardformer/modeling/gpt2.py:78",
        "sharded GPT-2 hands sdpa a padding mask, which switches off its causal one: attention sees the future",
        False,
        _causal_mask,
    ),
    Repair(
        "coordinator",
        "cluster/dist_coordinator.py:44",
        "a singleton that keeps rank and world size of the first process group (see forget_coordinator)",
        False,
        forget_coordinator,
    ),
    Repair(
        "causal-window",
        "shardformer/modeling/mixtral.py:316",
        "a pipelined Mixtral with a sliding window sees one token more than the transformers library's",
        False,
        _causal_window,
    ),
    Repair(
        "fused-kernels",
        "nn/optimizer/fused_adam.py:75, galore.py:206",
        "optimizers without a kernel for the device fail with an assertion, or with an error of their base class",
        False,
        _fused_kernels,
    ),
    Repair(
        "ring-gather",
        "shardformer/layer/_operation.py:470",
        "sequence parallelism in a ring keeps other inputs for the gradient than those that it computed with",
        False,
        _ring_gather,
    ),
    Repair(
        "batch-norm",
        "booster/plugin/torch_ddp_plugin.py:286, hybrid_parallel_plugin.py:115",
        "batch normalisation becomes torch's synchronised one unasked, which runs on GPUs only (see BatchNorms)",
        False,
        _batch_norm,
    ),
    Repair(
        "set-device",
        "shardformer/modeling/gpt2.py:258, gptj.py:190, opt.py:208, t5.py:177",
        "torch.cuda.set_device(cpu) raises on a CPU rank",
        True,
        _set_device,
    ),
    Repair(
        "hccl",
        "pipeline/p2p.py:160",
        "asks torch.distributed for an HCCL attribute that only NPU builds have",
        True,
        _hccl,
    ),
    Repair(
        "cpu-adam",
        "kernel/extensions/pybind/cpu_adam/cpu_adam_x86.py:12",
        "the kernel of HybridAdam and CPUAdam for CPUs is compiled on hosts with CUDA only",
        True,
        _cpu_adam,
    ),
    Repair(
        "absent-weights",
        "zero/gemini/chunk/chunk.py:544",
        "who reads a weight whose chunk Gemini has cut again crashes the process: it is NaN until it is gathered",
        False,
        _absent_weights,
    ),
    Repair(
        "one-memory",
        "zero/gemini/chunk/chunk.py:313",
        "Gemini moves slices of chunks between the memory of a device and of its host by the name of the device",
        True,
        _one_memory,
    ),
    Repair(
        "tied-weights",
        "booster/plugin/hybrid_parallel_plugin.py:135",
        "stages of a pipeline add up the gradients of tied weights also when they are frozen and have none",
        False,
        add_up_trained,
    ),
    Repair(
        "layer-seeds",
        "shardformer/layer/utils.py:149",
        "each sharded layer seeds a CPU rank's only generator twice, for each of which torch formats two stacks",
        True,
        _layer_seeds,
    ),
    Repair(
        "reduce-scatter",
        "zero/low_level/low_level_optim.py:385",
        "gloo of torch < 2.6 has no reduce_scatter_tensor",
        True,
        _reduce_scatter,
    ),
)

_applied: set[str] = set()


def apply(device_type: str) -> list[str]:
    """Apply every repair that ``device_type`` ("cpu" or "cuda") needs, once per process; names of those in force.

    Raises ``ConfigError`` for a version of Colossal-AI that the repairs were not written for.
    """
    if colossalai.__version__ != COLOSSALAI_VERSION:
        raise ConfigError(
            f"Colossal-AI {colossalai.__version__} at {sys.executable} was not tested: "
            f"its known errors are mended for {COLOSSALAI_VERSION} only: pip install colossalai=={COLOSSALAI_VERSION}"
        )
    for repair in REPAIRS:
        if repair.name in _applied or (repair.cpu_only and device_type != "cpu"):
            continue
        repair.apply()
        _applied.add(repair.name)
    return sorted(_applied)
