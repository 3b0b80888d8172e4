"""Torch's own record of collectives (its flight recorder), for other processes that ask why this rank hangs.

It has the collectives that bypass the functions of ``torch.distributed``: those of DDP's reducer, FSDP2 and DTensor.
"""

from __future__ import annotations

import json
import time

import torch

#: functions of torch that give the record as JSON: of NCCL, and of the other backends
_DUMPS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")
_began_ns = [0]


def begin() -> None:
    """The groups that this rank forms from now on have the names and numbers of those that have ended: what it
    recorded of these counts no more."""
    _began_ns[0] = time.time_ns()


def recorded() -> str:
    """Returns the record of this rank, a JSON text a line; the first says when its groups began. May be called in any
    thread."""
    texts = [json.dumps({"began_ns": _began_ns[0]})]
    for name in _DUMPS:
        dump = getattr(torch._C._distributed_c10d, name, None)
        if dump is not None:
            text = dump(includeCollectives=True, onlyActive=False)
            texts.append(text.decode() if isinstance(text, bytes) else text)
    return "\n".join(texts)
