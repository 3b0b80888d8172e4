"""Llama and GPT-2 of the transformers library as Megatron's ``GPTModel``: its configuration, and where each weight is.

Megatron has query, key and value of a layer in one weight, group of heads by group, and a gated MLP's two projections
in another; GPT-2's layers of the transformers library have their weights transposed. Each weight of the user's model is
a view of one of Megatron's, in which its elements have the user's order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from torch.nn import functional

from workbench.engine.state.layout import Place

View = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Cut:
    """How tensor-parallel ranks share a weight of the user's model: along ``dim``, each of ``sections`` (query, key and
    value of GPT-2) by itself. The last rank has less where they don't share evenly (a vocabulary)."""

    dim: int
    sections: int = 1

    def place(self, shape: Sequence[int], rank: int, ranks: int) -> Place:
        """What rank number ``rank`` of ``ranks`` has of a weight of ``shape``."""
        size = shape[self.dim] // self.sections
        each = -(-size // ranks)
        length = max(0, min(each, size - rank * each))
        runs = tuple([(section * size + rank * each, length) for section in range(self.sections)])
        return Place(tuple(shape), self.dim, runs)


@dataclass(frozen=True)
class Part:
    """Where a weight of the user's model is: ``view`` of Megatron's weight ``name``, or of a tensor of its shape.
    ``cut``: None where each rank has the whole of it."""

    name: str
    view: View
    cut: Cut | None


@dataclass(frozen=True)
class Family:
    """Models that Megatron can compute. ``settings``: of ``TransformerConfig``, for a model's configuration; ``parts``:
    pattern of the user's name -> name of Megatron's weight (``{0}`` is the layer), the view of it, given the
    configuration, and how ranks share it. ``positions``: Megatron's word for how positions are told. ``wanted``:
    options of the configuration that it computes with one value only. ``dropouts``: the probabilities of a model's
    modules, of those within attention and of the others."""

    settings: Callable[[Any], dict[str, Any]]
    parts: Mapping[str, tuple[str, Callable[[Any], View], Cut | None]]
    positions: str
    wanted: Mapping[str, Any]
    dropouts: Callable[[Any], tuple[set[float], set[float]]]
    activation: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """This rank's place among ``tp`` ranks that cut layers, and among ``pp`` stages that share them out evenly."""

    tp: int = 1
    tp_rank: int = 0
    pp: int = 1
    stage: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this rank has the embeddings."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank has the output layer."""
        return self.stage == self.pp - 1

    def place(self, cut: Cut | None, shape: Sequence[int]) -> Place:
        """What this rank has of a weight of its stage."""
        return Place.whole(shape) if cut is None or self.tp == 1 else cut.place(shape, self.tp_rank, self.tp)

    def own_name(self, name: str, layers: int) -> str:
        """The name of a weight in the module of this rank's stage, which counts its own layers of all ``layers``."""
        found = re.fullmatch(r"decoder\.layers\.(\d+)\.(.*)", name)
        if not found:
            return name
        return f"decoder.layers.{int(found[1]) - self.stage * (layers // self.pp)}.{found[2]}"


def part_of(family: Family, config: Any, name: str) -> Part | None:
    """Where the weight ``name`` of a model with ``config`` is; None where Megatron has none such."""
    for pattern, (theirs, view, cut) in family.parts.items():
        found = re.fullmatch(pattern, name)
        if found:
            return Part(theirs.format(*found.groups()), view(config), cut)
    return None


#: name of an activation in a configuration of the transformers library -> the function
ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


def gpt_model(family: Family, model: Any, *, tied: bool, dtype: torch.dtype, split: Split) -> GPTModel:
    """This rank's part of the same model, with weights of its own, which computes in ``dtype``. ``tied``: the output
    layer has the weights of the embedding. Tensor-parallel ranks have as many rows of the vocabulary each, the last of
    which may be padding."""
    config = model.config
    attention, hidden = family.dropouts(model)
    settings = {
        "attention_dropout": max(attention),
        "hidden_dropout": max(hidden),
        "tensor_model_parallel_size": split.tp,
        "pipeline_model_parallel_size": split.pp,
        "pipeline_dtype": dtype,
        "variable_seq_lengths": split.pp > 1,  # stages tell each other the shapes
        "moe_token_dispatcher_type": "alltoall",  # the default refuses that, also without experts
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "activation_func": ACTIVATIONS[getattr(config, family.activation)],
        "use_cpu_initialization": True,
        "perform_initialization": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        **family.settings(config),
    }
    transformer = TransformerConfig(**settings)
    rotary: dict[str, Any] = {"rotary_base": config.rope_theta} if family.positions == "rope" else {}
    made = GPTModel(
        config=transformer,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization=transformer.normalization),
        vocab_size=-(-config.vocab_size // split.tp) * split.tp,
        pre_process=split.is_first,
        post_process=split.is_last,
        max_sequence_length=config.max_position_embeddings,
        position_embedding_type=family.positions,
        parallel_output=False,
        share_embeddings_and_output_weights=tied,
        **rotary,
    )
    for module in made.modules() if split.tp > 1 else ():
        if isinstance(getattr(module, "attention_dropout", None), torch.nn.Dropout):
            module.attention_dropout = _DropoutOfHeads(max(attention), split.tp_rank)
    return made


class _DropoutOfHeads(torch.nn.Dropout):
    """Dropout of the heads of this tensor-parallel rank: each rank leaves out others, and the rank's generator stays
    like that of its peers, from which all other dropout of a replica is drawn."""

    def __init__(self, p: float, tp_rank: int) -> None:
        super().__init__(p)
        self._tp_rank = tp_rank

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As ``torch.nn.Dropout.forward``."""
        if not self.training or not self.p:
            return input
        seed = int(torch.randint(2**31, ()))
        with torch.random.fork_rng([input.device] if input.is_cuda else []):
            torch.manual_seed(seed + self._tp_rank)
            return super().forward(input)


def _as_it_is(config: Any) -> View:
    return lambda weight: weight


def _transposed(config: Any) -> View:
    return torch.t


def _half(number: int) -> Callable[[Any], View]:
    """Half of the rows."""
    return lambda config: lambda weight: weight.chunk(2)[number]


def _llama_heads(first: int, last: int) -> Callable[[Any], View]:
    """Rows of each group of heads from its head ``first`` to ``last``, counted from the end where negative: the queries
    of a group are followed by its key and its value. [groups, rows of one, columns]"""

    def made(config: Any) -> View:
        size, heads = _head_size(config), config.num_attention_heads // config.num_key_value_heads + 2
        rows = heads * size
        begin, end = [(heads + each if each < 0 else each) * size for each in (first, last)]
        return lambda weight: weight.view(-1, rows, weight.shape[1])[:, begin : end or rows]

    return made


def _gpt2_heads(config: Any) -> View:
    """Query, key and value of all heads, which Megatron has head by head. [inputs, 3, heads, rows of one], of a bias
    [3, heads, rows of one]"""
    size = config.n_embd // config.n_head

    def view(weight: torch.Tensor) -> torch.Tensor:
        by_head = weight.view(-1, 3, size, *weight.shape[1:])
        return by_head.permute(3, 1, 0, 2) if weight.dim() > 1 else by_head.permute(1, 0, 2)

    return view


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _llama_settings(config: Any) -> dict[str, Any]:
    return {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_query_groups": config.num_key_value_heads,
        "kv_channels": _head_size(config),
        "ffn_hidden_size": config.intermediate_size,
        "normalization": "RMSNorm",
        "layernorm_epsilon": config.rms_norm_eps,
        "gated_linear_unit": True,
        "add_bias_linear": False,
    }


def _gpt2_settings(config: Any) -> dict[str, Any]:
    return {
        "num_layers": config.n_layer,
        "hidden_size": config.n_embd,
        "num_attention_heads": config.n_head,
        "ffn_hidden_size": config.n_inner or 4 * config.n_embd,
        "normalization": "LayerNorm",
        "layernorm_epsilon": config.layer_norm_epsilon,
    }


def _llama_dropouts(model: Any) -> tuple[set[float], set[float]]:
    return {layer.self_attn.attention_dropout for layer in model.model.layers}, {0.0}


def _gpt2_dropouts(model: Any) -> tuple[set[float], set[float]]:
    body = model.transformer
    hidden = {
        body.drop.p,
        *(layer.attn.resid_dropout.p for layer in body.h),
        *(layer.mlp.dropout.p for layer in body.h),
    }
    return {layer.attn.attn_dropout.p for layer in body.h}, hidden


_ROWS, _COLUMNS, _ROWS_OF_3, _COLUMNS_OF_3 = Cut(0), Cut(1), Cut(0, 3), Cut(1, 3)
_LLAMA_LAYER, _GPT2_LAYER, _LAYER = r"model\.layers\.(\d+)\.", r"transformer\.h\.(\d+)\.", "decoder.layers.{0}."

LLAMA = Family(
    settings=_llama_settings,
    dropouts=_llama_dropouts,
    positions="rope",
    activation="hidden_act",
    wanted={"rope_scaling": None, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
    parts={
        r"model\.embed_tokens\.weight": ("embedding.word_embeddings.weight", _as_it_is, _ROWS),
        rf"{_LLAMA_LAYER}self_attn\.q_proj\.weight": (
            f"{_LAYER}self_attention.linear_qkv.weight",
            _llama_heads(0, -2),
            _ROWS,
        ),
        rf"{_LLAMA_LAYER}self_attn\.k_proj\.weight": (
            f"{_LAYER}self_attention.linear_qkv.weight",
            _llama_heads(-2, -1),
            _ROWS,
        ),
        rf"{_LLAMA_LAYER}self_attn\.v_proj\.weight": (
            f"{_LAYER}self_attention.linear_qkv.weight",
            _llama_heads(-1, 0),
            _ROWS,
        ),
        rf"{_LLAMA_LAYER}self_attn\.o_proj\.weight": (
            f"{_LAYER}self_attention.linear_proj.weight",
            _as_it_is,
            _COLUMNS,
        ),
        rf"{_LLAMA_LAYER}mlp\.gate_proj\.weight": (f"{_LAYER}mlp.linear_fc1.weight", _half(0), _ROWS),
        rf"{_LLAMA_LAYER}mlp\.up_proj\.weight": (f"{_LAYER}mlp.linear_fc1.weight", _half(1), _ROWS),
        rf"{_LLAMA_LAYER}mlp\.down_proj\.weight": (f"{_LAYER}mlp.linear_fc2.weight", _as_it_is, _COLUMNS),
        rf"{_LLAMA_LAYER}input_layernorm\.weight": (f"{_LAYER}input_layernorm.weight", _as_it_is, None),
        rf"{_LLAMA_LAYER}post_attention_layernorm\.weight": (f"{_LAYER}pre_mlp_layernorm.weight", _as_it_is, None),
        r"model\.norm\.weight": ("decoder.final_layernorm.weight", _as_it_is, None),
        r"lm_head\.weight": ("output_layer.weight", _as_it_is, _ROWS),
    },
)

GPT2 = Family(
    settings=_gpt2_settings,
    dropouts=_gpt2_dropouts,
    positions="learned_absolute",
    activation="activation_function",
    wanted={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    parts={
        r"transformer\.wte\.weight": ("embedding.word_embeddings.weight", _as_it_is, _ROWS),
        r"transformer\.wpe\.weight": ("embedding.position_embeddings.weight", _as_it_is, None),
        rf"{_GPT2_LAYER}attn\.c_attn\.(weight)": (
            f"{_LAYER}self_attention.linear_qkv.{{1}}",
            _gpt2_heads,
            _COLUMNS_OF_3,
        ),
        rf"{_GPT2_LAYER}attn\.c_attn\.(bias)": (f"{_LAYER}self_attention.linear_qkv.{{1}}", _gpt2_heads, _ROWS_OF_3),
        rf"{_GPT2_LAYER}attn\.c_proj\.weight": (f"{_LAYER}self_attention.linear_proj.weight", _transposed, _ROWS),
        rf"{_GPT2_LAYER}attn\.c_proj\.bias": (f"{_LAYER}self_attention.linear_proj.bias", _as_it_is, None),
        rf"{_GPT2_LAYER}mlp\.c_fc\.weight": (f"{_LAYER}mlp.linear_fc1.weight", _transposed, _COLUMNS),
        rf"{_GPT2_LAYER}mlp\.c_fc\.bias": (f"{_LAYER}mlp.linear_fc1.bias", _as_it_is, _ROWS),
        rf"{_GPT2_LAYER}mlp\.c_proj\.weight": (f"{_LAYER}mlp.linear_fc2.weight", _transposed, _ROWS),
        rf"{_GPT2_LAYER}mlp\.c_proj\.bias": (f"{_LAYER}mlp.linear_fc2.bias", _as_it_is, None),
        rf"{_GPT2_LAYER}ln_1\.(weight|bias)": (f"{_LAYER}input_layernorm.{{1}}", _as_it_is, None),
        rf"{_GPT2_LAYER}ln_2\.(weight|bias)": (f"{_LAYER}pre_mlp_layernorm.{{1}}", _as_it_is, None),
        r"transformer\.ln_f\.(weight|bias)": ("decoder.final_layernorm.{0}", _as_it_is, None),
        r"lm_head\.weight": ("output_layer.weight", _as_it_is, _ROWS),
    },
)

#: class of the transformers library -> its family
FAMILIES: Mapping[str, Family] = {"LlamaForCausalLM": LLAMA, "GPT2LMHeadModel": GPT2}
