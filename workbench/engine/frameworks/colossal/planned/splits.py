"""How Colossal-AI's policies split a model, as the planner sees it: read from the policies, nothing is split."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from colossalai.pipeline.stage_manager import PipelineStageManager
from colossalai.shardformer.layer import (
    Linear1D_Col,
    Linear1D_Row,
    PaddingEmbedding,
    PaddingLMHead,
    VocabParallelEmbedding1D,
    VocabParallelLMHead1D,
)
from colossalai.shardformer.layer.embedding import Embedding1D
from colossalai.shardformer.layer.normalization import BaseLayerNorm
from colossalai.shardformer.layer.parallel_module import ParallelModule
from colossalai.shardformer.layer.qkv_fused_linear import GPT2FusedLinearConv1D_Col, GPT2FusedLinearConv1D_Row
from colossalai.shardformer.shard.shard_config import ShardConfig

from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.colossal.adapters import AROUND_ADAPTERS
from workbench.engine.frameworks.colossal.policies import policy_for
from workbench.planner.model import COLUMN, HEAD, ROW, VOCABULARY, Split, Splits

#: a split layer of Colossal-AI -> what is made of a layer, and the dim of its weight and of its bias that is cut
_LAYERS: dict[type, tuple[str, dict[str, int]]] = {
    Linear1D_Col: (COLUMN, {"weight": 0, "bias": 0}),
    Linear1D_Row: (ROW, {"weight": 1}),
    GPT2FusedLinearConv1D_Col: (COLUMN, {"weight": 1, "bias": 0}),
    GPT2FusedLinearConv1D_Row: (ROW, {"weight": 0}),
    VocabParallelEmbedding1D: (VOCABULARY, {"weight": 0}),
    VocabParallelLMHead1D: (HEAD, {"weight": 0, "bias": 0}),
    Embedding1D: (HEAD, {"weight": 1}),
}
#: replacements that leave every parameter as it is
_SAME = (PaddingEmbedding, PaddingLMHead, BaseLayerNorm)
_WITHOUT_ADAPTERS = {around: plain for plain, around in AROUND_ADAPTERS.items()}
_PADDED = (VocabParallelEmbedding1D, VocabParallelLMHead1D)


class _Stages(PipelineStageManager):
    """A stage of a pipeline that is not there."""

    def __init__(self, stage: int, count: int) -> None:
        self.num_layers_per_stage = None
        self.is_interleave = self.use_zbv = False
        self.num_model_chunks = 1
        self._stage, self._count = stage, count

    @property
    def num_stages(self) -> int:
        return self._count

    @property
    def stage(self) -> int:
        return self._stage


def splits_of(workload: Workload, tps: Collection[int], pps: Collection[int]) -> Splits:
    """As ``Plugin.splits``: for a model that the plugin's check let through, how each of these numbers of
    tensor-parallel ranks and of stages splits it."""
    model = getattr(workload.model, "_orig_mod", workload.model)
    tp, unknown = _tensor_parallel(model) if tps else ({}, "")
    stages = {count: tuple(_layers_of_stage(model, stage, count) for stage in range(count)) for count in pps}
    return Splits(tp=tp, stages=stages, unknown=unknown)


def _config(**changes: Any) -> ShardConfig:
    config = ShardConfig(
        enable_tensor_parallelism=False, parallel_output=False, make_vocab_size_divisible_by=1, **changes
    )
    # as of any number of ranks: what the policy names does not depend on it
    config.enable_tensor_parallelism = True
    return config


def _policy(model: torch.nn.Module, **changes: Any) -> Any:
    policy = policy_for(model)
    policy.set_model(model)
    policy.set_shard_config(_config(**changes))
    policy.preprocess()
    return policy


def _layers_of_stage(model: torch.nn.Module, stage: int, count: int) -> tuple[str, ...]:
    """Names of the modules that a stage holds, in the order in which they run."""
    names = {id(module): name for name, module in model.named_modules()}
    held = _policy(model, pipeline_stage_manager=_Stages(stage, count)).get_held_layers()
    return tuple(names[id(module)] for module in held if module is not None and id(module) in names)


def _tensor_parallel(model: torch.nn.Module) -> tuple[dict[str, Split], str]:
    found: dict[str, Split] = {}
    for kind, description in _policy(model).module_policy().items():
        for name, module in model.named_modules():
            if type(module) is not kind and type(module).__name__ != kind:
                continue
            if description.param_replacement:
                return {}, f"the policy of {type(model).__name__} replaces parameters by code of its own"
            for replacement in description.sub_module_replacement or ():
                inner = f"{name}.{replacement.suffix}".lstrip(".").replace("[", ".").replace("]", "")
                split, unknown = _split(model, inner, replacement.target_module)
                if unknown:
                    return {}, unknown
                if split is not None:
                    found[inner] = split
    return found, ""


def _split(model: torch.nn.Module, name: str, target: Any) -> tuple[Split | None, str]:
    """The split of one layer (None: every rank holds it whole), and why it is not known."""
    module = _submodule(model, name)
    target = _WITHOUT_ADAPTERS.get(target, target)
    if module is None or not list(module.parameters()) or issubclass(target, _SAME):
        return None, ""
    if target not in _LAYERS:
        cuts = issubclass(target, ParallelModule) and not target.__name__.startswith(("Linear", "GPT2Fused", "Fused"))
        return None, f"{target.__name__} of {name} is not known to the planner" if cuts else ""
    kind, dims = _LAYERS[target]
    is_classifier = kind == COLUMN and name.rpartition(".")[2] in ("score", "classifier")
    return (
        Split(
            kind=HEAD if is_classifier else kind,
            dims=_dims(model, module, name, kind, dims),
            multiple=1 if target in _PADDED else 0,
            whole_unless_divided=is_classifier,
        ),
        "",
    )


def _dims(
    model: torch.nn.Module, module: torch.nn.Module, name: str, kind: str, dims: Mapping[str, int]
) -> dict[str, int]:
    """The parameters of a layer by their name in the model -> the dim that is cut. Of a layer with adapters these are
    the base layer and that adapter matrix that is split with it."""
    names = {id(parameter): full for full, parameter in model.named_parameters()}
    cut, dim = ("lora_B", 0) if kind == COLUMN else ("lora_A", 1)  # of torch.nn.Linear, also in GPT-2's layers
    found = {}
    for inner, parameter in module.named_parameters():
        path, _, leaf = inner.rpartition(".")
        if leaf in dims and (not path or path == "base_layer"):
            found[names[id(parameter)]] = dims[leaf]
        elif path.startswith(f"{cut}."):
            found[names[id(parameter)]] = dim
    return found


def _submodule(model: torch.nn.Module, name: str) -> torch.nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
