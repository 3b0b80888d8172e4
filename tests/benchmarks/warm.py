"""Seconds until a framework's warm process is ready, each in turn, and how many times one takes the other's.

    python tests/benchmarks/warm.py [--rounds 3]

Each round starts a rank server of its own for each framework, so that none finds another's imports in memory; the first
round fills the page cache and is not counted. Beside them: a bare ``import torch, torch._dynamo``, and Colossal-AI with
an empty cache directory, where the text of ``stdlib-llama`` has to be encoded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from unittest.mock import patch

from tests.benchmarks.machine import describe_machine
from workbench.cluster.client import RankServer, get_preload
from workbench.core.frameworks import installed

BARE = "import torch"
NOT_CACHED = "colossal, cache empty"


def warm_s(name: str) -> float:
    """What the server says its warm process took; of ``BARE``, a fresh interpreter's time."""
    if name == BARE:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch, torch._dynamo"], check=True)
        return time.monotonic() - began
    if name == NOT_CACHED:
        with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ, {"XDG_CACHE_HOME": empty}):
            return warm_s("colossal")
    server = RankServer(preload=get_preload(name), devices=[])
    try:
        while not (known := server.warmth.get("cpu")) or known.state != "warm":
            if known is not None and known.state == "failed":
                raise SystemExit(f"{name}: {known.detail}")
            time.sleep(0.05)
        return known.seconds
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(describe_machine())
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name in (*installed(), NOT_CACHED, BARE):
            seconds = warm_s(name)
            if number:
                found.setdefault(name, []).append(seconds)
    middle = {name: statistics.median(values) for name, values in found.items()}
    for name, values in found.items():
        print(f"{name:>22}: {middle[name]:5.1f} s  ({', '.join(f'{value:.1f}' for value in values)})")
    print(f"colossal / torch: {middle['colossal'] / middle['torch']:.2f}")
    print(f"colossal / {NOT_CACHED}: {middle['colossal'] / middle[NOT_CACHED]:.2f}")
    print(f"torch / {BARE}: {middle['torch'] / middle[BARE]:.2f}")


if __name__ == "__main__":
    main()
