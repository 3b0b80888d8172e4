"""Algorithms that a person defines: what is refused before the first step, and by which words."""

from __future__ import annotations

import pytest
import torch

from workbench.core import algorithms
from workbench.core.algorithms import Algorithm
from workbench.engine.communication.base import Draws
from workbench.engine.communication.local_steps import Weight
from workbench.engine.communication.own import check_own, made, made_local
from workbench.errors import ConfigError

HALVES = '''
class Halves(Compressor):
    """The first half of the elements."""

    def encode(self, gradient, draws):
        return (gradient[: self.kept(len(gradient))],)

    def kept(self, length):
        return -(-length // 2)

    def decode(self, code, length, draws):
        return torch.cat([code[0], code[0].new_zeros(length - len(code[0]))])
'''


@pytest.fixture
def define(monkeypatch):
    monkeypatch.setattr(algorithms, "_defined", {})
    return algorithms.define


def test_a_class_of_a_cell_is_an_algorithm(define):
    found = define("halves", HALVES)
    assert isinstance(found, Algorithm)
    assert (found.code, found.summary) == ("Halves", "The first half of the elements")
    chosen = algorithms.chosen("halves+ef")
    assert chosen.text == "halves+ef" and "halves" in algorithms.names()
    check_own(chosen)
    draws = Draws(0, 0, 0, 0, torch.device("cpu"))
    own = made(chosen)
    gradient = torch.arange(5.0) + 1
    assert own.decode(own.encode(gradient, draws), 5, draws).tolist() == [1, 2, 3, 0, 0]


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("bf16", HALVES, "bf16 is an algorithm that is installed: choose another name"),
        ("my algorithm", HALVES, "a name has letters"),
        ("mine", "class Mine(Compressor)\n    pass", "line 1: expected ':'"),
        ("mine", "x = 1", "define a class of Compressor, Exchange or LocalSteps in the cell"),
    ],
)
def test_a_definition_that_cannot_be_one_is_refused_in_the_notebook(define, name, source, words):
    with pytest.raises(ConfigError, match=words):
        define(name, source)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("(Compressor)", "", "TypeError: Halves"),
        ("(Compressor)", "(Missing)", "NameError: name 'Missing' is not defined"),
        ("return (gradient[", "return (gradient[gradient != 0][", "encode makes codes of different sizes of two gra"),
        (
            "return (gradient[: self.kept(len(gradient))],)",
            "return gradient",
            "encode returns a Tensor: return a tuple of tensors",
        ),
        ("return (gradient[", "1 / 0\n        return (gradient[", "a gradient of 1 elements: ZeroDivisionError"),
        ("length - len(code[0])", "length", r"decode makes \[2\] of a gradient of 1 elements"),
        ('elements."""', 'elements."""\n\n    summed = True', ""),
    ],
)
def test_a_class_that_cannot_work_is_refused_before_the_first_step(define, before, after, words):
    assert before in HALVES
    define("mine", HALVES.replace(before, after))
    if not words:
        check_own(algorithms.chosen("mine"))
        return
    with pytest.raises(ConfigError, match=f"%%dist_algorithm mine: .*{words}") as caught:
        check_own(algorithms.chosen("mine"))
    assert caught.value.field == "--algorithm"


HALFWAY = '''
class Halfway(LocalSteps):
    """Weights go half of the way to their mean."""

    makes_alike = False

    def receive(self, weight, mean):
        weight.value.lerp_(mean, 0.5)
'''


def test_a_class_of_local_steps_is_an_algorithm_that_acts_on_weights(define):
    define("halfway", HALFWAY)
    chosen = algorithms.chosen("halfway:4")
    assert chosen.is_local and chosen.text == "halfway:4" and chosen.calls(1) == 1 / 4
    check_own(chosen)
    own = made_local(chosen)
    weight = Weight("weight", torch.zeros(3), {}, Draws(0, 0, 4, 0, torch.device("cpu")))
    own.receive(weight, torch.full((3,), 2.0))
    assert weight.value.tolist() == [1, 1, 1] and own.is_due(4, 0) and not own.is_due(5, 0)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return weight.value[weight.value != 0]", "of two weights of 1 elements: ranks would wait for each other"),
        ("return 1", "send returns a int: return a tensor"),
        ("return weight.kept['before']", "a weight of 1 elements: KeyError: 'before'"),
    ],
)
def test_local_steps_that_cannot_work_are_refused_before_the_first_step(define, body, words):
    define("mine", f"{HALFWAY}\n    def send(self, weight):\n        {body}\n")
    with pytest.raises(ConfigError, match=words):
        check_own(algorithms.chosen("mine:2"))
