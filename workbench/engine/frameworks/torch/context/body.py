"""The body of a model of the transformers library, each of whose sequences several ranks share.

Every rank is given the whole batch. It computes the layers of the body for its own positions; attention of these has
the keys and values of all positions, which ranks gather (the all-gather of Llama 3: Grattafiori et al. 2024,
arXiv 2407.21783, section 3.3.2). The outputs of the body are gathered too, so that what follows, the head and whatever
loss a person wrote, is computed with whole sequences, the same on every rank.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from workbench.engine.frameworks.torch.context.families import FAMILIES, family_of
from workbench.engine.frameworks.torch.context.positions import Positions
from workbench.engine.recording.dropout import drops_out
from workbench.errors import ConfigError

#: under which transformers finds the attention of this module
_ATTENTION = "context_parallel"
#: the only attention that ranks share: transformers' default
_SHARED = "sdpa"
#: options of a model's ``config`` with which it gives what is not put together
_REFUSED = ("add_cross_attention", "output_attentions", "output_router_logits")
#: arguments of a body -> the dim of its positions
_CUT = {"input_ids": -1, "inputs_embeds": -2, "token_type_ids": -1, "position_ids": -1, "cache_position": -1}
#: arguments of a body that no rank can use with its own positions
_UNUSABLE = ("encoder_hidden_states", "head_mask")
#: far apart, so that no rank's numbers are those of another
_SEED_STRIDE = 1_000_003


def check_model(model: Any, cp: int) -> None:
    """Refuse, with ``ConfigError``, a model whose sequences ``cp`` ranks cannot share."""
    name = type(model).__name__
    if family_of(name) is None:
        known = "; ".join(family.title for family in FAMILIES)
        raise ConfigError(
            f"--cp {cp}: whether ranks can share the sequences of {name} is not known (known: {known}): leave out --cp",
            field="--cp",
        )
    attention = model.config._attn_implementation
    if attention != _SHARED:
        raise ConfigError(
            f"--cp {cp} shares the attention {_SHARED} of the transformers library, and this {name} has {attention}: "
            f"make it with attn_implementation={_SHARED!r}, or leave out --cp",
            field="--cp",
        )
    for option in _REFUSED:
        if getattr(model.config, option, False):
            raise ConfigError(
                f"--cp {cp} does not train a {name} with {option}=True as one process does: set {option}=False in its "
                "configuration, or leave out --cp",
                field="--cp",
            )


class SharedBody:
    """Lets the ranks of ``group`` share the sequences of ``model``, which ``check_model`` let through, until
    ``give_back``."""

    def __init__(self, model: Any, group: dist.ProcessGroup) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self._body = model.base_model
        self._group = group
        self._ranks = dist.get_world_size(group)
        self._drops_out = drops_out(self._body)
        self._compute = self._body.forward
        self._signature = inspect.signature(self._compute)
        self._functions = ALL_ATTENTION_FUNCTIONS
        self._functions[_ATTENTION] = self._attend
        self._set_attention(_ATTENTION)

        @functools.wraps(self._compute)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._forward(*args, **kwargs)

        vars(self._body)["forward"] = forward

    def give_back(self) -> None:
        """Let the model compute by itself again."""
        self._set_attention(_SHARED)
        del vars(self._body)["forward"]
        del self._functions[_ATTENTION]

    def _set_attention(self, name: str) -> None:
        self._body.config._attn_implementation = name
        if hasattr(self._body, "_attn_implementation"):  # GPT-2's body has a copy
            self._body._attn_implementation = name

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(self._signature.bind(*args, **kwargs).arguments)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        if given.get("past_key_values") is not None or given.get("use_cache"):
            return self._whole(given)  # text is generated
        positions = self._positions(given)
        with self._own_numbers(positions.rank):
            found = self._compute(**self._own(given, positions))
        return _joined(found, positions)

    def _whole(self, given: dict[str, Any]) -> Any:
        """The forward pass of all positions, the same on every rank."""
        self._set_attention(_SHARED)
        try:
            return self._compute(**given)
        finally:
            self._set_attention(_ATTENTION)

    def _positions(self, given: dict[str, Any]) -> Positions:
        for name in _UNUSABLE:
            if given.get(name) is not None:
                raise ConfigError(f"--cp {self._ranks} cannot use {name}: leave it out of the batch, or leave out --cp")
        if given.get("output_attentions"):
            raise ConfigError(
                f"--cp {self._ranks} has no whole attention weights: leave out output_attentions, or --cp"
            )
        ids = given.get("input_ids")
        total = given["inputs_embeds"].shape[-2] if ids is None else ids.shape[-1]
        if total < self._ranks:
            raise ConfigError(
                f"--cp {self._ranks} shares each sequence over {self._ranks} ranks, and a batch has sequences of "
                f"{total}: use longer ones, or a smaller --cp",
                field="--cp",
            )
        return Positions(total, self._group)

    def _own(self, given: dict[str, Any], positions: Positions) -> dict[str, Any]:
        """The arguments for this rank's positions. Masks keep all keys: ``_attend`` reads from them how many there
        are."""
        own = {**given, "use_cache": False}
        for name, dim in _CUT.items():
            if own.get(name) is not None:
                own[name] = positions.own(own[name], dim)
        first = own["inputs_embeds"] if own.get("input_ids") is None else own["input_ids"]
        places = torch.arange(positions.first, positions.last, device=first.device)
        if "cache_position" in self._signature.parameters:  # such a model makes the causal mask of these places
            own["cache_position"] = places
        elif own.get("position_ids") is None:
            own["position_ids"] = places[None]
        mask = own.get("attention_mask")
        if mask is None:
            own["attention_mask"] = torch.ones(first.shape[0], positions.total, dtype=torch.long, device=first.device)
        elif mask.dim() == 4 and mask.shape[-2] > 1:
            own["attention_mask"] = positions.own(mask, -2)
        return own

    @contextmanager
    def _drawn_apart(self, rank: int) -> Iterator[None]:
        seed = int(torch.randint(2**31, ()))  # the same on all ranks
        with torch.random.fork_rng():
            torch.manual_seed(seed + rank * _SEED_STRIDE)
            yield

    def _own_numbers(self, rank: int) -> AbstractContextManager[None]:
        """While entered, dropout draws other numbers on each rank; behind the body all draw the same again."""
        return self._drawn_apart(rank) if self._drops_out and self._body.training else nullcontext()

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        is_causal: bool | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention of this rank's positions [batch, heads, positions, size] to those of all ranks, as transformers'
        attention interface calls it. Where a layer is called by itself, with whole sequences, it is sdpa."""
        attend = self._functions[_SHARED]
        if attention_mask is None or attention_mask.shape[-1] == key.shape[-2]:
            return attend(module, query, key, value, attention_mask, is_causal=is_causal, **others)
        positions = Positions(attention_mask.shape[-1], self._group)
        heads = key.shape[1]
        keys = positions.keys(torch.cat((key, value), dim=1), -2)
        mask = _causal(attention_mask, positions, query.dtype)
        return attend(module, query, keys[:, :heads], keys[:, heads:], mask, is_causal=False, **others)


def _causal(mask: torch.Tensor, positions: Positions, dtype: torch.dtype) -> torch.Tensor:
    """A mask that is added to logits, [batch, 1, own positions or 1, all positions], with what comes later hidden."""
    lowest = torch.finfo(dtype).min
    own = torch.arange(positions.first, positions.last, device=mask.device)
    is_later = torch.arange(positions.total, device=mask.device) > own[:, None]
    return mask.clamp(min=lowest).to(dtype).masked_fill(is_later, lowest)


def _joined(found: Any, positions: Positions) -> Any:
    """The outputs of the body, all of which are hidden states [..., own positions, size], of all positions."""
    if isinstance(found, torch.Tensor):
        return positions.outputs(found, -2)
    if hasattr(found, "items"):
        return type(found)(**{name: _joined(value, positions) for name, value in found.items()})
    return tuple(_joined(value, positions) for value in found)
