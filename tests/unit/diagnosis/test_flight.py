"""Torch's record of collectives, as a rank tells it."""

from __future__ import annotations

import json
from typing import Any

from workbench.diagnosis import flight


def entry(number: int, created_ns: int, kind: str = "all_reduce") -> dict[str, Any]:
    return {
        "process_group": ["0", "default_pg"],
        "profiling_name": f"gloo:{kind}",
        "collective_seq_id": number,
        "time_created_ns": created_ns,
        "input_sizes": [[3]],
        "input_dtypes": ["Float"],
        "retired": False,
    }


def test_calls_of_groups_that_have_ended_are_left_out() -> None:
    """A group that is formed anew has the name of the one before it, and numbers its calls from 1 again."""
    lines = [{"began_ns": 500}, {"entries": [entry(1, 100, "all_gather"), entry(2, 200), entry(1, 600), entry(2, 700)]}]
    text = "\n".join(map(json.dumps, lines))
    assert [(call.kind, call.number, call.byte_count) for call in flight.parse(text)] == [
        ("all_reduce", 1, 12),
        ("all_reduce", 2, 12),
    ]
    assert len(flight.parse("\n".join(map(json.dumps, lines[1:])))) == 4
    assert flight.parse("no JSON") == []
