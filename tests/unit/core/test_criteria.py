"""The grammar of ``--save-best`` and ``--stop-when``, and intervals in epochs."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError

import pytest

from workbench.core.config import TrainSpec
from workbench.core.rules import criteria, intervals
from workbench.core.rules.criteria import Best, Rule
from workbench.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("validation_loss", Best("validation_loss", False)),
        ("accuracy", Best("accuracy", True)),
        ("top5_accuracy", Best("top5_accuracy", True)),
        ("largest_error", Best("largest_error", False)),
        ("bits_per_byte", Best("bits_per_byte", False)),
        ("score highest", Best("score", True)),
        ("accuracy lowest", Best("accuracy", False)),
    ],
)
def test_which_values_are_better_is_known_by_the_name_or_said(text: str, best: Best) -> None:
    assert criteria.parse_best(text) == best


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("validation_loss has not improved for 5 evaluations", {"name": "validation_loss", "count": 5}),
        ("accuracy has not improved for 1 evaluation", {"name": "accuracy", "count": 1, "highest": True}),
        ("score lowest has not improved for 2 evaluations", {"name": "score", "count": 2}),
        ("loss has not improved for 30 steps", {"name": "loss", "count": 30}),
        ("accuracy > 0.95", {"name": "accuracy", "order": ">", "limit": 0.95}),
        ("loss<=1e-3", {"name": "loss", "order": "<=", "limit": 1e-3}),
        ("loss is not finite", {"name": "loss"}),
    ],
)
def test_rules(text: str, rule: dict[str, object]) -> None:
    assert criteria.parse_rules(text) == [Rule(text, **rule)]  # type: ignore[arg-type]
    assert criteria.parse_rules(f"{text} or x < 1") == [Rule(text, **rule), Rule("x < 1", "x", order="<", limit=1)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_best": "loss"}, "--save-best validation_loss"),
        ({"save_best": "score"}, 'write "score lowest" or "score highest"'),
        ({"save_best": "validation loss"}, "is not understood"),
        ({"save_best": "accuracy", "eval_every": 0}, "--eval-every 0 turns off"),
        ({"stop_when": "accuracy > high"}, "'high' is not a number"),
        ({"stop_when": "when it is good"}, "is not understood: write"),
        ({"stop_when": "loss has not improved for 3 evaluations"}, "write for 3 steps"),
        ({"stop_when": "accuracy has not improved for 3 steps"}, "write for 3 evaluations"),
        ({"stop_when": "accuracy has not improved for 0 evaluations"}, "write for 1 evaluations"),
        ({"stop_when": "loss < 1 or accuracy > 1", "eval_every": 0}, "--stop-when needs validation"),
        ({"epochs": -1}, "--epochs must be a whole number of at least 0"),
        ({"steps": 0}, "--steps must be a whole number of at least 1"),
        ({"eval_every": "0ep"}, "--eval-every must be a whole number of steps"),
        ({"save_every": "often"}, "--save-every must be a whole number of steps"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainSpec(**options)  # type: ignore[arg-type]


def test_a_rule_about_the_training_loss_needs_no_validation() -> None:
    assert TrainSpec(stop_when="loss < 0.1", eval_every=0, epochs=2, steps=0).epochs == 2


def test_comparisons_and_numbers_that_are_not_finite() -> None:
    above, finite = criteria.parse_rules("accuracy > 0.9 or loss is not finite")
    assert [above.holds(value) for value in (0.9, 0.91, math.nan)] == [False, True, False]
    assert [finite.holds(value) for value in (3.0, math.nan, -math.inf)] == [False, True, True]
    assert not Best("x", True).improves(math.nan, None)
    assert not Best("x", True).improves(math.inf, 1.0)


def test_names_of_a_validation() -> None:
    values = {"loss": 0.5, "accuracy": 1, "confusion_matrix": [[1]]}
    assert criteria.names_in(values) == ["validation_loss", "accuracy"]
    asked = ("validation_loss", "accuracy", "validation_accuracy", "loss", "other", "confusion_matrix")
    assert [criteria.value_of(name, values) for name in asked] == [0.5, 1.0, 1.0, None, None, None]
    with pytest.raises(
        ConfigError, match="--save-best: the validation has no metric 'acuracy': did you mean 'accuracy'"
    ):
        criteria.check_known("acuracy", ["validation_loss", "accuracy"], "--save-best")
    with pytest.raises(ConfigError, match="this run has no validation: define eval_dataset"):
        criteria.check_known("accuracy", [], "lr_scheduler_metric")


def test_intervals() -> None:
    assert [intervals.interval(text) for text in ("50", "1ep", "2 epochs", "0")] == [50, "1ep", "2ep", 0]
    for wrong in ("often", "1.5ep", "1.5"):
        with pytest.raises(ArgumentTypeError, match=f"whole number of steps .0: off., or of epochs .* not '{wrong}'"):
            intervals.interval(wrong)
    assert [intervals.is_due(3, step, 0, epoch_ended=False) for step in (1, 2, 3)] == [False, False, True]
    assert [intervals.is_due("2ep", 9, done, epoch_ended=True) for done in (1, 2, 3)] == [False, True, False]
    assert not intervals.is_due("1ep", 9, 2, epoch_ended=False)
    assert not intervals.is_due(0, 9, 2, epoch_ended=True)
