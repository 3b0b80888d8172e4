"""The checks of ``workbench doctor``, in the order in which they are printed.

A check returns findings; the thresholds are decided in pure functions. Nothing here imports torch: that is tried in a
process of its own, and timed.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from workbench.core.environments import can_start, is_here, python_for
from workbench.core.frameworks import Framework, usable
from workbench.rundir import directory as run_directory

GIB = 2**30
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: imported on ranks of the frameworks that are installed; start-up time depends on their compiled bytecode
_HEAVY = tuple(dict.fromkeys(package for found in usable() if is_here(found) for package in found.packages))
_PACKAGES = (*_HEAVY, "ipyparallel", "ipykernel", "jupyterlab", "bokeh", "anywidget", "numpy", "pyarrow")
_SLOW_IMPORT_S = 15.0
_IMPORT_TIMEOUT_S = 180.0

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: what was checked, what was found, and what to do about it ("": nothing)."""

    level: Level
    what: str
    found: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """``run`` finds out; ``doing``: what it does meanwhile, if that takes seconds ("": it does not)."""

    run: Callable[[], list[Finding]]
    doing: str = ""


def checks(*, imports: bool = True) -> list[Check]:
    """All checks, cheap ones first; ``imports``: also import what each framework's ranks need (some seconds)."""
    cheap = (
        python,
        cores,
        memory,
        gpus,
        shared_memory,
        disk,
        versions,
        bytecode,
        environment,
        loopback,
        browser,
    )
    slow = [_import_check(found) for found in usable() if can_start(found)] if imports else []
    return [*(Check(run=check) for check in cheap), *slow]


def _import_check(chosen: Framework) -> Check:
    doing = f"importing what ranks of {chosen.title} need: up to a minute the first time"
    return Check(run=lambda: [_imported(chosen)], doing=doing)


def python() -> list[Finding]:
    """The Python that runs this."""
    version = sys.version_info[:2]
    fits = (3, 11) <= version <= (3, 13)
    found = f"{platform.python_version()} at {sys.executable} on {platform.system()} {platform.machine()}"
    advice = "" if fits else "use Python 3.11, 3.12 or 3.13"
    findings = [Finding(level="ok" if fits else "fail", what="Python", found=found, advice=advice)]
    if platform.system() != "Linux":
        findings.append(
            Finding(
                level="fail", what="system", found=platform.system(), advice="ranks need Linux (parent-death signal)"
            )
        )
    return findings


def cores() -> list[Finding]:
    """Cores, and the load on them."""
    number, load = _usable_cores(), os.getloadavg()[0]
    found = f"{number} usable of {os.cpu_count()}, load {load:.1f}"
    if load > 2 * number:
        return [Finding(level="warn", what="cores", found=found, advice="other programs keep them busy: ranks wait")]
    if number == 1:
        return [
            Finding(level="warn", what="cores", found=found, advice="two ranks share one core: expect half the speed")
        ]
    return [Finding(level="ok", what="cores", found=found)]


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> list[Finding]:
    """Memory that is free."""
    return [judge_memory(psutil.virtual_memory().available, psutil.virtual_memory().total)]


def judge_memory(available: int, total: int) -> Finding:
    """A warm server and two tiny ranks need some 2 GiB."""
    found = f"{available / GIB:.1f} GiB free of {total / GIB:.1f}"
    if available < GIB:
        return Finding(
            level="fail", what="memory", found=found, advice="a rank server alone needs 1 GiB: end other programs"
        )
    if available < 3 * GIB:
        return Finding(level="warn", what="memory", found=found, advice="keep to 2 ranks of the tiny size")
    return Finding(level="ok", what="memory", found=found)


def gpus() -> list[Finding]:
    """GPUs as NVML sees them; this process never touches CUDA."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [Finding(level="ok", what="GPUs", found=f"none ({error}): ranks run on CPU cores")]
    try:
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return [Finding(level="warn", what="GPUs", found=str(error), advice="see what nvidia-smi says")]
    finally:
        pynvml.nvmlShutdown()


def _gpu(pynvml: object, index: int) -> Finding:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)  # type: ignore[attr-defined]
    name = pynvml.nvmlDeviceGetName(handle)  # type: ignore[attr-defined]
    used = pynvml.nvmlDeviceGetMemoryInfo(handle)  # type: ignore[attr-defined]
    busy = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)  # type: ignore[attr-defined]
    found = f"{name}, {used.free / GIB:.1f} GiB free of {used.total / GIB:.1f}"
    if busy:
        pids = ", ".join(str(process.pid) for process in busy)
        advice = f"in use by pid {pids}: choose others with CUDA_VISIBLE_DEVICES"
        return Finding(level="warn", what=f"GPU {index}", found=found, advice=advice)
    return Finding(level="ok", what=f"GPU {index}", found=found)


def shared_memory() -> list[Finding]:
    """/dev/shm, which data loaders and NCCL need."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return [
            Finding(level="warn", what="shared memory", found="no /dev/shm", advice="data loader workers will fail")
        ]
    size = shutil.disk_usage(place)
    found = f"{size.free / GIB:.2f} GiB free in /dev/shm"
    if size.total < GIB:
        advice = "small for NCCL and data loader workers: docker run --shm-size 2g"
        return [Finding(level="warn", what="shared memory", found=found, advice=advice)]
    return [Finding(level="ok", what="shared memory", found=found)]


