"""TensorBoard's event files, read and written here: no TensorBoard needed.

An event file is a sequence of TFRecords, each an ``Event`` protocol buffer. Formats: tensorflow/core/lib/io/record
("uint64 length, uint32 masked crc32c of length, bytes, uint32 masked crc32c of bytes") and the field numbers of
tensorflow/core/util/event.proto and framework/summary.proto. The checksum is CRC-32C (RFC 3720, appendix B.4).
"""

from __future__ import annotations

import os
import platform
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from workbench.errors import RunDirectoryError

_FLOAT, _DOUBLE, _STRING = 1, 2, 7  # types of a TensorProto
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli)."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """A checksum as a TFRecord stores it."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


# ------------------------------------------------------------------------------------------------------------ writing


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative int64 takes ten bytes
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(number: int, data: bytes | str) -> bytes:
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    return _varint(number << 3 | _LENGTH) + _varint(len(raw)) + raw


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | _FIXED64) + struct.pack("<d", value)


def _float(number: int, value: float) -> bytes:
    # beyond a float's range: infinity, as a cast gives
    return _varint(number << 3 | _FIXED32) + np.float64(value).astype("<f4").tobytes()


def _doubles(number: int, values: Sequence[float]) -> bytes:
    return _bytes(number, np.asarray(values, dtype="<f8").tobytes())


def scalar(tag: str, value: float) -> bytes:
    """A ``Summary.Value`` with one number."""
    with np.errstate(over="ignore"):
        return _bytes(1, tag) + _float(2, value)


def text(tag: str, value: str) -> bytes:
    """A ``Summary.Value`` for the text dashboard (it renders Markdown)."""
    shape = _bytes(2, _bytes(2, _int(1, 1)))
    tensor = _int(1, _STRING) + shape + _bytes(8, value)
    metadata = _bytes(1, _bytes(1, "text"))
    return _bytes(1, tag) + _bytes(8, tensor) + _bytes(9, metadata)


def image(tag: str, png: bytes, width: int, height: int) -> bytes:
    """A ``Summary.Value`` with a PNG."""
    rgb = 3
    return _bytes(1, tag) + _bytes(4, _int(1, height) + _int(2, width) + _int(3, rgb) + _bytes(4, png))


def histogram(
    tag: str, limits: Sequence[float], counts: Sequence[float], sums: tuple[float, float, float, float]
) -> bytes:
    """A ``Summary.Value`` with a histogram: bucket i ends at ``limits[i]``; ``sums``: min, max, sum, sum of squares."""
    low, high, total, squares = sums
    body = _double(1, low) + _double(2, high) + _double(3, float(sum(counts))) + _double(4, total) + _double(5, squares)
    return _bytes(1, tag) + _bytes(5, body + _doubles(6, limits) + _doubles(7, counts))


