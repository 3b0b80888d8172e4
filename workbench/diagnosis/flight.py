"""Reads torch's flight recorder, which a rank has written as JSON."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass
from typing import Any

from workbench.core.live.collective_row import group_label


@dataclass(frozen=True, kw_only=True)
class Call:
    """A collective in the flight recorder. ``number``: in its group, from 1; ``since``: ``time.monotonic()``.

    ``kind``: such as ``all_reduce``. ``group``: its name, equal on all members; ``label``: see ``group_label``.
    ``members``: (): torch does not tell.
    ``pending``: whether it has not ended. ``peer``: the other rank of a message, or -1.
    """

    kind: str
    group: str
    label: str
    members: tuple[int, ...]
    number: int
    since: float
    pending: bool
    byte_count: int
    shape: str
    peer: int = -1


_BYTES = {
    "Double": 8,
    "Long": 8,
    "ComplexFloat": 8,
    "Float": 4,
    "Int": 4,
    "Half": 2,
    "BFloat16": 2,
    "Short": 2,
}


def parse(text: str) -> list[Call]:
    """Parses the record, in the order of the calls, without those of groups that have ended. What cannot be read of it
    is left out."""
    found: list[Call] = []
    began_ns = 0
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # of another version of torch, or cut off
            record = json.loads(line)
            began_ns = record.get("began_ns", began_ns)
            members = {
                str(name): tuple(int(rank) for rank in re.findall(r"\d+", str(group.get("ranks", ""))))
                for name, group in record.get("pg_config", {}).items()
            }
            entries = [each for each in record.get("entries", []) if each["time_created_ns"] >= began_ns]
            found += [_call(each, members) for each in entries]
    return found


def _call(entry: dict[str, Any], members: dict[str, tuple[int, ...]]) -> Call:
    group, description = (str(each) for each in entry["process_group"][:2])
    words = str(entry["profiling_name"]).partition(":")[2] or str(entry["profiling_name"])
    peer = re.search(r"(?:->|<-)\s*(\d+)", words)
    sizes, dtypes = entry.get("input_sizes") or [], entry.get("input_dtypes") or []
    elements = [_product(size) for size in sizes]
    number = entry["p2p_seq_id"] if entry.get("is_p2p") else entry["collective_seq_id"]
    age_s = time.time() - entry["time_created_ns"] / 1e9
    return Call(
        kind=words.split(" ")[0],
        group=group,
        label=group_label(group, description),
        members=members.get(group) or members.get("") or (),
        number=int(number),
        since=time.monotonic() - age_s,
        pending=not entry.get("retired", True),
        byte_count=sum(count * _BYTES.get(str(dtype), 1) for count, dtype in zip(elements, dtypes, strict=False)),
        shape=", ".join("x".join(map(str, size)) for size in sizes),
        peer=int(peer[1]) if peer else -1,
    )


def _product(size: list[int]) -> int:
    count = 1
    for each in size:
        count *= each
    return count
