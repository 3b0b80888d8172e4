"""The one declaration of what can be changed while a run trains."""

from collections.abc import Iterator

import numpy as np
import pytest

from workbench.core import controls
from workbench.core.controls import ACTS, APPLIERS, CONTROLS, KINDS, SETTINGS, WIDGETS, Control, Knob, find, knob
from workbench.errors import ConfigError


@pytest.fixture(autouse=True)
def no_knobs() -> Iterator[None]:
    controls.knobs.clear()
    yield
    controls.knobs.clear()


def test_declarations_are_whole() -> None:
    assert len({control.name for control in CONTROLS}) == len(CONTROLS)
    for control in CONTROLS:
        assert control.name.isidentifier() and control.help and control.allowed()
        assert control.applies in APPLIERS and control.kind in KINDS and control.widget in WIDGETS
        assert Control.from_description(control.describe()) == control


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
        ("lr", None, "nothing was given"),
        ("lr", True, "number"),
        ("clip", "inf", "at least 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("grad_every", "often", "auto"),
        ("rollback", -1, "checkpoint"),
        ("freeze", "", "layer names"),
        ("freeze", "(", "no regular expression"),
        ("branch", None, "options of a run"),
    ],
)
def test_what_is_refused_says_what_is_allowed(name: str, given: object, allowed: str) -> None:
    with pytest.raises(ConfigError, match=allowed) as caught:
        find(name).parse(given)
    assert caught.value.field == name


def test_names_are_helped() -> None:
    with pytest.raises(ConfigError, match="did you mean 'clip'"):
        controls.settings({"clipp": 1})
    with pytest.raises(ConfigError, match="no setting"):
        controls.settings({"pause": 1})
    with pytest.raises(ConfigError, match="set what"):
        controls.settings({})
    assert controls.settings({"lr": "x2", "clip": 1}) == {"lr": "x2.0", "clip": 1.0}


def test_assignments() -> None:
    assert controls.assignments(["lr=1e-4", "--grad-layers=a=b"]) == {"lr": "1e-4", "grad_layers": "a=b"}
    for words in (["lr"], ["=1"], ["lr=1", "lr=2"]):
        with pytest.raises(ConfigError):
            controls.assignments(words)


def test_acts_and_settings_are_all() -> None:
    assert {*ACTS, *SETTINGS} == set(CONTROLS)


def test_a_knob_is_its_value() -> None:
    temperature = knob("temperature", 2.0, low=0, high=10, unit="K")
    assert isinstance(temperature, Knob) and float(temperature) == 2.0
    assert (temperature * 3, 3 * temperature, 1 / temperature, temperature - 1, 2**temperature) == (6, 6, 0.5, 1, 4)
    assert temperature > 1 and not temperature > 2
    np.testing.assert_array_equal(np.ones(2) / temperature.value, [0.5, 0.5])
    temperature.value = 4.0
    assert 8 / temperature == 2 and knob("temperature", 2.0, low=0, high=10, unit="K") is temperature
    assert find("temperature", [temperature.control]).parse("9.5") == 9.5
    with pytest.raises(ConfigError, match=r"temperature \(K\) takes a number from 0 to 10"):
        temperature.control.parse(11)


@pytest.mark.parametrize(("name", "value"), [("lr", 1.0), ("not a name", 1.0), ("share", 2.0)])
def test_a_knob_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(ConfigError):
        knob(name, value, low=0, high=1)
