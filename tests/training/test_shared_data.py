"""``share``: data of which a host holds one copy, in cells and trainings; and files beside the notebook."""

from __future__ import annotations

import ast
import os
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from tests.training.test_dist_train import CELL, train
from tests.waiting import until
from workbench.cluster.session import Session
from workbench.errors import RunError

MEBIBYTES = 64
LOAD = f"""
import numpy as np, torch
calls = []
def load():
    calls.append(1)
    big = np.arange({MEBIBYTES} * 2**17, dtype=np.int64)
    half = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    return {{"big": big, "parts": [half, half.T, np.zeros((0, 3))], "name": "data", "again": big}}
data = share(load)
"""


def results(ranks: Session, source: str) -> list[Any]:
    """The values of an expression on all ranks."""
    found = ranks.execute(f"import numpy as np\nprint(repr(({source})))")
    found.raise_on_error()
    return [ast.literal_eval(found.outputs[rank].stdout) for rank in sorted(found.outputs)]


def in_shared_files() -> set[str]:
    return set(os.listdir("/dev/shm"))


def left_in_shared_files(before: set[str], pids: Collection[int]) -> set[str]:
    """Files that are new there, but for those that a process other than ``pids`` has open or has mapped."""
    new = in_shared_files() - before
    others = [psutil.Process(pid) for pid in psutil.pids() if new and pid not in pids]
    return {name for name in new if not any(_holds(process, f"/dev/shm/{name}") for process in others)}


def _holds(process: psutil.Process, file: str) -> bool:
    try:
        return any(each.path.startswith(file) for each in (*process.memory_maps(), *process.open_files()))
    except psutil.Error:
        return False


