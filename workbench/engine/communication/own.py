"""Algorithms that a person defines: their classes, made and tried on ranks before the first step."""

from __future__ import annotations

import linecache
import pkgutil
from typing import Any

import torch

from workbench.core.algorithms import Algorithm, ChosenAlgorithm
from workbench.engine.communication.base import Averaged, Compressor, Draws, Exchange, Gradient
from workbench.errors import ConfigError

#: names that a source finds, as ``torch``
GIVEN: dict[str, Any] = {
    "torch": torch,
    "dist": torch.distributed,
    "Compressor": Compressor,
    "Exchange": Exchange,
    "Gradient": Gradient,
    "Averaged": Averaged,
}
#: elements of the gradients that an algorithm is tried with
_TRIED = (1, 7, 1000)


def made(chosen: ChosenAlgorithm) -> Exchange:
    """The algorithm on this rank. ``ConfigError`` where a person's class cannot be made."""
    algorithm = chosen.algorithm
    if not algorithm.source:
        found: Exchange = pkgutil.resolve_name(algorithm.code)(chosen.number, feedback=chosen.feedback)
        return found
    try:
        own = _class(algorithm)(chosen.number, feedback=chosen.feedback)
    except Exception as error:  # whatever the source does
        raise _refused(algorithm, f"{type(error).__name__}: {error}") from error
    if not isinstance(own, Exchange):
        raise _refused(algorithm, f"{algorithm.code} is no class of Compressor or Exchange")
    return own


def check_own(chosen: ChosenAlgorithm) -> None:
    """Refuse, with ``ConfigError``, a person's compressor that raises, or whose codes do not fit: tried with random
    gradients. No communication."""
    if not chosen.algorithm.source:
        return
    own = made(chosen)
    if isinstance(own, Compressor):
        for length in _TRIED:
            wrong = _wrong(own, length)
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


def _class(algorithm: Algorithm) -> Any:
    file = f"<%%dist_algorithm {algorithm.name}>"
    linecache.cache[file] = (len(algorithm.source), None, algorithm.source.splitlines(keepends=True), file)
    names = {**GIVEN, "__name__": f"algorithm_{algorithm.name}"}
    exec(compile(algorithm.source, file, "exec"), names)
    return names[algorithm.code]


def _refused(algorithm: Algorithm, why: str) -> ConfigError:
    return ConfigError(f"%%dist_algorithm {algorithm.name}: {why}", field="--algorithm")
