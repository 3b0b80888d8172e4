"""Algorithms that a person defines: their classes, made and tried on ranks before the first step."""

from __future__ import annotations

import linecache
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

from workbench.core.algorithms import Algorithm, ChosenAlgorithm
from workbench.engine.communication.base import Averaged, Compressor, Draws, Exchange, Gradient
from workbench.engine.communication.local_steps import LocalSteps, Weight
from workbench.errors import ConfigError

#: names that a source finds, as ``torch``
GIVEN: dict[str, Any] = {
    "torch": torch,
    "dist": torch.distributed,
    "Compressor": Compressor,
    "Exchange": Exchange,
    "Gradient": Gradient,
    "Averaged": Averaged,
    "LocalSteps": LocalSteps,
}
#: elements of the gradients that an algorithm is tried with
_TRIED = (1, 7, 1000)
_Kind = TypeVar("_Kind", Exchange, LocalSteps)


def made(chosen: ChosenAlgorithm) -> Exchange:
    """The algorithm on this rank, which acts on gradients. ``ConfigError`` where a person's class cannot be made."""
    return _made(chosen, Exchange, "class of Compressor or Exchange", feedback=chosen.feedback)


def made_local(chosen: ChosenAlgorithm) -> LocalSteps:
    """The algorithm on this rank, which acts on weights. ``ConfigError`` where a person's class cannot be made."""
    return _made(chosen, LocalSteps, "class of LocalSteps", **chosen.settings)


def _made(chosen: ChosenAlgorithm, kind: type[_Kind], words: str, **options: Any) -> _Kind:
    algorithm = chosen.algorithm
    if not algorithm.source:
        found: _Kind = pkgutil.resolve_name(algorithm.code)(chosen.number, **options)
        return found
    try:
        own = _class(algorithm)(chosen.number, **options)
    except Exception as error:  # whatever the source does
        raise _refused(algorithm, f"{type(error).__name__}: {error}") from error
    if not isinstance(own, kind):
        raise _refused(algorithm, f"{algorithm.code} is no {words}")
    return own


def check_own(chosen: ChosenAlgorithm) -> None:
    """Refuse, with ``ConfigError``, a person's algorithm that raises, or of which ranks would send different amounts:
    tried with random gradients, or weights. No communication."""
    if not chosen.algorithm.source:
        return
    if chosen.is_local:
        tried: Callable[[int], str] = partial(_wrong_local, made_local(chosen))
    else:
        own = made(chosen)
        tried = partial(_wrong, own) if isinstance(own, Compressor) else lambda length: ""
    for length in _TRIED:
        wrong = tried(length)
        if wrong:
            raise _refused(chosen.algorithm, wrong)


def _wrong(own: Compressor, length: int) -> str:
    """What is wrong with it for gradients of that length; "" where nothing is."""
    generator = torch.Generator().manual_seed(length)
    gradients = [torch.randn(length, generator=generator), torch.zeros(length)]
    draws = [Draws(0, rank, 0, 0, torch.device("cpu")) for rank in range(2)]
    try:
        codes = [own.encode(gradient, each) for gradient, each in zip(gradients, draws, strict=True)]
        if not all(isinstance(code, tuple) and all(isinstance(p, torch.Tensor) for p in code) for code in codes):
            kinds = ", ".join(sorted({type(code).__name__ for code in codes}))
            return f"encode returns a {kinds}: return a tuple of tensors, such as (code,)"
        forms = [[(tuple(part.shape), part.dtype) for part in code] for code in codes]
        if forms[0] != forms[1]:
            shown = [", ".join(f"{list(shape)}" for shape, _ in form) for form in forms]
            return (
                f"encode makes codes of different sizes of two gradients of {length} elements ({shown[0]} and "
                f"{shown[1]}): ranks would wait for each other"
            )
        if own.summed and len(codes[0]) != 1:
            return f"encode returns {len(codes[0])} tensors; with summed = True it returns one"
        decoded = own.decode(codes[0], length, draws[0])
        if tuple(decoded.shape) != (length,):
            return f"decode makes {list(decoded.shape)} of a gradient of {length} elements"
    except Exception as error:  # whatever the source does
        return f"a gradient of {length} elements: {type(error).__name__}: {error}"
    return ""


def _wrong_local(own: LocalSteps, length: int) -> str:
    """What is wrong with it for weights of that length; "" where nothing is."""
    generator = torch.Generator().manual_seed(length)
    try:
        weights, sent = [], []
        for rank, value in enumerate((torch.randn(length, generator=generator), torch.zeros(length))):
            weight = Weight("weight", value, own.state(value), Draws(0, rank, 1, 0, value.device))
            own.begin(weight)
            part = own.send(weight)
            if not isinstance(part, torch.Tensor):
                return f"send returns a {type(part).__name__}: return a tensor"
            weights.append(weight)
            sent.append(part)
        if sent[0].shape != sent[1].shape:
            return (
                f"send gives {list(sent[0].shape)} and {list(sent[1].shape)} of two weights of {length} elements: "
                "ranks would wait for each other"
            )
        for weight, part in zip(weights, sent, strict=True):
            own.receive(weight, part.clone())
    except Exception as error:  # whatever the source does
        return f"a weight of {length} elements: {type(error).__name__}: {error}"
    return ""


def _class(algorithm: Algorithm) -> Any:
    file = f"<%%dist_algorithm {algorithm.name}>"
    linecache.cache[file] = (len(algorithm.source), None, algorithm.source.splitlines(keepends=True), file)
    names = {**GIVEN, "__name__": f"algorithm_{algorithm.name}"}
    exec(compile(algorithm.source, file, "exec"), names)
    return names[algorithm.code]


def _refused(algorithm: Algorithm, why: str) -> ConfigError:
    return ConfigError(f"%%dist_algorithm {algorithm.name}: {why}", field="--algorithm")
