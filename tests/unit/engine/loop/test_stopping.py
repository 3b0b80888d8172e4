"""When a rule ends a training, and that it goes on counting where a checkpoint left it."""

from __future__ import annotations

import json
import math

from workbench.core.rules.criteria import parse_rules
from workbench.engine.loop.stopping import Stopping
from workbench.engine.state.plain_state import from_plain, to_plain


def stopped_at(rules: str, values: list[float], name: str = "loss") -> tuple[int, str]:
    """The number of the evaluation that ended it (0: none), and the reason."""
    stopping = Stopping(parse_rules(rules))
    for number, value in enumerate(values, start=1):
        stopping.evaluated(10 * number, {name: value})
        if stopping.reason:
            return number, stopping.reason
    return 0, ""


PATIENCE = "validation_loss has not improved for 2 evaluations"


def test_patience() -> None:
    assert stopped_at(PATIENCE, [3, 2, 2.5, 1, 1, 0.9, 0.8]) == (0, "")
    number, reason = stopped_at(PATIENCE, [3, 2, 2.5, 2.25, 1])
    assert (number, reason) == (4, f"{PATIENCE}: 2 at step 20 is best, 2.25 now")
    assert stopped_at(PATIENCE, [2, 2, 2])[0] == 3
    assert stopped_at(PATIENCE, [math.nan, math.nan])[1].endswith("it was never finite, nan now")
    assert stopped_at("accuracy has not improved for 1 evaluation", [0.5, 0.6, 0.6], "accuracy")[0] == 3


def test_a_value_that_an_evaluation_lacks_is_no_improvement() -> None:
    stopping = Stopping(parse_rules("accuracy has not improved for 1 evaluation"))
    stopping.evaluated(1, {"accuracy": 0.5})
    stopping.evaluated(2, {"loss": 0.5})
    assert stopping.reason


def test_the_first_of_several_rules_ends_it() -> None:
    assert stopped_at(f"{PATIENCE} or validation_loss < 1", [3, 0.5]) == (2, "validation_loss < 1: it is 0.5")
    stopping = Stopping(parse_rules("loss is not finite or accuracy > 0.9"))
    assert stopping.follows_training
    assert stopping.follows_validation
    stopping.stepped(1, 2.0)
    stopping.evaluated(1, {"loss": math.nan, "accuracy": 0.1})
    assert not stopping.reason
    stopping.stepped(2, math.inf)
    assert stopping.reason == "loss is not finite: it is inf"


def test_it_goes_on_counting_after_a_checkpoint() -> None:
    first = Stopping(parse_rules(PATIENCE))
    for step, value in ((1, 3.0), (2, 4.0)):
        first.evaluated(step, {"loss": value})
    state = from_plain(json.loads(json.dumps(to_plain(first.state()))))
    again = Stopping(parse_rules(f"{PATIENCE} or accuracy > 2"))
    again.restore(state)
    again.evaluated(3, {"loss": 3.5})
    assert again.reason == f"{PATIENCE}: 3 at step 1 is best, 3.5 now"
    again.restore({})
    assert not again.reason
    again.evaluated(4, {"loss": 5.0})
    assert not again.reason