def disk() -> list[Finding]:
    """Free space for run directories."""
    home = run_directory.home()
    existing = next(place for place in (home, *home.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    found = f"{home}, {free / GIB:.1f} GiB free"
    if not os.access(existing, os.W_OK):
        advice = "it cannot be written: set WORKBENCH_HOME to a directory of yours"
        return [Finding(level="fail", what="run directories", found=found, advice=advice)]
    if free < GIB:
        return [Finding(level="warn", what="run directories", found=found, advice="make room, or set WORKBENCH_HOME")]
    return [Finding(level="ok", what="run directories", found=found)]


def versions() -> list[Finding]:
    """Versions of what training needs."""
    findings = []
    for name in _PACKAGES:
        try:
            findings.append(Finding(level="ok", what=name, found=metadata.version(name)))
        except metadata.PackageNotFoundError:
            findings.append(
                Finding(level="fail", what=name, found="not installed", advice="install dist-workbench again")
            )
    return findings


def bytecode() -> list[Finding]:
    """Whether the packages that ranks import have compiled bytecode beside them (half of a cold start)."""
    missing = _not_compiled()
    if missing:
        advice = f"first start takes 10 s longer: {sys.executable} -m compileall -q -j 0 {_site_packages()}"
        return [Finding(level="warn", what="bytecode", found=f"not compiled: {', '.join(missing)}", advice=advice)]
    return [Finding(level="ok", what="bytecode", found="compiled")]


def _not_compiled() -> list[str]:
    missing = []
    for name in _HEAVY:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin and not Path(importlib.util.cache_from_source(spec.origin)).exists():
            missing.append(name)
    return missing


def _site_packages() -> str:
    spec = importlib.util.find_spec("bokeh")
    return str(Path(spec.origin).parents[1]) if spec and spec.origin else "site-packages"


def environment() -> list[Finding]:
    """Variables that change how ranks start."""
    findings = []
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices is not None:
        shown = f"CUDA_VISIBLE_DEVICES={devices!r}"
        found = f"{shown}: ranks use these GPUs only" if devices else f"{shown}: GPUs are hidden"
        findings.append(Finding(level="ok", what="environment", found=found))
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        advice = "harmless once bytecode is compiled; unset it otherwise"
        findings.append(
            Finding(level="warn", what="environment", found="PYTHONDONTWRITEBYTECODE is set", advice=advice)
        )
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        if name in os.environ:
            advice = "left from torchrun? ranks get their own values"
            findings.append(
                Finding(level="warn", what="environment", found=f"{name}={os.environ[name]}", advice=advice)
            )
    return findings or [Finding(level="ok", what="environment", found="nothing that changes training")]


def loopback() -> list[Finding]:
    """Ranks meet on 127.0.0.1: bind a free port, connect to it, send a byte."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                accepted, _ = server.accept()
                with accepted:
                    client.sendall(b"x")
                    accepted.settimeout(5)
                    accepted.recv(1)
    except OSError as error:
        advice = "ranks meet on 127.0.0.1: allow it in the firewall or sandbox"
        return [Finding(level="fail", what="loopback", found=str(error), advice=advice)]
    return [Finding(level="ok", what="loopback", found=f"127.0.0.1 works (tried port {port})")]


def browser() -> list[Finding]:
    """A browser, for tests and PDF."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found:
        return [Finding(level="ok", what="browser", found=found)]
    return [Finding(level="ok", what="browser", found="no chromium: only the browser tests need it, and they skip")]


def _imported(chosen: Framework) -> Finding:
    """Load what a rank server loads for the framework, in a fresh process."""
    code = (
        f"import pkgutil; pkgutil.resolve_name({chosen.preload!r})()\n"
        "import torch; print(torch.__version__, torch.distributed.is_gloo_available())"
    )
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [python_for(chosen) or sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=_IMPORT_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        advice = f"try again: {_why_slow(is_compiled=not _not_compiled())}"
        found = f"{chosen.title}: not finished after {_IMPORT_TIMEOUT_S:.0f} s"
        return Finding(level="fail", what="imports", found=found, advice=advice)
    seconds = time.monotonic() - begin
    why_slow = _why_slow(is_compiled=not _not_compiled())
    return judge_import(chosen.title, (done.returncode, done.stdout, done.stderr), seconds, why_slow)


def _why_slow(*, is_compiled: bool) -> str:
    """The likeliest reason for a slow import on this machine, as it is now."""
    return why_slow(is_compiled=is_compiled, load=os.getloadavg()[0], cores=_usable_cores())


def why_slow(*, is_compiled: bool, load: float, cores: int) -> str:
    """The likeliest reason for a slow import, in words."""
    if not is_compiled:
        return "compile the bytecode (see above)"
    if load > cores:
        return f"the machine is busy (load {load:.1f} on {cores} cores)"
    return "a cold or slow disk: the second time is faster"


def judge_import(title: str, ended: tuple[int, str, str], seconds: float, why_slow: str) -> Finding:
    """``ended``: exit code, output and errors of the process. A failure carries the last line of the traceback."""
    code, out, err = ended
    if code:
        lines = err.strip().splitlines()
        reason = lines[-1] if lines else f"exit code {code}"
        return Finding(
            level="fail",
            what="imports",
            found=f"{title}: {reason}",
            advice="install dist-workbench again in a fresh environment",
        )
    found = f"{title} in {seconds:.1f} s"
    if out.split()[-1:] != ["True"]:
        return Finding(
            level="fail",
            what="imports",
            found=f"{found}, but this torch has no gloo",
            advice="use a Linux build of torch",
        )
    if seconds > _SLOW_IMPORT_S:
        return Finding(
            level="warn",
            what="imports",
            found=found,
            advice=f"{why_slow}; the warm server hides it",
        )
    return Finding(level="ok", what="imports", found=found)
