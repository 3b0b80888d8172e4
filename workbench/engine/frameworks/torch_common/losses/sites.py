"""Where a term of a loss is made: a number that is the same on every rank, also of one that lacks other terms."""

from __future__ import annotations

import dis
import functools
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch

#: files that are no place of a call of the cell's own
_OF_TORCH = os.path.dirname(torch.__file__)
_OF_LOSSES = os.path.dirname(__file__)
#: attributes that tell how many samples or elements there are, or how many are chosen, beside ``len``
_SIZES = ("shape", "size", "numel")
_COUNTS = ("sum", "item", "count_nonzero")


@dataclass(frozen=True, slots=True)
class Site:
    """``number``: not 0. ``line``: the same without what loops run over. ``asks_size``, ``asks_count``: whether
    functions of the cell that led there ask how many samples there are, or how many are chosen."""

    number: int
    line: int
    asks_size: bool
    asks_count: bool


def site_of(frame: FrameType | None) -> Site:
    """The site of a call that ``frame`` makes: the calls that led there from where the loss was asked for, outside of
    torch, and the numbers and texts over which loops around them run."""
    while frame is not None and frame.f_code.co_filename.startswith((_OF_LOSSES, _OF_TORCH)):
        frame = frame.f_back
    number, line, asks_size, asks_count = 1, 1, False, False
    while frame is not None and not frame.f_code.co_filename.startswith(_OF_LOSSES):
        if not frame.f_code.co_filename.startswith(_OF_TORCH):
            text = f"{frame.f_code.co_filename}:{frame.f_lineno}:{frame.f_lasti}"
            line = zlib.crc32(text.encode(), line)
            number = zlib.crc32("".join((text, *_of_loops(frame))).encode(), number)
            of_size, of_count = _asks(frame.f_code)
            asks_size, asks_count = asks_size or of_size, asks_count or of_size or of_count
        frame = frame.f_back
    return Site(number or 1, line, asks_size, asks_count)


@functools.lru_cache(maxsize=1024)
def _asks(code: CodeType) -> tuple[bool, bool]:
    """Whether a code asks for a size, and for a count."""
    instructions = list(dis.get_instructions(code))
    attributes = {each.argval for each in instructions if each.opname in ("LOAD_ATTR", "LOAD_METHOD")}
    has_len = any(each.argval == "len" and each.opname.startswith("LOAD_") for each in instructions)
    return has_len or not attributes.isdisjoint(_SIZES), not attributes.isdisjoint(_COUNTS)


def _of_loops(frame: FrameType) -> Iterator[str]:
    """The numbers and texts over which the loops run that a frame is in."""
    for start, end, variables in _loops(frame.f_code):
        if start <= frame.f_lasti < end:
            values = [frame.f_locals.get(name) for name in variables]
            yield f" {[value for value in values if isinstance(value, int | float | str)]}"


@functools.lru_cache(maxsize=1024)
def _loops(code: CodeType) -> list[tuple[int, int, tuple[str, ...]]]:
    """Of each loop ``for`` of a code: where it begins and ends, and the names of its variables."""
    instructions = list(dis.get_instructions(code))
    return [
        (instruction.offset, instruction.argval, tuple(_stored(instructions[number + 1 :])))
        for number, instruction in enumerate(instructions)
        if instruction.opname == "FOR_ITER"
    ]


def _stored(instructions: list[dis.Instruction]) -> Iterator[Any]:
    """The names that the first instructions assign to."""
    for instruction in instructions:
        if not instruction.opname.startswith(("STORE_", "UNPACK_", "CACHE", "EXTENDED_ARG")):
            return
        if instruction.opname.startswith("STORE_"):
            names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
            is_first = instruction.opname == "STORE_FAST_LOAD_FAST"
            yield from names[:1] if is_first else names
            if is_first:
                return
