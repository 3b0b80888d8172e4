"""What a section of code costs: the processor time of its thread, each nested section once."""

from __future__ import annotations

import itertools
import time

import torch

from workbench.engine.watch.torch.host_copy import Stopwatch


def test_a_section_on_a_cpu_costs_processor_time_and_nested_ones_count_once() -> None:
    watch = Stopwatch(torch.device("cpu"))
    assert watch.clock is time.thread_time, "the time in which another process has the core is not its cost"
    ticks = itertools.count()
    watch.clock = lambda: float(next(ticks))
    with watch, watch:
        pass
    with watch:
        pass
    watch.add(0.5)
    assert (watch.take(), watch.take()) == (2000.5, 0.0)
