"""What ``%dist_verify`` and ``workbench verify`` take beside the flags of a run."""

from __future__ import annotations

from typing import Any

SINGLE, DDP = "single", "ddp"
AGAINST = (SINGLE, DDP)

#: ``--against``, as keywords of argparse
AGAINST_FLAG: dict[str, Any] = {
    "default": SINGLE,
    "choices": AGAINST,
    "help": "what the plan is compared with: single (one process) or ddp (torch's DistributedDataParallel)",
}
