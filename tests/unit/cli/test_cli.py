"""The command line: what it accepts, what it answers, and that it stays light."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fake_run import make_fake_run
from workbench.cli import main as cli
from workbench.cli.commands import demo, lab
from workbench.cli.machine import notebooks
from workbench.run import api
from workbench.terminal import follow


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], *([command.NAME, "--help"] for command in cli.COMMANDS)):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0
    assert "--proc" not in capsys.readouterr().err


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, workbench.cli.main; workbench.cli.main.parser()\n"
        "print(*{'torch', 'bokeh', 'pandas', 'IPython'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_runs_are_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs"]) == 0 and "no runs in" in capsys.readouterr().out
    make_fake_run(home / "2026-05-01-120000-first", steps=10)
    broken = make_fake_run(home / "2026-05-02-120000-second", steps=10)
    (broken / "spec.toml").write_text("[")
    assert cli.main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "2026-05-01-120000-first" in out and "finished" in out and "10/10" in out and "second" in out
    assert "is not valid TOML" in out and "broken" in out
    assert cli.main(["runs", "--last", "1"]) == 0 and "first" not in capsys.readouterr().out


def test_a_report_by_name_and_by_directory(
    home: Path, tmp_path: Path, few_figures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_fake_run(home / "2026-05-01-120000-fake", steps=10)
    assert cli.main(["report", "fake", "-o", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "r.html") and (tmp_path / "r.html").exists()
    (run / "spec.toml").unlink()
    assert cli.main(["report", str(run)]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "-n", "two"], "argument -n/--nproc-per-node: 'two' is not a whole number"),
        (["train", "--lr", "fast"], "argument --lr: 'fast' is not a number"),
        (["runs", "prune", "--keep", "3.5"], "argument --keep: '3.5' is not a whole number"),
    ],
)
def test_what_is_no_number_is_called_so(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["report", "nothing"], 1, "no run 'nothing'"),
        (["train", "nothing.toml"], 2, "cannot read the spec nothing.toml"),
        (["report", "."], 1, "is not a run directory"),
        (["demo", "--plugin", "zer1"], 2, "unknown plugin 'zer1': did you mean 'zero1'?"),
        (["train", "--recipe", "digits-vit", "--plugin", "fsdp"], 2, "use --framework torch --plugin fsdp"),
        (["train", "--recipe", "digits-vit", "--plugin", "warp"], 2, "known: ddp, gemini, hybrid, zero1, zero2"),
        (["train", "--recipe", "digits-vit", "-n", "3", "--tp", "2"], 2, "does not divide 3 ranks"),
        (["train", "digits-vit", "-n", "3", "--tp", "2"], 2, "does not divide 3 ranks"),
        (["train", "causal-lm", "--data", "a.txt"], 2, "causal-lm needs --model"),
        (["train", "--resume", "nothing"], 2, "no run 'nothing'"),
        (["demo", "-n", "3"], 2, "cannot be split into dp 3"),
    ],
)
def test_errors_are_one_line(
    home: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_underscores_are_accepted_and_values_left_alone() -> None:
    arguments = cli.parser().parse_args([cli._spelt(w) for w in ["train", "a_b.toml", "--batch_size=4", "--name=a_b"]])
    assert (arguments.batch_size, arguments.name, str(arguments.spec)) == (4, "a_b", "a_b.toml")


def test_a_plan_that_cannot_work_ends_before_any_rank(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.toml").write_text('recipe = "stdlib-llama"\n')
    assert cli.main(["train", str(tmp_path / "s.toml"), "-n", "3", "--tp", "2"]) == 2
    assert "does not divide" in capsys.readouterr().err and not home.exists()


@pytest.mark.parametrize("command", ["train", "plans", "verify"])
def test_files_that_a_shell_made_of_a_pattern(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    for words in ([command, "causal-lm", "--data", *files], [command, "--recipe", "causal-lm", "--data", *files]):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert "b.txt' is not understood: separate files by commas" in capsys.readouterr().err


def test_a_flag_that_is_not_there_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train"])
    assert "pass a spec file, --recipe NAME or --resume RUN" in capsys.readouterr().err
    for words, said in ((["train", "s.toml", "--learning_rate", "1"], "mean --lr?"), (["demo", "2"], "mean -n 2?")):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2 and f"did you {said}" in capsys.readouterr().err


def test_demo_flags_become_parameters() -> None:
    given = demo.parameters_of(cli.parser().parse_args(["demo", "--steps", "9", "--tp", "2"]))
    assert given == {"steps": 9, "tp": 2, "plugin": "hybrid", "n": 2}
    assert demo.parameters_of(cli.parser().parse_args(["demo"])) == {}


def test_lab_opens_a_folder_that_can_be_written(tmp_path: Path) -> None:
    assert lab.place(None) == notebooks.folder()
    copy = lab.place(tmp_path / "work")
    assert (copy / notebooks.QUICKSTART).read_bytes() == (notebooks.folder() / notebooks.QUICKSTART).read_bytes()
    (copy / notebooks.QUICKSTART).write_text("mine")
    lab.place(tmp_path / "work")
    assert (copy / notebooks.QUICKSTART).read_text() == "mine"


def test_train_follows_each_branch_that_takes_the_place_of_its_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ranks belong to the command: it must not end them while a branch of its run trains on them."""
    branch = SimpleNamespace(path="b", status="finished", ended=lambda: True, successor=lambda: None)
    trunk = SimpleNamespace(path="a", status="stopped", ended=lambda: True, successor=lambda: branch)
    for each in (trunk, branch):
        each.raise_if_failed = lambda: None
    monkeypatch.setattr(api, "train", lambda options, config: trunk)
    monkeypatch.setattr(follow, "follow", lambda *given, **options: None)
    assert cli.main(["train", "digits-vit"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("run directory")] == [
        "run directory: a",
        "run directory: b",
    ]
