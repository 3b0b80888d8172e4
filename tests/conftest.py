"""Options of the test run: which tests see a GPU, and how a run of several folders is spread over processes.

Each of these processes, and each that a test starts, reads compiled modules from disk, also where the environment says
that none are to be written: to compile what the suite imports takes as long as to import it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

#: folders whose tests share something that is slow to start (JupyterLab and chromium, warm ranks): one process each;
#: a folder comes before the one that holds it
TOGETHER = ("browser", "cluster", "engine", "gpu", "training/cells", "training")
#: a folder that takes one process longer than all others take -> where the files of a second one begin
HALVES = {"engine": "test_d"}
FOLDER = Path(__file__).parent
#: the files right in this folder look at the project's source, which one process then parses once
SOURCE = "unit"

#: what test modules must not import when they are collected, as each process collects all of them: frameworks, and
#: parts of torch, that take longer to import than torch itself, or half as long
HEAVY = (
    *("accelerate", "bitsandbytes", "colossalai", "deepspeed", "lightning", "nbconvert", "peft", "pytorch_lightning"),
    *(
        "scipy.stats",
        "sklearn",
        "tensorflow",
        "torch._dynamo",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
    ),
    *("torch.distributed.tensor", "transformers"),
)
#: those that were imported all the same -> the file or folder that was collected then
heavy_imports: dict[str, str] = {}

_VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored; Ctrl-C is what some tests are about.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Workers of a run of several folders: one a core, and one more where tests wait for ranks or a page.

    None for files or one folder of tests: workers would take longer to start than they save.
    """
    paths = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    several = len(paths) > 1 or any(any(path.glob("*/test_*.py")) for path in paths)
    if config.option.keyword or config.option.collectonly or not all(path.is_dir() for path in paths) or not several:
        return 0
    waits = any(not path.is_relative_to(FOLDER / "unit") for path in paths)
    return min(4, (os.cpu_count() or 1) + waits)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    for name in HEAVY:
        if name in sys.modules:
            heavy_imports.setdefault(name, report.nodeid)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "hypothesis" in sys.modules:  # it takes long to import, and most modules need none
        sys.modules["hypothesis"].settings.register_profile("suite", deadline=None)  # a slow machine is no failure
        sys.modules["hypothesis"].settings.load_profile("suite")
    for item in items:
        path = item.path.relative_to(FOLDER)
        alone = SOURCE if path.parent == Path(SOURCE) else path.as_posix()
        group = next((folder for folder in TOGETHER if path.is_relative_to(folder)), alone)
        if path.name >= HALVES.get(group, "~"):
            group += " 2"
        item.add_marker(pytest.mark.xdist_group(group))


def _left_by_another_folder() -> list[str]:
    """What tests of one folder share and must end with it: ranks, a shell, a browser's event loop."""
    session = sys.modules.get("workbench.cluster.session")
    shell = sys.modules.get("IPython.core.interactiveshell")
    found = {
        "ranks that are up": session is not None and session.Session.current() is not None,
        "an IPython shell": shell is not None and shell.InteractiveShell.initialized(),
        "an event loop that runs": asyncio._get_running_loop() is not None,
    }
    return [name for name, is_there in found.items() if is_there]


_last_folder: list[str] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    assert "@" in item.nodeid or not hasattr(item.config, "workerinput"), "xdist does not know the group of the test"
    folder = item.path.relative_to(FOLDER).parts[0]
    if _last_folder and _last_folder[-1] != folder:
        left = _left_by_another_folder()
        assert not left, f"tests/{_last_folder[-1]} left {', '.join(left)}"
    _last_folder[:] = [folder]
    # Two ranks cannot share the one GPU that a machine may have: only what is about GPUs sees any.
    if item.get_closest_marker("gpu") is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif _VISIBLE is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = _VISIBLE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", default=None, metavar="DIR", help="keep the browser tests' screenshots here")
    parser.addoption(
        "--as-shipped",
        action="store_true",
        help="Ctrl-C ends ranks that do not stop within 3 s, as it does for a person; for an idle machine",
    )


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduces reports to six figures, for tests of other parts of a report. Drawing all figures is slow."""
    from workbench import plots

    shown = ("loss", "throughput", "grad_norm", "utilisation", "gradients", "timeline")
    monkeypatch.setattr(plots, "ALL", shown)
