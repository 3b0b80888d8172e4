"""What only ranks can tell the planner: the user's model, and what this machine does in a second."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import platformdirs

from workbench.cluster.hosts.machine import describe_host
from workbench.cluster.hosts.placement import Host, default_ranks, place
from workbench.cluster.session import Session
from workbench.cluster.startup_notice import print_when_slow
from workbench.core.config import TrainSpec
from workbench.errors import ConfigError
from workbench.planner.machine import Machine
from workbench.planner.model import ModelDescription
from workbench.run.resolve import Request
from workbench.rundir import directory as run_directory

_DESCRIBE = "from workbench.engine.planned.describe import describe as _d; _d({path!r})"
_CALIBRATE = "from workbench.engine.planned.calibrate import calibrate as _c; _c({path!r})"
#: ranks without a GPU that share the cores of a host
_FEW_RANKS = 8
#: files of the directory that the ranks share with the notebook (``workbench.engine.planned.describe``)
_ASKED, _ANSWER = "candidates.json", "description.json"


def most_ranks(host: Host) -> int:
    """How many ranks are started at most to plan: one per GPU, or a few that share cores."""
    return len(host.devices) or max(_FEW_RANKS, default_ranks(host))


def session_for(ranks: int, framework: str) -> Session:
    """The ranks that are up or, if none are, new ones: as many as the plans use or, if these are more than this host
    has place for, its default number."""
    session = Session.current()
    if session is not None:
        session.check_free(range(session.n))
        return session
    host = describe_host()
    started = ranks if ranks <= most_ranks(host) else default_ranks(host)
    with print_when_slow():
        session = Session.start(place(started, host), framework=framework)
    for text in session.warnings:
        print(f"warning: {text}", file=sys.stderr)
    return session


def described(request: Request, candidates: Sequence[TrainSpec], session: Session) -> ModelDescription:
    """The description of the request's model, and which of the ``candidates`` cannot train it.

    Raises ``ConfigError`` for a model that no plan trains, and ``CellError`` with the error of the cell.
    """
    with tempfile.TemporaryDirectory(prefix="workbench-plans-") as folder:
        path = Path(folder) / "model"
        path.mkdir()
        (path / "alone").mkdir()
        run_directory.create(request.spec, request.cell, like=request.cell_folder, at=path)
        (path / _ASKED).write_text(json.dumps([spec.options() for spec in candidates]), encoding="utf-8")
        run_on(session, _DESCRIBE.format(path=str(path)), in_group=False)
        answer: dict[str, Any] = json.loads((path / _ANSWER).read_text(encoding="utf-8"))
    if "error" in answer:
        raise ConfigError(answer["error"])
    return ModelDescription.from_json(answer)


def run_on(session: Session, code: str, *, in_group: bool) -> None:
    """Run code on all ranks and wait. ``CellError`` for what it raises there."""
    submission = session.submit(code, in_group=in_group)
    session.wait(submission)
    submission.result().raise_on_error()


def calibration(session: Session, *, measure: bool) -> Machine | None:
    """What this machine does in a second. ``measure``: measure it now, and keep it for later; False: what was kept last
    for as many ranks (None: nothing)."""
    file = _kept_file(session.n, "cpu" if session.placement.bindings[0].device == "cpu" else "gpu")
    if measure:
        with tempfile.TemporaryDirectory(prefix="workbench-plans-") as folder:
            answer = Path(folder) / "machine.json"
            run_on(session, _CALIBRATE.format(path=str(answer)), in_group=True)
            text = answer.read_text(encoding="utf-8")
        _keep(file, text)
        return Machine.from_json(json.loads(text))
    try:
        return Machine.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # never measured, or by another version
        return None


def _keep(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"warning: the calibration is not kept: {error.strerror} ({file})", file=sys.stderr)


def _kept_file(ranks: int, device: str) -> Path:
    folder = platformdirs.user_cache_path("dist-workbench", appauthor=False)
    return folder / f"machine-{platform.node()}-{device}-{ranks}.json"
