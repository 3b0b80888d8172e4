"""What a data set costs in memory: each rank with a copy of its own, pushed from the notebook, or shared on the host.

``python -m tests.benchmarks.share [--mib 500] [--ranks 2]`` prints, for each way, the seconds until all ranks have the
array and have read it once, and the growth of the ranks' PSS (each page counted once, in shares) and RSS.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from workbench.cluster.session import Session

LOADED = "import numpy as np; data = np.ones({mib} * 2**17); data.sum()"
SHARED = "import numpy as np; data = share(lambda: np.ones({mib} * 2**17)); data.sum()"
READ = "data.sum()"


def memory(pids: list[int], key: str) -> float:
    """Sum over processes of ``Pss`` or ``Rss``, in MiB."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
    return total / 1024


def measure(name: str, ranks: int, mib: int, give: Callable[[Session], None]) -> None:
    session = Session.up(ranks)
    try:
        session.execute("import numpy as np").raise_on_error()
        pids = [status.pid for status in session.status()]
        before = {key: memory(pids, key) for key in ("Pss", "Rss")}
        began = time.perf_counter()
        give(session)
        session.execute(READ).raise_on_error()
        seconds = time.perf_counter() - began
        grown = {key: memory(pids, key) - before[key] for key in before}
        print(
            f"{name:22} {seconds:6.2f} s, PSS +{grown['Pss']:7.0f} MiB, RSS +{grown['Rss']:7.0f} MiB  "
            f"(PSS: {grown['Pss'] / mib:.2f} x the data)"
        )
    finally:
        session.down()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=500)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    mib, ranks = options.mib, options.ranks
    print(f"an array of {mib} MiB on {ranks} ranks")
    measure("each rank loads it", ranks, mib, lambda s: s.execute(LOADED.format(mib=mib)).raise_on_error() and None)
    measure("%dist_push", ranks, mib, lambda s: s.push({"data": np.ones(mib * 2**17)}))
    measure("share(lambda: ...)", ranks, mib, lambda s: s.execute(SHARED.format(mib=mib)).raise_on_error() and None)


if __name__ == "__main__":
    main()
