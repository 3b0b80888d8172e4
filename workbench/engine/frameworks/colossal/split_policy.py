"""Colossal-AI's policies (how the modules of a model are split), with what is wrong in them mended.

A policy of Colossal-AI brings its own copy of each head's forward pass: of its loss, of the token that a classifier
pools, of the labels that it ignores. The copies differ from the installed transformers. Here only the body of a model
runs Colossal-AI's code. The head is the transformers library's own, under a pipeline too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch
from colossalai.shardformer.layer import (
    DropoutForParallelInput,
    DropoutForReplicatedInput,
    Linear1D_Col,
    Linear1D_Row,
    PaddingEmbedding,
    PaddingLMHead,
    VocabParallelEmbedding1D,
    VocabParallelLMHead1D,
)
from colossalai.shardformer.policies.base_policy import (
    ModulePolicyDescription,
    Policy,
    SubModuleReplacementDescription,
)

from workbench.engine.frameworks.colossal.adapters import AROUND_ADAPTERS
from workbench.engine.frameworks.colossal.families import Family, family_of
from workbench.engine.frameworks.colossal.sequence_parallel import padded

_VOCABULARY = (PaddingEmbedding, PaddingLMHead, VocabParallelEmbedding1D, VocabParallelLMHead1D)


class SplitPolicy(Policy):
    """``upstream``, Colossal-AI's policy for the class of a model, mended."""

    def __init__(self, upstream: Policy) -> None:
        super().__init__()
        self.upstream = upstream

    def set_model(self, model: torch.nn.Module) -> None:
        """The model to be split."""
        super().set_model(model)
        self.upstream.set_model(model)

    def set_shard_config(self, shard_config: Any) -> None:
        """Over which ranks."""
        super().set_shard_config(shard_config)
        self.upstream.set_shard_config(shard_config)

    def config_sanity_check(self) -> None:
        """Upstream's is asked by its own ``set_shard_config``."""

    def preprocess(self) -> torch.nn.Module:
        """As upstream."""
        return self.upstream.preprocess()

    def postprocess(self) -> torch.nn.Module:
        """As upstream, which ties OPT's embeddings also where they were not tied (policies/opt.py:433)."""
        assert self.model is not None
        return self.upstream.postprocess() if getattr(self.upstream, "tie_weight", True) else self.model

    def get_held_layers(self) -> list[Any]:
        """As upstream."""
        return self.upstream.get_held_layers()

    def get_shared_params(self) -> list[dict[int, torch.Tensor]]:
        """As upstream."""
        return self.upstream.get_shared_params()

    def module_policy(self) -> dict[Any, Any]:
        """Upstream's descriptions by class of module, mended."""
        assert self.model is not None
        with _known_attention(self.model) as renamed:
            policy = self.upstream.module_policy()
        policy = {renamed.get(module, module): description for module, description in policy.items()}
        for module, description in policy.items():
            found = description.sub_module_replacement or []
            description.sub_module_replacement = [item for item in found if not self._is_undivided_head(item)]
            for replacement in description.sub_module_replacement:
                self._mend(replacement)
                name = getattr(module, "__name__", module)
                if name == "T5DenseGatedActDense":
                    _mend_gated(replacement)
                if replacement.target_module is DropoutForParallelInput and not _is_of_shards(name, replacement.suffix):
                    replacement.target_module = DropoutForReplicatedInput
                replacement.target_module = AROUND_ADAPTERS.get(replacement.target_module, replacement.target_module)
        self._use_own_forward(policy)
        return policy

    def _is_undivided_head(self, replacement: SubModuleReplacementDescription) -> bool:
        """Whether a classifier has another number of labels than tp divides: every rank holds the whole."""
        assert self.model is not None
        assert self.shard_config is not None
        is_head = replacement.target_module is Linear1D_Col and replacement.suffix in ("score", "classifier")
        return is_head and self.model.config.num_labels % self.shard_config.tensor_parallel_size != 0

    def _mend(self, replacement: SubModuleReplacementDescription) -> None:
        """Whole logits, a vocabulary of the size that it has, and names without blanks (policies/t5.py:174)."""
        assert self.shard_config is not None
        replacement.suffix = replacement.suffix.strip()
        if replacement.suffix == "lm_head" and replacement.target_module is Linear1D_Col:
            replacement.target_module = VocabParallelLMHead1D  # takes any size; the other one does not
        if replacement.target_module in _VOCABULARY:
            replacement.kwargs = {
                **(replacement.kwargs or {}),
                "make_vocab_size_divisible_by": self.shard_config.make_vocab_size_divisible_by,
            }
        if replacement.target_module is VocabParallelLMHead1D:
            replacement.kwargs["gather_output"] = not self.shard_config.parallel_output

    def _use_own_forward(self, policy: dict[Any, ModulePolicyDescription]) -> None:
        """Let the model run its class's own forward pass; under a pipeline around a body that is Colossal-AI's."""
        model: Any = self.model
        assert self.shard_config is not None
        if self.shard_config.enable_sequence_parallelism and self.pipeline_stage_manager is None:
            _methods_of(model, policy).pop("forward", None)
            compute = partial(_forward_of_body(model), model.base_model, shard_config=self.shard_config)
            stage = StageOfModel(model, compute, self.shard_config.sequence_parallel_size)
            self.append_or_create_method_replacement({"forward": stage.forward_of_body}, policy, type(_body_of(model)))
            return
        if self.pipeline_stage_manager is None:
            for module in (model, model.base_model):
                _methods_of(module, policy).pop("forward", None)
            return
        if _body_of(model) is not None:
            upstream = _methods_of(model, policy).pop("forward")
            compute = partial(_forward_of_body(model), model.base_model, **upstream.keywords)
            stage = StageOfModel(model, compute, self.shard_config.sequence_parallel_size)
            for module, forward in ((model, stage.forward_of_model), (_body_of(model), stage.forward_of_body)):
                self.append_or_create_method_replacement({"forward": forward}, policy, type(module))


