"""Algorithms that a person defines: what is refused before the first step, and by which words."""

from __future__ import annotations

import pytest
import torch

from workbench.core import algorithms
from workbench.core.algorithms import Algorithm
from workbench.engine.communication.base import Draws
from workbench.engine.communication.own import check_own, made
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
        ("mine", "x = 1", "define a class of Compressor or Exchange in the cell"),
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
