"""Environments of frameworks: made by uv, for which a script stands here, and found by who starts ranks."""

from __future__ import annotations

import json
import site
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from workbench.cli.machine import environments
from workbench.cli.main import main
from workbench.cluster.base.rank_kind import RankKind
from workbench.core import environments as found
from workbench.core.frameworks import framework
from workbench.errors import ConfigError, WorkbenchError
from workbench.rundir.directory import versions

#: makes ``bin/python`` where it is asked for an environment, resolves to one package more than is installed and one in
#: another version, and writes down what it was called with
UV = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(arguments) + "\\n")
print("uv: " + " ".join(arguments[:2]))
if arguments[0] == "venv":
    os.makedirs(arguments[-1] + "/bin")
    with open(arguments[-1] + "/bin/python", "w") as file:
        file.write("#!/bin/sh\\necho 0.19.8\\n")
    os.chmod(file.name, 0o755)
elif arguments[1] == "compile":
    known = open(arguments[arguments.index("--constraints") + 1]).read().splitlines()
    kept = [line for line in known if line.startswith("numpy==")]
    with open(arguments[arguments.index("--output-file") + 1], "w") as file:
        file.write("\\n".join(["deepspeed==0.19.8", *kept, "torch==0.1 ; python_version > '3'"]))
else:
    sys.exit({code})
"""


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``uv(code)`` puts a uv in place whose ``pip install`` ends with ``code``; it writes its calls into a file."""
    monkeypatch.setenv(found.VARIABLE, str(tmp_path / "envs"))
    monkeypatch.setattr(found, "is_here", lambda framework: not framework.library)

    def place(code: int = 0) -> None:
        program = tmp_path / "uv"
        program.write_text(UV.format(python=sys.executable, log=str(tmp_path / "calls"), code=code))
        program.chmod(0o755)
        monkeypatch.setenv("UV", str(program))

    return place


def test_ranks_of_a_framework_start_in_its_environment(
    uv: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uv()
    path = found.place(framework("deepspeed"))
    assert path.parent == tmp_path / "envs"
    with pytest.raises(ConfigError, match=r"DeepSpeed is not installed: run '.* -m workbench env create deepspeed'"):
        RankKind.resolve(None, "deepspeed", None, None)
    assert main(["env", "create", "deepspeed"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"DeepSpeed in {path}: 15 MB")
    assert told[1:4] == ["uv: venv --quiet", "uv: pip compile", "uv: pip install"]
    assert told[-1].startswith("DeepSpeed 0.19.8 is ready after ")
    kind = RankKind.resolve(None, "deepspeed", None, None)
    assert kind.python == str(path / "bin/python")
    assert RankKind.resolve(None, "deepspeed", "/usr/bin/python3", None).python == "/usr/bin/python3", "as asked"
    assert RankKind.resolve(None, "torch", None, None).python == ""
    assert RankKind.resolve(kind, None, None, None) == kind, "as those that are up"
    assert RankKind.resolve(kind, "torch", None, None).python == "", "the environment is DeepSpeed's"
    asked = RankKind.resolve(None, "deepspeed", "/usr/bin/python3", None)
    assert RankKind.resolve(asked, "torch", None, None).python == "/usr/bin/python3", "as asked before"
    told = versions("deepspeed")
    assert (told["deepspeed"], told["torch"]) == ("0.19.8", "0.1"), "those of the ranks, not of the notebook"
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls[0] == ["venv", "--quiet", "--python", sys.executable, str(path)]
    assert calls[2][:2] == ["pip", "install"] and calls[2][-2:] == ["deepspeed==0.19.8", "torch==0.1"], "numpy is here"
    (seen,) = path.glob("lib*/python*/site-packages/*.pth")
    assert site.getsitepackages()[0] in seen.read_text()
    assert main(["env", "create", "deepspeed"]) == 0
    assert capsys.readouterr().out == f"{path} is complete\n"
    assert main(["env", "list"]) == 0
    assert "0.19.8" in capsys.readouterr().out
    assert main(["env", "remove", "deepspeed"]) == 0 and not path.exists()
    assert main(["env", "remove", "deepspeed"]) == 1


def test_what_fails_leaves_nothing(uv, tmp_path: Path) -> None:
    uv(code=3)
    with pytest.raises(WorkbenchError, match=r"uv failed \(3\):\nuv: pip install"):
        environments.create("deepspeed", print)
    assert not list((tmp_path / "envs").iterdir())


def test_an_interrupt_leaves_nothing(uv, tmp_path: Path) -> None:
    uv()

    def interrupt(line: str) -> None:
        if line == "uv: pip install":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        environments.create("deepspeed", interrupt)
    assert not list((tmp_path / "envs").iterdir())


def test_wrong_names_and_a_missing_uv(uv, monkeypatch: pytest.MonkeyPatch) -> None:
    uv()
    with pytest.raises(ConfigError, match="no environment can be made for 'deepsped': did you mean 'deepspeed'"):
        environments.create("deepsped", print)
    with pytest.raises(ConfigError, match="name a framework: deepspeed"):
        main_of("create")
    monkeypatch.delenv("UV")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(environments, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="uv, which is not installed"):
        environments.create("deepspeed", print)


def main_of(*words: str) -> int:
    from workbench.cli.commands import env
    from workbench.cli.main import parser

    return env.run(parser().parse_args(["env", *words]))


def test_what_an_extra_asks_for() -> None:
    assert environments.requirements("deepspeed") == ["deepspeed<0.20,>=0.19.8"]
    assert environments.requirements("mpi") == ["mpi4py<5,>=4.1", "mpich<6,>=5"]
    assert environments.installed()["torch"] == metadata.version("torch")


def test_a_library_that_is_here_needs_no_environment() -> None:
    assert found.python_for(framework("torch")) == "" and found.can_start(framework("colossal"))
