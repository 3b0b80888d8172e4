"""What rank servers of these tests load: next to nothing, so that they are quick."""

import os
import sys
import time

LIGHT = "tests.cluster.preloads:light"


def light() -> None:
    """Nothing."""


def marked() -> None:
    """Next to nothing: a mark by which ranks know their warm process."""
    os.environ["WARMED_BY"] = "marked"


def gated() -> None:
    """Loads once the test has made a file."""
    while not os.path.exists(os.environ["WORKBENCH_TEST_GATE"]):
        time.sleep(0.02)


def broken() -> None:
    raise RuntimeError("no such framework")


def deadly():
    """Loads well; rank 1 then dies while it starts."""

    def after_start() -> None:
        if os.environ["RANK"] == "1":
            print("rank one has no luck", file=sys.stderr, flush=True)
            os._exit(3)

    return after_start
