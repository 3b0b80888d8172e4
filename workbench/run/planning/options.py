"""What ``%dist_plans`` and ``workbench plans`` take beside the flags of a run."""

from __future__ import annotations

from typing import Any

from workbench.run.planning.attempt import STEPS

#: flag -> keywords of argparse
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--config", {"metavar": "FILE", "help": "a spec file (TOML); flags override it"}),
    (
        "--memory",
        {
            "metavar": "SIZE",
            "default": "",
            "help": "memory of a rank, such as 80GiB (default: its GPU's, or this host's divided by its ranks)",
        },
    ),
    (
        "--try",
        {
            "dest": "tries",
            "metavar": "STEPS",
            "type": int,
            "nargs": "?",
            "const": STEPS,
            "help": f"run each plan that fits for a few steps ({STEPS}), and show measured beside predicted",
        },
    ),
    (
        "--no-calibrate",
        {"action": "store_true", "help": "do not measure this machine: use the last measurement, if there is one"},
    ),
)
