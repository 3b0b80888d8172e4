"""What it costs that a rank records each collective and compares it with those of the others.

    python tests/benchmarks/collective_record.py [--calls 2000] [--rounds 7]

Two ranks of a session sum a tensor over gloo, in rounds of calls that alternate between torch's own function and the
recorded one. A call that sums nothing to speak of shows the cost; one of 1 MiB its share of a collective as it is.
"""

from __future__ import annotations

import argparse
import statistics

from tests.benchmarks.machine import describe_machine
from workbench.cluster.session import Session

CELL = """
import time, torch, torch.distributed as dist

def seconds(function, tensor, calls):
    dist.barrier()
    began = time.perf_counter()
    for _ in range(calls):
        function(tensor)
    return (time.perf_counter() - began) / calls

found = []
tensor = torch.zeros({numel})
for _ in range({rounds}):
    found.append((seconds({bare}, tensor, {calls}), seconds({recorded}, tensor, {calls})))
"""
#: what is called -> the function of torch, and the recorded one
REDUCE = {"bare": "dist.all_reduce.__wrapped__", "recorded": "dist.all_reduce"}
MESSAGE = {
    "bare": "lambda each: (dist.irecv.__wrapped__(each, 0) if rank else dist.isend.__wrapped__(each, 1)).wait()",
    "recorded": "lambda each: (dist.irecv(each, 0) if rank else dist.isend(each, 1)).wait()",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(describe_machine())
    session = Session.up(2, devices="cpu", framework="torch")
    try:
        few = max(1, arguments.calls // 20)
        for words, functions, numel, calls in (
            ("all_reduce of 1 element", REDUCE, 1, arguments.calls),
            ("all_reduce of 1 MiB", REDUCE, 2**18, few),
            ("message of 1 element", MESSAGE, 1, arguments.calls),
            ("message of 1 MiB", MESSAGE, 2**18, few),
        ):
            cell = CELL.format(numel=numel, rounds=arguments.rounds, calls=calls, **functions)
            session.execute(cell, timeout=600).raise_on_error()
            pairs = session.pull("found")[0]
            bare, recorded = (statistics.median(values) for values in zip(*pairs, strict=True))
            ratio = statistics.median(after / before for before, after in pairs)
            print(
                f"{words}: torch {bare * 1e6:.1f} us, recorded {recorded * 1e6:.1f} us, "
                f"{(recorded - bare) * 1e6:.1f} us more, {ratio:.3f}x"
            )
    finally:
        session.down()


if __name__ == "__main__":
    main()
