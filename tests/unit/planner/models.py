"""Descriptions of small models for tests of the planner."""

from __future__ import annotations

from typing import Any

from workbench.core.config import ParallelPlan
from workbench.core.frameworks import framework
from workbench.planner.holdings import Job
from workbench.planner.model import (
    COLUMN,
    HEAD,
    ROW,
    VOCABULARY,
    Activity,
    ModelDescription,
    Parameter,
    SharedSequences,
    Split,
    Splits,
    StateTensor,
)

HIDDEN, FFN, VOCAB, LAYERS, TOKENS = 8, 24, 33, 4, 16
ADAM = (StateTensor(itemsize=4), *(StateTensor(itemsize=4, dims=(0, 1)) for _ in range(2)))
ADAM_FLAT = (StateTensor(itemsize=4), *(StateTensor(itemsize=4, dims=(0,)) for _ in range(2)))


def _linear(module: str, out: int, inner: int) -> Parameter:
    return Parameter(name=f"{module}.weight", module=module, shape=(out, inner), itemsize=4)


def transformer(*, batch_size: int = 8) -> ModelDescription:
    """A decoder with an embedding, ``LAYERS`` blocks of an up and a down projection, and a head of its own."""
    parameters = [_linear("embed", VOCAB, HIDDEN)]
    activity = [Activity(module="embed", output_bytes=4 * TOKENS * HIDDEN, input_trains=False, operations=1)]
    tp: dict[str, Split] = {"embed": Split(kind=VOCABULARY, dims={"embed.weight": 0}, multiple=1)}
    for layer in range(LAYERS):
        up, down = f"layers.{layer}.up", f"layers.{layer}.down"
        parameters += [_linear(up, FFN, HIDDEN), _linear(down, HIDDEN, FFN)]
        sizes = {"hidden": 4 * TOKENS * HIDDEN, "ffn": 4 * TOKENS * FFN}
        activity += [
            Activity(module=f"layers.{layer}", output_bytes=sizes["hidden"], saved_per_sample=sizes["ffn"]),
            Activity(
                module=up,
                input_bytes=sizes["hidden"],
                output_bytes=sizes["ffn"],
                saved_per_sample=sizes["hidden"],
                flops=2.0 * TOKENS * HIDDEN * FFN,
                operations=1,
            ),
            Activity(
                module=down,
                input_bytes=sizes["ffn"],
                output_bytes=sizes["hidden"],
                saved_per_sample=sizes["ffn"],
                flops=2.0 * TOKENS * HIDDEN * FFN,
                operations=1,
            ),
        ]
        tp |= {
            up: Split(kind=COLUMN, dims={f"{up}.weight": 0}),
            down: Split(kind=ROW, dims={f"{down}.weight": 1}),
        }
    parameters.append(_linear("head", VOCAB, HIDDEN))
    tp["head"] = Split(kind=HEAD, dims={"head.weight": 0}, multiple=1)
    activity.append(
        Activity(module="head", input_bytes=4 * TOKENS * HIDDEN, output_bytes=4 * TOKENS * VOCAB, saved_fixed=100.0)
    )
    stages = {
        2: (("embed", "layers.0", "layers.1"), ("layers.2", "layers.3", "head")),
        4: (("embed", "layers.0"), ("layers.1",), ("layers.2",), ("layers.3", "head")),
    }
    keys = {f"layers.{layer}.up": 0.5 for layer in range(LAYERS)}  # as if half of their outputs were keys and values
    return ModelDescription(
        title="Decoder",
        parameters=tuple(parameters),
        buffer_bytes=64,
        states={"0 2 4": ADAM, "0 1 4": ADAM_FLAT},
        batch_size=batch_size,
        activity={"autocast": tuple(activity), "cast": tuple(activity)},
        splits={
            "colossal hybrid": Splits(tp=tp, stages=stages),
            "torch context": Splits(sequences=SharedSequences(body="layers", keys=keys, last="layers.3")),
        },
        blocks=tuple(f"layers.{layer}" for layer in range(LAYERS)),
    )


def job(text: str, model: ModelDescription, **changes: Any) -> Job:
    """A plan's words for that model: ``job("tp2 pp2", transformer())``."""
    plan = ParallelPlan.parse(text)
    shares = framework(plan.framework).plugin(plan.plugin).shares
    assert shares is not None
    values: dict[str, Any] = {"accumulate": 1, "precision": "fp32", **changes}
    by_plugin = model.splits["torch context" if plan.cp > 1 else "colossal hybrid"]
    splits = by_plugin if plan.replica_size > 1 else Splits()
    return Job(plan=plan, shares=shares, splits=splits, batch_size=model.batch_size, **values)
