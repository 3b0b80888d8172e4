"""Ranks follow the notebook: edited modules, its working directory; and replies that the notebook cannot read."""

import os
import time
from pathlib import Path

import pytest

from tests.waiting import until
from workbench.cluster.session import Session
from workbench.errors import CellError

RELOADED = "reloaded, because the files changed: "


@pytest.fixture
def folder(ranks: Session, tmp_path: Path) -> Path:
    """A folder that the ranks import modules from."""
    assert ranks.execute(f"import sys; sys.path.insert(0, {str(tmp_path)!r})").ok
    return tmp_path


def results(session: Session, code: str) -> list[str | None]:
    return [output.result for output in session.execute(code).raise_on_error().outputs.values()]


def test_an_edited_module_is_reloaded_and_named(ranks: Session, folder: Path) -> None:
    (folder / "edited_a.py").write_text("def f():\n    return 1\nclass C:\n    def g(self):\n        return 1\n")
    ranks.execute("import edited_a; from edited_a import f, C; c = C()").raise_on_error()
    # The same size, within the same second, and before anything else runs on the ranks.
    (folder / "edited_a.py").write_text("def f():\n    return 2\nclass C:\n    def g(self):\n        return 2\n")
    result = ranks.execute("edited_a.f(), f(), C().g(), c.g()").raise_on_error()
    assert [output.result for output in result.outputs.values()] == ["(2, 2, 2, 2)"] * 2
    assert [output.stdout for output in result.outputs.values()] == [f"{RELOADED}edited_a\n"] * 2
    assert ranks.execute("f()")[0].stdout == ""


def test_modules_that_took_names_from_an_edited_one_are_reloaded_after_it(ranks: Session, folder: Path) -> None:
    (folder / "chain_c.py").write_text("WIDTH = 3\n")
    (folder / "chain_b.py").write_text("from chain_c import WIDTH\ndef area():\n    return WIDTH * WIDTH\n")
    (folder / "chain_a.py").write_text("from chain_b import area\nAREA = area()\n")
    (folder / "chain_plain.py").write_text("import chain_c\nSTATE = []\n")
    for file in folder.glob("chain_*.py"):  # one that is as new as its import would be reloaded to be safe
        os.utime(file, (time.time() - 60,) * 2)
    ranks.execute("import chain_a, chain_plain; chain_plain.STATE.append(1)").raise_on_error()
    (folder / "chain_c.py").write_text("WIDTH = 5\n")
    result = ranks.execute("chain_a.AREA, chain_plain.chain_c.WIDTH, chain_plain.STATE").raise_on_error()
    assert [output.result for output in result.outputs.values()] == ["(25, 5, [1])"] * 2
    assert result[1].stdout == f"{RELOADED}chain_c, chain_b, chain_a\n"


def test_a_module_that_was_edited_while_a_cell_ran_is_reloaded(ranks: Session, folder: Path) -> None:
    (folder / "during.py").write_text("VALUE = 1\n")
    wait = "while not pathlib.Path(during.__file__).with_name('edited').exists(): time.sleep(0.01)"
    submission = ranks.submit(f"import during, pathlib, time; print('imported', flush=True)\n{wait}")
    until(lambda: all("imported" in output.stdout for output in submission.outputs.values()))
    (folder / "during.py").write_text("VALUE = 2\n")
    (folder / "edited").touch()
    ranks.wait(submission)
    assert results(ranks, "during.VALUE") == ["2", "2"]


def test_a_module_whose_folder_was_taken_off_the_path_is_reloaded_from_its_file(ranks: Session, tmp_path: Path) -> None:
    package = tmp_path / "off_path"
    package.mkdir()
    (package / "__init__.py").write_text("from off_path.part import f\nVALUE = 1\n")
    (package / "part.py").write_text("def f():\n    return 1\n")
    path = f"sys.path.{{}}({str(tmp_path)!r})"
    cell = f"import sys; {path.format('append')}; import off_path; {path.format('remove')}; held = off_path.f"
    ranks.execute(cell).raise_on_error()
    (package / "__init__.py").write_text("from off_path.part import f\nVALUE = 2\n")
    (package / "part.py").write_text("def f():\n    return 2\n")
    seen = "off_path.VALUE, off_path.f(), held(), off_path.__name__, off_path.__spec__.name"
    assert results(ranks, seen) == ["(2, 2, 2, 'off_path', 'off_path')"] * 2


