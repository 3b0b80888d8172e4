"""Models whose sequences can be shared over context-parallel ranks. Imports no tensor library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Family:
    """Classes of one family of models whose attention is causal and calls transformers' attention interface.

    Patterns of names are those of the body, without the prefix that it has in a class with a head; a ``*`` stands for
    one part of a name between dots. ``keys``: modules that compute keys and values -> the share of their outputs that
    these are. ``last``: the module whose outputs are the body's.
    """

    title: str
    classes: tuple[str, ...]
    keys: Mapping[str, float]
    last: str


_HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
_PROJECTIONS = {"layers.*.self_attn.k_proj": 1.0, "layers.*.self_attn.v_proj": 1.0}


def _like_llama(*prefixes: str) -> Family:
    classes = tuple(prefix + head for prefix in prefixes for head in _HEADS)
    return Family(title=", ".join(prefixes), classes=classes, keys=_PROJECTIONS, last="norm")


FAMILIES = (
    _like_llama("Llama", "Mistral", "Qwen2", "Qwen3"),
    _like_llama("Mixtral"),
    Family(
        title="GPT-2",
        classes=("GPT2LMHeadModel", *(f"GPT2{head}" for head in _HEADS if head != "ForCausalLM")),
        keys={"h.*.attn.c_attn": 2 / 3},
        last="ln_f",
    ),
)


def family_of(class_name: str) -> Family | None:
    """The family that a model class belongs to; None: whether its sequences can be shared is not known."""
    return next((family for family in FAMILIES if class_name in family.classes), None)
