"""The owner of a run: the process that started its ranks, which end with it. ``owner.json`` names it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

OWNER_FILE = "owner.json"


def boot_id() -> str:
    """Identifies this running system, so that two hosts of the same name differ. Empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


#: not empty in a process that outlives the notebook
_is_detached: list[bool] = []


def outlive_the_notebook() -> None:
    """Declare this process one that owns detached runs."""
    _is_detached[:] = [True]


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process, told apart from later ones with the same number. ``created``: when it began, seconds since the epoch.

    ``detached``: it was started for this one run, and outlives the notebook.
    """

    host: str
    pid: int
    created: float
    boot: str = ""
    detached: bool = False

    @classmethod
    def this_process(cls) -> Owner:
        """The process that calls."""
        me, detached = psutil.Process(), bool(_is_detached)
        return cls(host=platform.node(), pid=me.pid, created=me.create_time(), boot=boot_id(), detached=detached)

    @classmethod
    def read(cls, run: Path) -> Owner | None:
        """The owner of a run; None where it has no owner. Raises ``ValueError`` when its file cannot be read."""
        try:
            found: Any = json.loads((run / OWNER_FILE).read_text(encoding="utf-8"))
            return cls(
                host=str(found["host"]),
                pid=int(found["pid"]),
                created=float(found["created"]),
                boot=str(found.get("boot", "")),
                detached=bool(found.get("detached", False)),
            )
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"cannot read {run / OWNER_FILE}: {error}") from error

    def write(self, run: Path) -> None:
        """Make it the owner of the run. Raises ``OSError``; then the run keeps the owner that it had."""
        beside = run / f".{OWNER_FILE}"
        beside.write_text(json.dumps(asdict(self)), encoding="utf-8")
        beside.replace(run / OWNER_FILE)

    @property
    def can_be_looked_for(self) -> bool:
        """Whether it is, or was, a process of this host since it booted."""
        return self.host == platform.node() and (not self.boot or self.boot == boot_id())

    @property
    def is_this_process(self) -> bool:
        """Whether it is the process that asks."""
        return self.can_be_looked_for and self.pid == os.getpid()

    def process(self) -> psutil.Process | None:
        """The process, if it lives on this host."""
        try:
            process = psutil.Process(self.pid)
            lives = self.can_be_looked_for and abs(process.create_time() - self.created) < 1.0
            return process if lives and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None
