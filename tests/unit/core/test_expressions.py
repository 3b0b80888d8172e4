"""Conditions as text: what they mean, and what is refused."""

from __future__ import annotations

import math

import pytest

from workbench.core.rules.criteria import check_known
from workbench.core.rules.expressions import Expression
from workbench.core.rules.own_alerts import OwnAlerts, check_alert
from workbench.core.user_code.cell_source import logged_names
from workbench.errors import ConfigError


def held(text: str, losses: list[float]) -> list[int]:
    condition = Expression(text)
    return [step for step, loss in enumerate(losses) if condition.holds({"loss": loss, "step": float(step)})]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("loss > 10", [2]),
        ("not loss <= 10 and step < 5", [2]),
        ("1 < loss < 3", [1, 3]),
        ("loss ** 2 - 4 * abs(-loss) + sqrt(4) > 100 or log(loss) < 0.1", [0, 2]),
        ("grad_norm > 0", []),
        ("validation_loss < 5", []),
        ("loss / 0 > 1", []),
        ("10 ** 10 ** 10 > 1", []),
        ("(0 - loss) ** 0.5 > 0", []),
    ],
)
def test_a_condition_holds_where_plain_arithmetic_says_so(text: str, steps: list[int]) -> None:
    assert held(text, [1.0, 2.0, 20.0, 2.0]) == steps


def test_a_window_is_over_the_steps_before_and_says_nothing_of_few() -> None:
    losses = [1.0] * 12 + [3.0, 3.0, math.nan, 3.0]
    assert held("loss > 2 * median(loss, 50)", losses) == [12, 13, 15]
    assert held("loss > max(loss, 1)", losses) == [12]
    assert held("std(loss, 11) > 0 and mean(loss, 2) >= 2 and min(loss, 2) < 2", losses) == [13]


@pytest.mark.parametrize(
    "text",
    ["", "loss", "loss +", "True", "__import__('os').system('x') > 1", "loss.real > 1", "open(1) > 1", "[1] > 1",
     "median(loss) > 1", "median(loss, 0) > 1", "median(loss + 1, 5) > 1", "median(loss, True) > 1", "'a' > 1",
     "loss in loss", "lambda: 1", "max(loss, step) > 1", "max > 1", "logged(1) > 1",
     "loss > 1" + " " * 500, "(" * 400 + "1"],
)  # fmt: skip
def test_everything_else_is_refused_with_what_is_understood(text: str) -> None:
    with pytest.raises(ConfigError):
        Expression(text)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'grad_norm'"):
        Expression("gradnorm > 1").check_known(["entropy"])
    with pytest.raises(ConfigError, match="did you mean 'entropy'"):
        Expression("mean(entrop, 5) > 1").check_known(["entropy"])


def test_a_condition_knows_what_the_training_logs() -> None:
    condition = Expression('entropy > 2 * mean(logged("a b"), 2) and logged("eval/x") < loss')
    assert condition.names == ["a b", "entropy", "eval/x", "loss"] and condition.logged == ["a b", "entropy", "eval/x"]
    condition.check_known(["a b", "entropy", "eval/x"])
    values = {"entropy": 3.0, "a b": 1.0, "eval/x": 0.0, "loss": 1.0}
    assert [condition.holds({**values, "a b": each}) for each in (1.0, 1.0, 9.0, 9.0)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('log("a", 1)\nlog("b c", x, reduce=None)\nlog.image("i", x)', {"a", "eval/a", "b c", "eval/b c"}),
        ("x = 1", set()),
        ('log(f"{x}", 1)', None),
        ("use(log)", None),
        ("def train_step(m, o, b): return {'g': 1}", None),
    ],
)
def test_which_names_a_cell_logs(source: str, names: set[str] | None) -> None:
    assert logged_names(source) == names


def test_an_alert_on_what_the_cell_never_logs_is_refused() -> None:
    own = OwnAlerts()
    own.alert("high", "entrop > 1")
    with pytest.raises(ConfigError, match="entropy"):
        own.check_known({"entropy"})


def test_alerts_of_a_cell_are_declared_once_and_replaced_by_name() -> None:
    own = OwnAlerts()
    own.alert("high", "loss > 10", text="stop it")
    own.alert("high", "loss > 10", text="stop it")
    own.alert("odd", lambda values: values["loss"] > 1, after=3)
    news = own.news()
    assert [(each["name"], each["when"], each["after"]) for each in news] == [("high", "loss > 10", 1), ("odd", "", 3)]
    assert own.news() == [] and set(own.conditions) == {"odd"}
    own.alert("high", "loss > 20")
    assert [each["when"] for each in own.news()] == ["loss > 20"]
    for number in range(98):
        own.alert(f"name {number}", "loss > 1")
    with pytest.raises(ConfigError, match="100 alerts"):
        own.alert("one more", "loss > 1")


@pytest.mark.parametrize(
    ("name", "when", "text", "after"),
    [("", "loss > 1", "", 1), (7, "loss > 1", "", 1), ("a", 7, "", 1), ("a", "loss > 1", 7, 1),
     ("a", "loss > 1", "", 0),
     ("a", "loss > 1", "", True), ("a:b", "loss > 1", "", 1), ("a" * 65, "loss > 1", "", 1)],
)  # fmt: skip
def test_what_is_no_alert_is_refused(name: object, when: object, text: object, after: object) -> None:
    with pytest.raises(ConfigError):
        check_alert(name, when, text, after)


def test_what_an_alert_asks_of_the_validation() -> None:
    own = OwnAlerts()
    own.alert("stuck", "validation_loss > 2 * min(validation_err, 5) or loss < 1")
    own.alert("odd", lambda values: values["validation_nothing"] > 1)
    asked = [("alert 'stuck'", "validation_err"), ("alert 'stuck'", "validation_loss")]
    assert own.validations() == asked
    own.alert("stuck", "loss < 1")
    assert own.validations() == []
    check_known("validation_err", ["validation_loss", "err"], "alert 'stuck'")
    with pytest.raises(ConfigError, match="alert 'stuck': the validation has no metric 'validation_er': did you mean"):
        check_known("validation_er", ["validation_loss", "err"], "alert 'stuck'")