def _methods_of(module: torch.nn.Module, policy: dict[Any, ModulePolicyDescription]) -> dict[str, Any]:
    """The methods that ``policy`` replaces in a module; those of Qwen2 are known by their names only."""
    description = policy.get(type(module), policy.get(type(module).__name__))
    return {} if description is None else description.method_replacement or {}


def _is_of_shards(module: str, dropout: str) -> bool:
    """Whether a dropout sees other elements on each tensor-parallel rank: in attention, between two split layers.

    Others see the same on all of them, and have to drop the same: else weights that all ranks hold drift apart.
    """
    return module in ("T5DenseActDense", "T5DenseGatedActDense") or dropout.endswith(
        ("attn_dropout", "attention_dropout", "self.dropout", "attention.attention.dropout")
    )


def _mend_gated(replacement: SubModuleReplacementDescription) -> None:
    """The first two layers by columns, the last one by rows (policies/t5.py:171 has them mixed up)."""
    if replacement.suffix == "wi_1" and replacement.target_module is Linear1D_Row:
        replacement.target_module = Linear1D_Col
    elif replacement.suffix == "wo" and replacement.target_module is Linear1D_Col:
        replacement.target_module = Linear1D_Row
        replacement.kwargs.pop("gather_output")


class StageOfModel:
    """The forward pass of one pipeline stage of a model that has a body and a head.

    The head's own forward pass is run up to its body, on the last stage to its end. ``compute``: Colossal-AI's forward
    pass of this stage of the body. ``sequence_ranks``: how many ranks share the positions of a sequence.
    """

    def __init__(self, model: torch.nn.Module, compute: Callable[..., Any], sequence_ranks: int = 1) -> None:
        self._compute = compute
        self._sequence_ranks = sequence_ranks
        self._takes = frozenset(inspect.signature(compute).parameters)
        self._names = list(inspect.signature(_body_of(model).forward).parameters)
        self._needs_mask = _family(model).needs_mask
        self._received: Any = None
        self._chunk: dict[str, Any] = {}

    def forward_of_model(
        self, model: torch.nn.Module, *args: Any, hidden_states: Any = None, stage_index: Any = None, **kwargs: Any
    ) -> Any:
        """Outputs on the last stage, else what the next one receives. ``hidden_states``: of the stage before.
        ``stage_index``: first and last layer of one of several parts that this rank holds."""
        self._received = hidden_states
        self._chunk = {} if stage_index is None else {"stage_index": stage_index}
        try:
            return type(model).forward(model, *args, **kwargs)
        except _EndOfStage as end:
            return end.outputs
        finally:
            self._received, self._chunk = None, {}

    def forward_of_body(self, body: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As the head calls its body."""
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        known = {name: value for name, value in given.items() if name in self._takes}
        if self._needs_mask and known.get("attention_mask") is None:
            tokens = self._received if self._received is not None else given.get("inputs_embeds")
            like = given["input_ids"] if tokens is None else tokens[..., 0]
            known["attention_mask"] = torch.ones_like(like, dtype=torch.long)
        if self._sequence_ranks > 1:
            dtype = next(body.parameters()).dtype
            known, length = padded(known, self._sequence_ranks, dtype)
        outputs = self._compute(hidden_states=self._received, **self._chunk, **known)
        if type(outputs) is dict:
            raise _EndOfStage(outputs)
        if self._sequence_ranks > 1:
            outputs.last_hidden_state = outputs.last_hidden_state[:, :length]
        return outputs


class _EndOfStage(Exception):
    """The head has called its body, the rest of which is on the next stage."""

    def __init__(self, outputs: dict[str, Any]) -> None:
        super().__init__("the next stage goes on")
        self.outputs = outputs


def _family(model: torch.nn.Module) -> Family:
    family = family_of(model)
    assert family is not None  # no other model is split
    return family


def _body_of(model: Any) -> Any:
    """The module that the model's head calls, where its forward pass under a pipeline is known; None without one."""
    family = _family(model)
    own = "" if model.base_model is model else model.base_model_prefix
    path = family.body_of.get(type(model).__name__, own) if family.forward else ""
    return model.get_submodule(path) if path else None


def _forward_of_body(model: torch.nn.Module) -> Callable[..., Any]:
    return resolve_name(f"colossalai.shardformer.modeling.{_family(model).forward}")


def lost_arguments(model: torch.nn.Module) -> frozenset[str]:
    """Entries of a batch that the whole ``model`` takes and its body under a pipeline does not."""
    if not _family(model).forward:
        return frozenset()
    own = inspect.signature((_body_of(model) or model).forward).parameters
    taken = inspect.signature(_forward_of_body(model)).parameters
    return (frozenset(own) - frozenset(taken)) | frozenset(_family(model).pp_lacks)


@contextmanager
def _known_attention(model: Any) -> Iterator[dict[type, type]]:
    """While entered, the configuration names an attention that upstream knows (policies/opt.py:51); which class of
    module it then describes, and which it should."""
    config = model.config
    if type(config).__name__ != "OPTConfig" or config._attn_implementation != "sdpa":
        yield {}
        return
    from transformers.models.opt.modeling_opt import OPT_ATTENTION_CLASSES

    config._attn_implementation = "eager"
    try:
        yield {OPT_ATTENTION_CLASSES["eager"]: OPT_ATTENTION_CLASSES["sdpa"]}
    finally:
        config._attn_implementation = "sdpa"
