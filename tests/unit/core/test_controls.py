"""The one declaration of what can be changed while a run trains."""

import json

import numpy as np
import pytest

from workbench.core import controls
from workbench.core.controls import APPLIERS, CONTROLS, KINDS, LIVE, WIDGETS, Control, find
from workbench.core.knobs import Knob, Knobs
from workbench.errors import ConfigError


def test_declarations_are_whole() -> None:
    assert len({control.name for control in CONTROLS}) == len(CONTROLS)
    for control in CONTROLS:
        assert control.name.isidentifier() and control.help and control.allowed()
        assert control.applies in APPLIERS and control.kind in KINDS and control.widget in WIDGETS
        assert set(control.states) <= set(LIVE)
        assert Control.from_description(json.loads(json.dumps(control.describe()))) == control


@pytest.mark.parametrize("described", [{}, {"name": "a"}, {"name": "a", "help": "b", "kind": "of tomorrow"}])
def test_what_describes_no_control_is_refused(described: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"cannot restore a control|unknown kind"):
        Control.from_description(described)
    newer = find("clip").describe() | {"colour": "red"}
    assert Control.from_description(newer) == find("clip"), "a field of a newer version is left out"


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("pause", None, None),
        ("step", "5", 5),
        ("step", None, 1),
        ("stop", None, "step"),
        ("stop", "checkpoint", "checkpoint"),
        ("lr", "1e-4", 1e-4),
        ("lr", "x0.5", "x0.5"),
        ("lr", "schedule", "schedule"),
        ("clip", 0, 0.0),
        ("accumulate", "4", 4),
        ("grad_every", "auto", "auto"),
        ("grad_layers", "", ""),
        ("watch", "attention,activations", "activations,attention"),
        ("watch", "off", ""),
        ("watch_every", 5, 5),
        ("rollback", None, "newest"),
        ("rollback", 100, 100),
        ("branch", {"lr": 1e-4}, {"lr": 1e-4}),
        ("freeze", "layers\\.[01]", "layers\\.[01]"),
    ],
)
def test_what_is_taken(name: str, given: object, value: object) -> None:
    assert find(name).parse(given) == value


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("pause", 3, "no value"),
        ("step", 0, "at least 1"),
        ("step", 1.5, "whole number"),
        ("stop", "now", "step or checkpoint"),
        ("lr", 0, "above 0"),
        ("lr", "x-1", "factor"),
        ("lr", "nan", "number"),
        ("lr", None, "no value was given"),
        ("lr", True, "number"),
        ("clip", "inf", "at least 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("grad_every", "often", "auto"),
        ("rollback", -1, "checkpoint"),
        ("freeze", "", "layer names"),
        ("freeze", "(", "not a valid regular expression"),
        ("branch", None, "options of a run"),
    ],
)
def test_what_is_refused_says_what_is_allowed(name: str, given: object, allowed: str) -> None:
    with pytest.raises(ConfigError, match=allowed) as caught:
        find(name).parse(given)
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "meant"), [("learning_rate", "lr"), ("Gradient clipping", "clip"), ("rollbak", "rollback")]
)
def test_a_control_is_suggested_by_its_title_or_a_name_like_it(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        find(name)


def test_names_are_helped() -> None:
    with pytest.raises(ConfigError, match="did you mean 'clip'"):
        controls.checked_settings({"clipp": 1})
    with pytest.raises(ConfigError, match="an act, not a setting"):
        controls.checked_settings({"pause": 1})
    with pytest.raises(ConfigError, match="no setting was given"):
        controls.checked_settings({})
    assert controls.checked_settings({"lr": "x2", "clip": 1}) == {"lr": "x2.0", "clip": 1.0}


def test_assignments() -> None:
    assert controls.assignments(["lr=1e-4", "--grad-layers=a=b"]) == {"lr": "1e-4", "grad_layers": "a=b"}
    for words in (["lr"], ["=1"], ["lr=1", "lr=2"]):
        with pytest.raises(ConfigError):
            controls.assignments(words)


def test_acts_and_settings_are_all() -> None:
    assert {*controls.acts(), *controls.settings()} == set(CONTROLS)


def test_a_knob_is_its_value() -> None:
    knob = Knobs().knob
    temperature = knob("temperature", 2.0, low=0, high=10, unit="K")
    assert isinstance(temperature, Knob) and float(temperature) == 2.0
    assert (temperature * 3, 3 * temperature, 1 / temperature, temperature - 1, 2**temperature) == (6, 6, 0.5, 1, 4)
    assert temperature > 1 and not temperature > 2 and 1 < temperature <= 2 and temperature >= 2
    assert (temperature + temperature, 5 - temperature, 5 + temperature, temperature**3) == (4, 3, 7, 8)
    np.testing.assert_array_equal(np.ones(2) / temperature.value, [0.5, 0.5])
    temperature.value = 4.0
    assert 8 / temperature == 2 and knob("temperature", 2.0, low=0, high=10, unit="K") is temperature
    assert find("temperature", [temperature.control]).parse("9.5") == 9.5
    with pytest.raises(ConfigError, match=r"temperature \(K\) takes a number from 0 to 10"):
        temperature.control.parse(11)


@pytest.mark.parametrize(("name", "value"), [("lr", 1.0), ("not a name", 1.0), ("share", 2.0)])
def test_a_knob_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(ConfigError):
        Knobs().knob(name, value, low=0, high=1)


def test_the_knobs_of_one_run_are_not_those_of_another() -> None:
    first, second = Knobs(), Knobs()
    first.knob("temperature", 2.0)
    assert second.controls() == [] and second.get("temperature") is None
    second.knob("temperature", 3.0)
    assert (first.values(), second.values()) == ({"temperature": 2.0}, {"temperature": 3.0})


def test_restored_knobs_have_their_values_also_where_they_are_declared_later() -> None:
    knobs = Knobs()
    early = knobs.knob("early", 1.0)
    knobs.restore({"early": 5.0, "late": 7.0, "gone": 9.0})
    assert early.value == 5.0 and knobs.knob("late", 2.0).value == 7.0 and knobs.knob("new", 3.0).value == 3.0
    assert knobs.values() == {"early": 5.0, "late": 7.0, "new": 3.0}
