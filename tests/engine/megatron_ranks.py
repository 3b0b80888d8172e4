"""What ranks of Megatron do in the tests, beside what those of every framework do."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.engine import boosted, models
from workbench.core.config import TrainSpec
from workbench.engine.entry import joined_of
from workbench.errors import ConfigError

PLAN = {"framework": "megatron", "plugin": "ddp"}


def penalised(network: Any, data: Any) -> torch.Tensor:
    """A loss that goes to weights also beside the model's forward pass."""
    loss: torch.Tensor = network(**data).loss
    return loss + 0.01 * sum(parameter.square().sum() for parameter in network.parameters())


def trained(rank: int, ranks: int, directory: Path, *, model: str, steps: int = 5) -> dict[str, Any]:
    """Some steps of a penalised loss by Megatron and by a plain loop: losses, and the largest difference of a weight
    once the model is given back."""
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": models.BATCH, "clip": 0.5, **PLAN})
    work = boosted.workload(model)
    work.criterion, work.loss_fn = None, penalised
    plain = copy.deepcopy(work.model).train()
    # a rule that makes nothing of the rounding of a gradient that is zero, such as that of a bias of keys
    work.optimizer, optimizer = [
        torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (work.model, plain)
    ]
    losses, expected = [], []
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"):
        strategy: Any = boosted.load_strategy(spec)(spec, rank)
        strategy.check(spec, work)
        strategy.prepare(work)
        for step in range(steps):
            loss = strategy.forward_backward(boosted.pieces(strategy, model, step))
            losses.append(boosted._mean_over_ranks(loss))
            strategy.step()
            loss = penalised(plain, models.batch(model, step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            expected.append(loss.item())
        refused = _message(lambda: copy.deepcopy(work.model))
        strategy.close()
    pairs = zip(work.model.parameters(), plain.parameters(), strict=True)
    moments = [(work.optimizer.state[a]["momentum_buffer"], optimizer.state[b]["momentum_buffer"]) for a, b in pairs]
    pairs = zip(work.model.parameters(), plain.parameters(), strict=True)
    return {
        "losses": losses,
        "expected": expected,
        "apart": max((a - b).abs().max().item() for a, b in [*pairs, *moments]),
        "copied": refused,
        "computes": models.outputs(work.model, models.batch(model, 0)).loss.item(),
        "plain": models.outputs(plain, models.batch(model, 0)).loss.item(),
    }


def refusals(rank: int, ranks: int, directory: Path) -> dict[str, str]:
    """What is said of models, calls and optimizers that Megatron does not train."""
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": models.BATCH, **PLAN})
    strategy = boosted.load_strategy(spec)
    found = {}
    for name, change in _CHANGES.items():
        work = boosted.workload("vit" if name == "vit" else "gpt2" if name.startswith("gpt2") else "llama")
        change(work)
        found[name] = _message(lambda work=work: strategy.check(spec, work))
    for name, split in (("tp3", {"tp": 3}), ("pp3", {"pp": 3, "micro_batches": 3})):
        cut = TrainSpec.from_options({"ranks": int(name[-1]), "batch_size": 6, **PLAN, "plugin": "hybrid", **split})
        work = boosted.workload("gpt2")
        found[name] = _message(lambda cut=cut, work=work: boosted.load_strategy(cut).check(cut, work))
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"):
        prepared: Any = boosted.prepared(rank, spec, "llama")
        model, ids = prepared.workload.model, torch.ones(2, 4, dtype=torch.long)
        left = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
        found["padded on the left"] = _message(lambda: model(input_ids=ids, attention_mask=left))
        found["positions"] = _message(lambda: model(input_ids=ids, position_ids=ids))
        found["the body"] = _message(lambda: model.model(input_ids=ids))
        found["embeddings"] = _message(lambda: model(inputs_embeds=torch.ones(2, 4, 32)))
        prepared.close()
    return found


def _message(act: Callable[[], object]) -> str:
    try:
        act()
    except ConfigError as error:
        return str(error)
    return ""


def _configured(**options: Any) -> Callable[[Any], None]:
    return lambda work: work.model.config.update(options)


def _subclassed(work: Any) -> None:
    kind = type(work.model)
    work.model.__class__ = type("LlamaForCausalLM", (kind,), {"__module__": "__main__"})


def _hooked(work: Any) -> None:
    work.model.model.layers[1].register_forward_hook(lambda *_: None)


def _gradient_hooked(work: Any) -> None:
    work.model.lm_head.weight.register_hook(lambda gradient: gradient)


def _dropping(work: Any) -> None:
    work.model.transformer.drop.p = 0.1


def _fused(work: Any) -> None:
    work.optimizer.param_groups[0]["fused"] = True


def _factored(work: Any) -> None:
    work.optimizer = models.optimizer(work.model, "Adafactor")


def _in_layers(change: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda work: [change(layer) for layer in work.model.model.layers] and None


def _padded(work: Any) -> None:
    from transformers import LlamaForCausalLM

    config = copy.deepcopy(work.model.config)
    config.pad_token_id = 0
    work.model = LlamaForCausalLM(config)
    work.optimizer = torch.optim.SGD(work.model.parameters(), lr=0.1)


def _loaded(work: Any) -> None:
    """The same model, as it comes from a directory."""
    with tempfile.TemporaryDirectory() as folder:
        work.model.save_pretrained(folder)
        work.model = type(work.model).from_pretrained(folder)
    work.optimizer = torch.optim.SGD(work.model.parameters(), lr=0.1)


def _set(place: str, name: str, value: Any) -> Callable[[Any], None]:
    return lambda work: setattr(work.model.get_submodule(place), name, value)


_CHANGES: dict[str, Callable[[Any], None]] = {
    "vit": lambda work: None,
    "llama": lambda work: None,
    "gpt2": lambda work: None,
    "scaled positions": _configured(rope_scaling={"rope_type": "linear", "factor": 2.0}),
    "biased attention": _configured(attention_bias=True),
    "activation": _configured(hidden_act="mish"),
    "gpt2 dropout": _dropping,
    "a class of its own": _subclassed,
    "a hook": _hooked,
    "padding": _padded,
    "an activation": _in_layers(lambda layer: setattr(layer.mlp, "act_fn", torch.nn.ReLU())),
    "no norm": _set("model", "norm", torch.nn.Identity()),
    "a shared weight": lambda work: setattr(
        work.model.model.layers[1].mlp.up_proj, "weight", work.model.model.layers[0].mlp.up_proj.weight
    ),
    "gpt2 without a weight": lambda work: setattr(work.model.transformer.ln_f, "weight", None),
    "loaded": _loaded,
    "epsilon": _set("model.norm", "variance_epsilon", 1.0),
    "scaling": _in_layers(lambda layer: setattr(layer.self_attn, "scaling", 0.05)),
    "length": _set("model.embed_tokens", "max_norm", 1.0),
    "frequencies": lambda work: work.model.model.rotary_emb.inv_freq.mul_(0.5),
    "a gradient hook": _gradient_hooked,
    "fused": _fused,
    "factored": _factored,
}
