"""The forward pass of a model of the transformers library, computed by Megatron's ``GPTModel``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from workbench.errors import ConfigError

#: arguments that change nothing that a training asks for
_WITHOUT_EFFECT = ("use_cache", "cache_position", "return_dict", "logits_to_keep")


class Computed:
    """``forward`` of ``model`` while it is trained: ``compute(input_ids, position_ids, attention_mask)`` gives logits
    [batch, positions, vocabulary], with a mask that is True where a position is not attended to [batch, 1, positions,
    positions], None: those that follow it. ``takes_positions``: whether it can be told positions."""

    def __init__(
        self,
        model: Any,
        compute: Callable[..., torch.Tensor],
        inner: torch.nn.Module,
        *,
        takes_positions: bool,
        is_last: bool,
    ) -> None:
        self._model = model
        self._compute = compute
        self._inner = inner
        self._takes_positions = takes_positions
        self._is_last = is_last

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **others: Any,
    ) -> Any:
        """As the model's own: its loss and logits; on a stage that is not the last, what it gives the next one.
        ``ConfigError`` for an argument that Megatron does not take."""
        from transformers.modeling_outputs import CausalLMOutputWithPast

        of_loss = {name: others.pop(name) for name in ("num_items_in_batch",) if name in others}
        self._check(input_ids, position_ids, others)
        assert input_ids is not None
        if self._inner.training != self._model.training:
            self._inner.train(self._model.training)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        logits: Any = self._compute(input_ids, position_ids, _hidden(attention_mask))
        if not self._is_last:
            return logits
        logits = logits[..., : self._model.config.vocab_size].float()  # the others are padding
        loss = None
        if labels is not None:
            sizes = {"vocab_size": self._model.config.vocab_size}
            loss = self._model.loss_function(logits=logits, labels=labels, **sizes, **of_loss)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def __deepcopy__(self, memo: Any) -> Any:
        raise ConfigError(
            "the model is copied while Megatron has its weights, of which a copy would have no forward pass: under "
            "--framework megatron, copy its state_dict() instead, or use --framework torch",
            field="model",
        )

    def _check(self, input_ids: Any, position_ids: Any, others: dict[str, Any]) -> None:
        given = [
            name
            for name, value in others.items()
            if name not in _WITHOUT_EFFECT and value is not None and value is not False
        ]
        if position_ids is not None and not self._takes_positions:
            given.append("position_ids")
        if input_ids is None:
            given.append("no input_ids")
        if given:
            raise ConfigError(
                f"the model is called with {', '.join(given)}: under --framework megatron it takes input_ids, "
                "attention_mask [batch, positions] and labels. Leave it out, or use --framework torch",
                field="loss_fn",
            )


def refuse_part(module: torch.nn.Module, inputs: Any) -> None:
    """A hook before the forward pass of the model's body, whose weights are Megatron's meanwhile."""
    raise ConfigError(
        f"a part of the model is called by itself ({type(module).__name__}): under --framework megatron the model is "
        "called as a whole, as in model(input_ids=ids). Use --framework torch",
        field="loss_fn",
    )


def _hidden(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise ConfigError(
            f"attention_mask has {attention_mask.dim()} dimensions: under --framework megatron it has two, with 1 for "
            "every token that counts. Use --framework torch for others",
            field="loss_fn",
        )
    if bool(attention_mask.all()):
        return None
    if not bool(attention_mask[:, 0].all()):
        raise ConfigError(
            "attention_mask hides the first token of a sequence, which is then one that attends to nothing: Megatron "
            "and the transformers library have other gradients for it. Pad sequences at their end (padding_side="
            '"right"), or use --framework torch',
            field="loss_fn",
        )
    length = attention_mask.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).triu(diagonal=1)
    return later | ~attention_mask.bool()[:, None, None, :]