class EventFile:
    """Writes one event file in ``directory``. Use as a context manager. ``OSError`` when it cannot be written."""

    def __init__(self, directory: Path, *, began: float | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        now = time.time() if began is None else began
        self.path = directory / f"events.out.tfevents.{int(now):010d}.{platform.node() or 'localhost'}.{os.getpid()}.0"
        self._file = self.path.open("wb")
        self._record(_double(1, now) + _bytes(3, "brain.Event:2"))

    def add(self, when: float, step: int, values: Iterable[bytes]) -> None:
        """One event with some ``Summary.Value`` (made by ``scalar``, ``text``, ``image``, ``histogram``)."""
        summary = b"".join(_bytes(1, value) for value in values)
        if summary:
            self._record(_double(1, when) + _int(2, step) + _bytes(5, summary))

    def close(self) -> None:
        """Write the rest."""
        self._file.close()

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _record(self, data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        self._file.write(
            length + struct.pack("<I", masked(crc32c(length))) + data + struct.pack("<I", masked(crc32c(data)))
        )


# ------------------------------------------------------------------------------------------------------------ reading


@dataclass
class Series:
    """The values of one tag, in order of step: ``steps`` (int), ``times`` (seconds since the epoch), ``values``."""

    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray


@dataclass
class _Points:
    rows: list[tuple[int, float, float]] = field(default_factory=list)

    def series(self) -> Series:
        newest = {step: (when, value) for step, when, value in self.rows}  # a step written twice: a restart
        steps = sorted(newest)
        return Series(
            np.array(steps, dtype=np.int64),
            np.array([newest[step][0] for step in steps]),
            np.array([newest[step][1] for step in steps]),
        )


def event_files(path: Path) -> list[Path]:
    """The event files that a path means: itself, those in the folder, or those of its only subfolder that has some.

    Raises ``RunDirectoryError`` when there is none, or when several subfolders have some.
    """
    if path.is_file():
        return [path]
    here = sorted(path.glob("*tfevents*"))
    if here:
        return here
    below = sorted({file.parent for file in path.rglob("*tfevents*")})
    if len(below) == 1:
        return sorted(below[0].glob("*tfevents*"))
    if below:
        names = ", ".join(str(folder.relative_to(path)) for folder in below[:8])
        raise RunDirectoryError(f"{path} contains event files of {len(below)} runs: name one of {names}")
    raise RunDirectoryError(f"{path} contains no TensorBoard event file (*tfevents*)")


def read_scalars(path: Path) -> dict[str, Series]:
    """All scalars of a file or a log folder: tag -> values. A file that ends within a record is read up to there.

    Takes what TensorFlow 1 and PyTorch write (``simple_value``) and what TensorFlow 2 writes (tensors of one number).
    """
    points: dict[str, _Points] = {}
    for file in event_files(path):
        try:
            data = file.read_bytes()
        except OSError as error:
            raise RunDirectoryError(f"cannot read {file}: {error.strerror}") from error
        for record in records(data):
            when, step, values = _event(record)
            for tag, value in values:
                points.setdefault(tag, _Points()).rows.append((step, when, value))
    return {tag: found.series() for tag, found in points.items()}


def records(data: bytes) -> Iterator[bytes]:
    """Bodies of TFRecords, up to the first that is cut or whose length is corrupt."""
    at = 0
    while at + 12 <= len(data):
        head = data[at : at + 8]
        (length,) = struct.unpack("<Q", head)
        (check,) = struct.unpack_from("<I", data, at + 8)
        if check != masked(crc32c(head)) or at + 16 + length > len(data):
            return
        yield data[at + 12 : at + 12 + length]
        at += 16 + length


def fields_of(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a protocol buffer message: number and value (fixed-size ones as their bytes).

    ``ValueError`` for what is no message.
    """
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if wire == _LENGTH:
            size, at = _read_varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} in a protocol buffer")
        if at + size > len(data):
            raise ValueError("a protocol buffer that ends within a field")
        yield number, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a protocol buffer that ends within a number")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _event(record: bytes) -> tuple[float, int, list[tuple[str, float]]]:
    when, step, values = 0.0, 0, []
    for number, value in fields_of(record):
        if number == 1 and isinstance(value, bytes):
            (when,) = struct.unpack("<d", value)
        elif number == 2 and isinstance(value, int):
            step = value - (1 << 64) if value >> 63 else value
        elif number == 5 and isinstance(value, bytes):
            found = (_scalar(inner) for _, inner in fields_of(value) if isinstance(inner, bytes))
            values += [each for each in found if each is not None]
    return when, step, values


def _scalar(value: bytes) -> tuple[str, float] | None:
    tag, number = "", None
    for key, inner in fields_of(value):
        if key == 1 and isinstance(inner, bytes):
            tag = inner.decode("utf-8", "replace")
        elif key == 2 and isinstance(inner, bytes):
            (number,) = struct.unpack("<f", inner)
        elif key == 8 and isinstance(inner, bytes):
            number = _tensor(inner)
    return None if number is None else (tag, float(number))


def _tensor(data: bytes) -> float | None:
    """The number in a tensor of one float or double; None for any other tensor."""
    kind, raw = 0, b""
    for key, value in fields_of(data):
        if key == 1 and isinstance(value, int):
            kind = value
        elif key in (4, 5, 6) and isinstance(value, bytes):
            raw = value
    form = {_FLOAT: "<f", _DOUBLE: "<d"}.get(kind)
    return struct.unpack(form, raw)[0] if form and len(raw) == struct.calcsize(form) else None
