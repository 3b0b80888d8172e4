"""What the doctor says about machines."""

import pytest

from workbench.cli import main as cli
from workbench.cli.machine import checks as doctor


def test_this_machine_has_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--quick"]) == 0
    out = capsys.readouterr().out
    assert all(what in out for what in ("Python", "cores", "memory", "shared memory", "torch", "loopback", "bytecode"))


@pytest.mark.parametrize(("free_gib", "level"), [(0.5, "fail"), (2, "warn"), (8, "ok")])
def test_memory(free_gib: float, level: str) -> None:
    assert doctor.judge_memory(int(free_gib * doctor.GIB), 16 * doctor.GIB).level == level


@pytest.mark.parametrize(
    ("code", "out", "err", "seconds", "level"),
    [
        (0, "2.13.0 True", "", 3.0, "ok"),
        (0, "2.13.0 True", "", 30.0, "warn"),
        (0, "2.13.0 False", "", 3.0, "fail"),
        (1, "", "Traceback\nImportError: libfoo", 3.0, "fail"),
    ],
)
def test_imports(code: int, out: str, err: str, seconds: float, level: str) -> None:
    finding = doctor.judge_import("Colossal-AI", (code, out, err), seconds, "a slow disk")
    assert finding.level == level and (level == "ok" or finding.advice)


@pytest.mark.parametrize(
    ("is_compiled", "load", "reason"),
    [
        (False, 24.0, "compile the bytecode"),
        (True, 24.0, "the machine is busy (load 24.0 on 2 cores)"),
        (True, 0.3, "disk"),
    ],
)
def test_a_slow_import_blames_bytecode_only_where_there_is_none(is_compiled: bool, load: float, reason: str) -> None:
    why = doctor.why_slow(is_compiled=is_compiled, load=load, cores=2)
    assert reason in why and ("bytecode" in why) == (not is_compiled)


def test_what_takes_long_is_announced_before_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow() -> list[doctor.Finding]:
        assert "importing torch" in capsys.readouterr().err
        return []

    made = [doctor.Check(run=slow, doing="importing torch")]
    monkeypatch.setattr(doctor, "checks", lambda **_: made)
    assert cli.main(["doctor"]) == 0
    monkeypatch.undo()
    assert [check.doing for check in doctor.checks()][-1].startswith("importing what ranks of torch need")


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert [finding.level for finding in doctor.disk()] == ["fail"]


def test_a_missing_package_and_a_strange_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("no-such-package",))
    assert [finding.level for finding in doctor.versions()] == ["fail"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("RANK", "3")
    found = {finding.found: finding.level for finding in doctor.environment()}
    assert found["PYTHONDONTWRITEBYTECODE is set"] == "warn" and found["RANK=3"] == "warn"
    assert any("GPUs are hidden" in text for text in found)