def private_mebibytes(pid: int) -> float:
    """Memory of its own of a process: anonymous pages and what it changed of mappings."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean"))) / 1024


def test_one_rank_loads_and_all_have_the_same_pages(two_ranks: Session) -> None:
    before = in_shared_files()
    pids = [status.pid for status in two_ranks.status()]
    empty = [private_mebibytes(pid) for pid in pids]
    two_ranks.execute(LOAD).raise_on_error()
    assert sorted(results(two_ranks, "len(calls)")) == [0, 1]
    assert results(two_ranks, "int(data['big'].sum()) == sum(range(len(data['big'])))") == [True, True]
    assert (
        results(two_ranks, "data['parts'][1].float().tolist(), data['name'], data['parts'][2].shape")
        == [([[0, 3], [1, 4], [2, 5]], "data", (0, 3))] * 2
    )
    grown = [private_mebibytes(pid) - start for pid, start in zip(pids, empty, strict=True)]
    assert max(grown) < MEBIBYTES / 2, "a copy of its own"
    two_ranks.execute("data['big'][0] = rank + 7").raise_on_error()
    assert results(two_ranks, "int(data['big'][0]), int(data['again'][0])") == [(7, 7), (8, 8)]
    until(lambda: not left_in_shared_files(before, pids))


def test_the_ranks_of_a_cell_share_among_themselves(two_ranks: Session) -> None:
    """A cell on one rank waits for no other, and groups of cells stay what they are."""
    two_ranks.execute("import numpy as np\nmine = share(np.full(3, rank))", [1]).raise_on_error()
    assert results(two_ranks, "int(globals().get('mine', np.zeros(1)).sum())") == [0, 3]
    assert results(two_ranks, "float(share(np.full(2, 4.0 + rank)).sum())") == [8.0, 8.0]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("share(lambda: 1 / 0)", "ZeroDivisionError"),
        ("share('no arrays')", "a str without arrays"),
        ("share([1, np.array([None])])", "not an array of object"),
        ("share({'x': np.ones(2), 'f': lambda: 1})", "share the arrays alone"),
        ("share({'x': np.ones(2), 'texts': [str(i) * 50 for i in range(300000)]})", "MiB of Python objects"),
    ],
)
def test_what_one_rank_cannot_share_fails_on_all(source: str, text: str, two_ranks: Session) -> None:
    two_ranks.execute("import numpy as np").raise_on_error()
    outputs = two_ranks.execute(source).outputs
    errors = [outputs[rank].error for rank in (0, 1)]
    assert all(error is not None for error in errors)
    assert text in f"{errors[0].ename}: {errors[0].evalue}"
    assert errors[1].ename == "ShareFailed" and text in errors[1].evalue and "rank 0" in errors[1].evalue
    assert results(two_ranks, "float(share(np.ones(3)).sum())") == [3.0, 3.0]


SHARED = CELL.replace("dataset =", "load = lambda:").replace("\ncriterion", "\ndataset = share(load)\ncriterion", 1)


def test_a_training_reads_shared_data_and_keeps_no_copy(shell: InteractiveShell, two_ranks: Session) -> None:
    assert "share(load)" in SHARED
    flags = "-n 2 --steps 4 --batch-size 16 --quiet --eval-every 0"
    own = train(shell, flags, CELL).wait(timeout=300)
    cell = SHARED + "\nvalues = share(torch.ones(2**16))\ntable = share({'x': torch.ones(2**16)})\n"
    run = train(shell, flags, cell).wait(timeout=300)
    np.testing.assert_array_equal(run.metrics()["loss"], own.metrics()["loss"])
    assert run.events().query("name == 'state_not_saved'").empty
    saved = sum(file.stat().st_size for file in (run.path / "checkpoints").rglob("*") if file.is_file())
    assert saved < 2**17
    assert run.load_model() is not None  # the cell runs in this process too


def test_a_failure_to_load_ends_the_run_with_the_error(shell: InteractiveShell, two_ranks: Session) -> None:
    cell = CELL + "\nshare(lambda: open('no such file'))\n"
    with pytest.raises(RunError, match="no such file"):
        train(shell, "-n 2 --steps 4 --batch-size 16 --quiet", cell).wait(timeout=300)


def test_nothing_is_left_after_the_ranks_were_killed(shell: InteractiveShell, two_ranks: Session) -> None:
    before = in_shared_files()
    two_ranks.execute(LOAD).raise_on_error()
    pids = [status.pid for status in two_ranks.status()]
    shared = {memory for pid in pids for memory in shared_memory(f"/proc/{pid}/maps")}
    assert shared
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    two_ranks.down()
    until(lambda: not left_in_shared_files(before, ()))
    assert not any(shared & shared_memory(path) for path in Path("/proc").glob("[0-9]*/maps"))


def shared_memory(maps: str | Path) -> set[str]:
    """Inodes of what ``share`` mapped into a process."""
    try:
        lines = Path(maps).read_text().splitlines()
    except OSError:  # the process ended
        return set()
    return {line.split()[4] for line in lines if "memfd:workbench-share" in line}


def test_relative_paths_are_those_of_the_notebook(
    shell: InteractiveShell, two_ranks: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torch.full((2,), 3.0), "scale.pt")
    cell = "import torch\nscale = torch.load('scale.pt')\n" + CELL
    cell += "loss_fn = lambda model, batch: scale.mean() * criterion(model(batch[0]), batch[1])\n"
    flags = "-n 2 --steps 2 --batch-size 16 --quiet --eval-every 0"
    run = train(shell, flags, cell).wait(timeout=300)
    own = train(shell, flags, CELL).wait(timeout=300)
    assert run.metrics()["loss"][0] == pytest.approx(3 * own.metrics()["loss"][0], rel=1e-5)
    assert not (Path.cwd() / "names.json").exists()


def test_a_large_push_says_what_it_costs(
    shell: InteractiveShell, two_ranks: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("magics.push_size._MUCH_BYTES", 2**20)
    shell.user_ns["table"] = {"x": np.zeros(2**17)}
    shell.run_line_magic("dist_push", "table")
    told = capsys.readouterr().err
    assert "1 MB are sent through the kernel to each of 2 ranks" in told and "table = share(lambda: ...)" in told
    shell.user_ns["small"] = 3
    shell.run_line_magic("dist_push", "small")
    assert "warning" not in capsys.readouterr().err
