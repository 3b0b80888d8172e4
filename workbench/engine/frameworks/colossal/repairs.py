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


def _whole_logits() -> None:
    from colossalai.shardformer.policies import gpt2

    upstream = gpt2.GPT2LMHeadModelPolicy.module_policy

    def module_policy(self: Any) -> dict[Any, Any]:
        policy = upstream(self)
        for description in policy.values():
            for replacement in description.sub_module_replacement or []:
                if replacement.suffix == "lm_head" and "gather_output" in replacement.kwargs:
                    replacement.kwargs["gather_output"] = not self.shard_config.parallel_output
        return policy

    gpt2.GPT2LMHeadModelPolicy.module_policy = module_policy


def _alike_dropout() -> None:
    from colossalai.shardformer.layer import DropoutForReplicatedInput
    from colossalai.shardformer.policies import gpt2

    upstream = gpt2.GPT2Policy.module_policy

    def module_policy(self: Any) -> dict[Any, Any]:
        policy = upstream(self)
        for description in policy.values():
            for replacement in description.sub_module_replacement or []:
                if replacement.suffix in ("drop", "attn.resid_dropout", "mlp.dropout"):
                    replacement.target_module = DropoutForReplicatedInput
        return policy

    gpt2.GPT2Policy.module_policy = module_policy


def _unlabelled() -> None:
    from colossalai.shardformer.modeling.gpt2 import GPT2PipelineForwards

    upstream = GPT2PipelineForwards.gpt2_lmhead_model_forward

    def forward(self: Any, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if labels is not None:
            return upstream(self, *args, labels=labels, **kwargs)
        hidden: Any = kwargs.get("hidden_states")
        ids = args[0] if args else kwargs.get("input_ids")
        like = ids if ids is not None else hidden[..., 0]
        outputs = upstream(self, *args, labels=torch.zeros_like(like, dtype=torch.long), **kwargs)
        if not hasattr(outputs, "loss"):
            return outputs  # a stage that is not the last
        return type(outputs)(**{key: value for key, value in outputs.items() if key != "loss"})

    GPT2PipelineForwards.gpt2_lmhead_model_forward = staticmethod(forward)


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
    from colossalai.shardformer.modeling import gpt2

    class Cuda:
        @staticmethod
        def set_device(device: Any) -> None: ...

        def __getattr__(self, name: str) -> Any:
            return getattr(torch.cuda, name)

    class TorchOnCpu:
        cuda = Cuda()

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    gpt2.torch = TorchOnCpu()


def _hccl() -> None:
    from colossalai.pipeline import p2p

    p2p._check_for_nccl_hccl_backend = lambda group: False


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
        "whole-logits",
        "shardformer/policies/gpt2.py:360",
        "sharded GPT-2 ignores parallel_output=False: a criterion would see this rank's part of the vocabulary only",
        False,
        _whole_logits,
    ),
    Repair(
        "alike-dropout",
        "shardformer/policies/gpt2.py:74",
        "sharded GPT-2 drops other elements of the same activations on each tensor-parallel rank: weights that all of "
        "them hold (norms) drift apart",
        False,
        _alike_dropout,
    ),
    Repair(
        "unlabelled",
        "shardformer/modeling/gpt2.py:411",
        "without labels the loss is an unbound name: sharded GPT-2 cannot be asked for logits alone",
        False,
        _unlabelled,
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
        "shardformer/modeling/gpt2.py:258",
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