def test_a_cell_is_refused_while_an_edited_module_cannot_be_loaded(ranks: Session, folder: Path) -> None:
    (folder / "broken.py").write_text("VALUE = 1\n")
    ranks.execute("import broken; ran = 0").raise_on_error()
    (folder / "broken.py").write_text("VALUE =\n")
    with pytest.raises(CellError, match="the module broken changed on disk and cannot be reloaded: SyntaxError"):
        ranks.execute("ran = 1").raise_on_error()
    (folder / "broken.py").write_text("VALUE = 3\n")
    assert results(ranks, "ran, broken.VALUE") == ["(0, 3)"] * 2


def test_ranks_follow_the_working_directory_and_say_when_they_cannot(
    ranks: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.getcwd()
    try:
        (tmp_path / "left").mkdir()
        os.chdir(tmp_path)
        assert results(ranks, "import os; os.getcwd()") == [repr(str(tmp_path))] * 2
        ranks.execute("os.chdir('left')")  # the ranks stay where a cell put them
        assert results(ranks, "os.getcwd()") == [repr(str(tmp_path / "left"))] * 2
        with monkeypatch.context() as patch:
            patch.setattr(os, "getcwd", lambda: "/nowhere/at/all")
            result = ranks.execute("os.getcwd()")
        assert result[0].result == repr(str(tmp_path / "left"))
        assert result[0].stderr == (
            f"this rank stays in {tmp_path / 'left'}: /nowhere/at/all: No such file or directory\n"
        )
    finally:
        os.chdir(before)
    assert results(ranks, "os.getcwd()") == [repr(before)] * 2


def test_a_reply_that_the_notebook_cannot_read_is_an_error(ranks: Session, folder: Path) -> None:
    (folder / "only_on_ranks.py").write_text("class Thing:\n    pass\n")
    ranks.execute("import only_on_ranks; thing, plain = only_on_ranks.Thing(), 4").raise_on_error()
    with pytest.raises(CellError, match="ranks 0-1: ModuleNotFoundError: the notebook cannot read the reply") as caught:
        ranks.pull("thing")
    assert "only_on_ranks" in str(caught.value)
    with pytest.raises(CellError, match="rank 1: ModuleNotFoundError"):
        ranks.pull(["plain", "thing"], [1])
    assert ranks.pull("plain") == {0: 4, 1: 4} and results(ranks, "plain") == ["4", "4"]
    assert [each.state for each in ranks.status()] == ["idle", "idle"]


def test_published_data_that_the_notebook_cannot_read_does_not_end_the_output(
    ranks: Session, folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (folder / "published.py").write_text("class Thing:\n    pass\n")
    os.utime(folder / "published.py", (1e9, 1e9))  # a file that was just written counts as edited after its import
    code = (
        "import published; from ipyparallel.engine.datapub import publish_data; publish_data({'a': published.Thing()})"
    )
    ranks.execute(f"{code}\nprint('same')").raise_on_error()
    assert ranks.execute("print('next')")[1].stdout == "next\n"


class Unloadable:
    """A value that cannot be unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (int, ("no number",))


def test_a_value_that_ranks_cannot_read_or_send_is_an_error(ranks: Session) -> None:
    with pytest.raises(CellError, match="ranks 0-1: ValueError"):
        ranks.push({"value": Unloadable()})
    ranks.execute("import threading; lock = threading.Lock()").raise_on_error()
    with pytest.raises(CellError, match="ranks 0-1: TypeError"):
        ranks.pull("lock")
    assert results(ranks, "1") == ["1", "1"]
