"""Two computations are laid beside each other whatever ranks have of them, and the origin of a difference is named."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.telemetry.inside.compared import Difference, Tensor, compared, joined, origin

RANDOM = np.random.default_rng(0)
WHOLE = {name: RANDOM.normal(size=(6, 8)).astype(np.float32) for name in ("embed", "a.q", "a.o", "a", "head")}
MODULES = ("embed", "a.q", "a.o", "a", "head")


def entry(layer: str, what: str, values: np.ndarray, sharded: str = "") -> tuple[dict[str, Any], np.ndarray]:
    return {"layer": layer, "what": what, "call": 0, "sharded": sharded, "shape": [2, 3, values.shape[1]]}, values


def alone(changed: dict[tuple[str, str], float] | None = None) -> list[Tensor]:
    """One rank: inputs and outputs forward, gradients backward; ``changed``: what is multiplied, by what."""
    changed = changed or {}
    names = [(layer, what) for layer in MODULES for what in ("input", "output")]
    names += [(layer, "gradient") for layer in reversed(MODULES)]
    return joined([[entry(layer, what, WHOLE[layer] * changed.get((layer, what), 1)) for layer, what in names]], 1)


def rows(other: list[Tensor], rounding: float = 1e-7) -> list[Difference]:
    noisy = alone({(layer, what): 1 + rounding for layer in MODULES for what in ("input", "output", "gradient")})
    return compared(alone(), other, noisy, rounding)


def test_the_same_has_no_origin_and_what_rounding_does_is_no_difference() -> None:
    assert origin(rows(alone())) == (None, "")
    found = rows(alone({("a.q", "output"): 1 + 5e-7}))
    assert origin(found) == (None, "") and any(row.difference > 0 for row in found)


def test_the_module_that_computes_otherwise_is_named_or_the_one_around_it() -> None:
    first, told = origin(rows(alone({(layer, "output"): 2.0 for layer in ("a.q", "a.o", "a")})))
    assert first is not None and first.layer == "a.q" and told == "a.q computes another output from the same input"
    changed = {("a.o", "input"): 2.0, ("a.o", "output"): 2.0, ("a", "output"): 2.0}
    first, told = origin(rows(alone(changed)))
    assert first is not None and (first.layer, first.difference) == ("a.o", 0.5)
    assert told.startswith("a hands another input to a.o, after a.q, whose output is the same")
    first, told = origin(rows(alone({(layer, "gradient"): 2.0 for layer in ("a.q", "embed")})))
    assert first is not None and (first.layer, first.what) == ("a.q", "gradient")
    assert "the gradient of the output of a.q is the first that differs (that before it, of a.o, is the same)" in told


def test_parts_of_tensor_parallel_ranks_are_one_and_fused_columns_may_be_in_another_order() -> None:
    order = [0, 1, 4, 5, 2, 3, 6, 7]  # as two ranks hold queries and keys of a fused layer
    q = WHOLE["a.q"][:, order]
    ranks = [
        [
            entry("embed", "output", WHOLE["embed"]),
            entry("a.q", "output", q[:, half], "tp"),
            entry("a.o", "input", WHOLE["a.o"][:, half]),
            entry("a.o", "output", WHOLE["a.o"]),
        ]
        for half in (slice(0, 4), slice(4, 8))
    ]
    found = rows(joined(ranks, 2))
    assert [row.layer for row in found] == ["embed", "a.q", "a.o", "a.o"]
    assert all(row.difference == 0 and not row.note for row in found), found
    ranks[1][1][1][0, 0] += 1
    assert origin(rows(joined(ranks, 2)))[0] is not None


def test_of_what_several_stages_have_the_last_counts_and_the_backward_pass_goes_from_the_last_to_the_first() -> None:
    embed, head, a = (WHOLE[name] for name in ("embed", "head", "a"))
    stages = [
        [entry("", "output", embed), entry("embed", "output", embed), entry("embed", "gradient", a)],
        [entry("head", "output", head), entry("", "output", head), entry("head", "gradient", a)],
    ]
    found = joined(stages, 1)
    assert [(each.layer, each.what) for each in found] == [
        ("embed", "output"), ("head", "output"), ("", "output"), ("head", "gradient"), ("embed", "gradient"),
    ]  # fmt: skip
    assert found[2].values is WHOLE["head"]


def test_other_shapes_are_not_compared_and_values_that_are_not_finite_differ() -> None:
    other = alone()
    other[1] = Tensor("embed", "output", 0, (6, 4), WHOLE["embed"][:, :4])
    found = next(row for row in rows(other) if (row.layer, row.what) == ("embed", "output"))
    assert not found.differs and found.note == "shapes (2, 3, 8) and (6, 4)"
    assert next(
        row for row in rows(alone({("a", "output"): np.inf})) if row.layer == "a" and row.what == "output"
    ).differs
