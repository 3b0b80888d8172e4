"""Executing a notebook in a kernel of this Python: parameters, failure, Ctrl-C, and what is kept."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest

from tests.waiting import until
from workbench.cli.commands import demo
from workbench.cli.commands.execution import NotebookFailed, inject
from workbench.errors import RunDirectoryError

ROOT = Path(__file__).resolve().parents[2]
MAKES_A_RUN = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.fake_run import make_fake_run
make_fake_run(os.environ["WORKBENCH_HOME"] + "/2026-05-01-120000-quickstart", steps=steps, state=state)
print(sys.executable)
"""


def notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell("steps = 40\nstate = 'finished'", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path / "01.ipynb")
    return path / "01.ipynb"


def test_parameters_go_after_the_tagged_cell() -> None:
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("a = 1; b = 0", metadata={"tags": ["parameters"]})]
    )
    inject(book, {"a": 2, "b": "it's"})
    assert book.cells[1].source == 'a = 2\nb = "it\'s"' and book.cells[1].metadata.tags == ["injected-parameters"]
    with pytest.raises(NotebookFailed, match="no cell tagged 'parameters'"):
        inject(nbformat.v4.new_notebook(), {"a": 2})


def test_a_notebook_leaves_three_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.execute(notebook(tmp_path, MAKES_A_RUN), {"steps": 30}, tmp_path) == 0
    executed = nbformat.read(tmp_path / "01.ipynb", 4)
    assert executed.cells[2].outputs[0].text.strip() == sys.executable
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {
        "recipe", "plugin", "ranks", "plan", "steps", "first_loss", "last_loss", "validation_loss",
        "tokens_per_second", "seconds", "run",
    }  # fmt: skip
    assert summary["steps"] == 30 and Path(summary["run"]).is_dir()
    out = capsys.readouterr().out
    assert all(str(tmp_path / name) in out for name in ("01.ipynb", "summary.json", "report.html"))
    assert (tmp_path / "report.html").stat().st_size > 3e5


def test_a_run_that_did_not_finish_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.execute(notebook(tmp_path, MAKES_A_RUN), {"state": "failed"}, tmp_path) == 1
    assert "the run ended as failed" in capsys.readouterr().out


def test_a_failing_cell_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.execute(notebook(tmp_path, "print('before')\n1 / 0", "print('never')"), {}, tmp_path) == 1
    out = capsys.readouterr().out
    assert "failed in cell 2 (print('before')): ZeroDivisionError: division by zero" in out and "before" in out
    executed = nbformat.read(tmp_path / "01.ipynb", 4)
    assert executed.cells[1].outputs and not executed.cells[2].outputs


@pytest.mark.parametrize("name", ["01.ipynb", "summary.json"])
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    source = notebook(tmp_path, MAKES_A_RUN)
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)  # in the way
    with pytest.raises(RunDirectoryError, match=rf"cannot write .*{name}.*make room"):
        demo.execute(source, {}, out)


def test_a_notebook_without_the_run_is_no_success(tmp_path: Path) -> None:
    assert demo.execute(notebook(tmp_path, "pass"), {}, tmp_path) == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_kernel(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "out").mkdir()
    source = notebook(tmp_path, "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)", "print(1)")
    code = (
        "import sys; from pathlib import Path; from workbench.cli import main as cli\n"
        "from workbench.cli.commands import demo, execution\nexecution.KERNEL_TIMEOUT_S = 300\n"
        f"demo.run = lambda arguments: demo.execute(Path({str(source)!r}), {{}}, Path({str(tmp_path / 'out')!r}))\n"
        "sys.exit(cli.main(['demo']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    pid_file = tmp_path / "out" / "pid"
    until(lambda: pid_file.exists() and pid_file.read_text())
    kernel = int(pid_file.read_text())
    os.kill(process.pid, how)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert not psutil.pid_exists(kernel)
