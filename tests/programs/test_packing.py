"""``workbench data pack`` that is killed: no process stays, and the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.unit.tokens.packed import write_lines
from tests.waiting import WAIT_S, until
from workbench.tokens.shards import check_sums, read_index

#: of 1 MB each
UNITS = 5


def test_a_packing_that_is_killed_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [f"line {number} {'x' * 80}" for number in range(UNITS * 9000)])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "workbench", "data", "pack", str(file), "--tokenizer", "bytes"]
    command += ["--out", str(out), "--processes", "2", "--shard-mb", "1"]
    begun = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until(lambda: list(out.glob("shard-*.json")), "a shard is packed")
    workers = psutil.Process(begun.pid).children(recursive=True)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    assert len(workers) >= 2 and not (out / "index.json").exists()
    left = [
        worker for worker in psutil.wait_procs(workers, timeout=WAIT_S)[1] if worker.status() != psutil.STATUS_ZOMBIE
    ]
    assert not left, "the workers end with it"
    packed = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.json")}
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"({len(packed)} were packed before)" in told
    index = read_index(out)
    assert index.texts == UNITS * 9000 and not check_sums(out, index)
    assert all((out / name).stat().st_mtime_ns == time for name, time in packed.items())
