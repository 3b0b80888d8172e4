"""What a rank is told to do: ``train("<run directory>")``, sent as text.

The run directory holds everything: the spec, the cell, the way to meet the other ranks, and the log that answers.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from workbench.core.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.core.frameworks import Capability, check_own_steps, framework
from workbench.core.live.rank_row import live_directory
from workbench.core.network import read as read_network
from workbench.core.recipe import recipe
from workbench.core.records import RESTARTING, Command, EventKind
from workbench.core.rules import criteria
from workbench.core.user_code.cell_source import OWN_STEP, names_of
from workbench.engine import notebook_group, process_group
from workbench.engine.agree.control import AgreedControl
from workbench.engine.agree.exchange import Exchange
from workbench.engine.base.capabilities import Evaluating, Inspectable, UpdateWatchable, Watchable, needed
from workbench.engine.base.joined import Joined
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Workload
from workbench.engine.data.dataset_source import DatasetSource
from workbench.engine.data.loader_source import LoaderSource
from workbench.engine.distributed_start import begin_from
from workbench.engine.failure import PeerFailed, noted_failure
from workbench.engine.faults.nonfinite import NonfiniteGuard
from workbench.engine.frameworks.torch_common.cells.cell_evaluation import CellEvaluation
from workbench.engine.frameworks.torch_common.cells.workload import workload_from_cell
from workbench.engine.frameworks.torch_common.compiled_model import compile_if_asked
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.engine.frameworks.torch_common.exchange import exchange_of
from workbench.engine.frameworks.torch_common.losses.calls import noted_losses
from workbench.engine.frameworks.torch_common.torch_settings import changed_settings, torch_defaults
from workbench.engine.logged.observer import LoggedValues
from workbench.engine.loop.trainer import Trainer
from workbench.engine.network.emulation import emulated
from workbench.engine.network.measure import log_network
from workbench.engine.pretrained.base import base_tensors
from workbench.engine.rank_output import output_kept, telling
from workbench.engine.recording.recorder import recorder_of
from workbench.engine.state import cell_names
from workbench.engine.state.alike_numbers import AlikeNumbers
from workbench.engine.state.randomness import separate_generators
from workbench.engine.watch.host.alerts import AlertWatch
from workbench.engine.watch.host.governor import WRITING_SHARE
from workbench.engine.watch.host.notify import target_of
from workbench.engine.watch.host.sampler import DeviceSampler, Progress
from workbench.engine.watch.inside.inside_watch import InsideWatch
from workbench.engine.watch.torch.batch_sizes import BatchSizeLogger
from workbench.engine.watch.torch.buffer_changes import BufferChanges
from workbench.engine.watch.torch.gradient_watch import GradientWatch
from workbench.engine.watch.torch.held_bytes import HeldBytes
from workbench.engine.watch.torch.joint_losses import JointLosses
from workbench.engine.watch.torch.peak_flops import log_peak_events
from workbench.engine.watch.torch.phases import add_phase_watch
from workbench.engine.watch.torch.update_watch import UpdateWatch
from workbench.engine.watch.torch.without_gradient import WithoutGradient
from workbench.errors import ConfigError
from workbench.events.outcome import Outcome
from workbench.rundir import checkpoints, environment
from workbench.rundir.commands import since
from workbench.rundir.directory import CELL_FILE, OUTPUT_FILE, recall_algorithm
from workbench.rundir.log import RankLogWriter, rank_directory


class Attempt(NamedTuple):
    """``restart``: how often the run was restarted, and ``checkpoint``: what it then goes on from ("": nothing);
    ``offset``: bytes of its control file that were taken before; ``repeated``: lines of it that took effect, each with
    its step; ``snapshots``: the directory in memory for copies of the state ("": none)."""

    restart: int = 0
    checkpoint: str = ""
    offset: int = 0
    repeated: Sequence[tuple[int, str]] = ()
    snapshots: str = ""


def train(run: str, *, reloaded: Sequence[str] = (), **attempted: Any) -> str:
    """Train the run in this directory on this rank; returns its ``Outcome`` as text, which tells the session what the
    log may be unable to. ``reloaded``: modules of the user that were reloaded for this run. Failures become a ``state
    failed`` event, or a ``state restarting`` one where the run may be restarted; nothing is raised but what interrupts
    (after it was logged) and what cannot be logged at all (``RunDirectoryError``).

    ``attempted``: see ``Attempt``; a run that was restarted goes on in the log that it has."""
    attempt = Attempt(**attempted)
    path = Path(run)
    rank = int(os.environ["RANK"])
    spec = _spec_of(path)
    progress = Progress()
    device = rank_device().type
    told: dict[str, Any] = {}
    state = ""

    def failed(error: BaseException) -> None:
        """Said once, at once: before leaving a group whose other ranks may be stuck."""
        nonlocal state
        if not told:
            told.update(noted_failure(error, path / CELL_FILE))
            again = attempt.restart < spec.max_restarts
            log.goes_on = again and progress.step > 0 and not isinstance(error, ConfigError)
            state = RESTARTING if log.goes_on else "failed"
            log.event(EventKind.STATE, state, told, step=progress.step)
            log.flush()

    log = RankLogWriter(
        path,
        rank,
        on_failure=telling(sys.stdout, rank),
        share=WRITING_SHARE * spec.monitor.budget,
        append=attempt.restart > 0,
    )
    with log, output_kept(rank_directory(path, rank) / OUTPUT_FILE), process_group.outlived():
        log.event(EventKind.STATE, "starting", {"pid": os.getpid(), "device": device, "live": live_directory()})
        if reloaded:
            log.event(EventKind.WARNING, "reloaded_modules", ", ".join(reloaded))
        sampler = DeviceSampler(log, rank=rank, hz=spec.monitor.sample_hz, device=device, progress=progress)
        sampler.start()
        alerts = AlertWatch(path, spec.name, log, progress) if rank == 0 else None
        try:
            with torch_defaults() as changed:
                if changed:
                    text = f"{changed}: left by an earlier run or %%dist cell; this run starts from the defaults"
                    log.event(EventKind.WARNING, "torch_settings", text)
                lost = notebook_group.leave()
                if lost:
                    log.event(EventKind.WARNING, "process_group", f"{lost}: a run has groups of its own")
                state, reason = _train(path, spec, rank, log, progress, attempt=attempt, failed=failed, alerts=alerts)
            if alerts is not None:
                alerts.close()
            log.event(EventKind.STATE, state, reason or None, step=progress.step)
        except BaseException as error:
            failed(error)
            if not isinstance(error, Exception):
                raise
        finally:
            if alerts is not None:
                alerts.close(wait=False)
            sampler.stop()
    lost = "" if log.failure is None else f"{log.failure.strerror or log.failure} (disk of {path})"
    return Outcome(state=state, step=progress.step, failure=told, log_failure=lost).to_text()


def _train(
    path: Path,
    spec: TrainSpec,
    rank: int,
    log: RankLogWriter,
    progress: Progress,
    *,
    attempt: Attempt,
    failed: Callable[[BaseException], None],
    alerts: AlertWatch | None,
) -> tuple[str, str]:
    """How the training ended, and why it ended early ("": it did not)."""
    # a rank 0 that was killed has left the file by which ranks meet
    token = f"restart-{attempt.restart}" if attempt.restart else ""
    network = read_network(spec.network) if spec.network else None
    with (
        joined_of(spec)(rank, spec.plan.ranks, path, seed=spec.seed, token=token),
        noted_losses(),
        emulated(network, rank_device().type),
    ):
        strategy = load_strategy(spec, own_steps=_has_own_steps(path, spec))(spec, rank)
        strategy.tell = _telling_once(log, progress)
        observers: list[StepObserver] = []
        control: AgreedControl | None = None
        recorder = recorder_of(path, spec, strategy)
        try:
            workload = _agreed_workload(path, spec, strategy)
            if recorder is not None:
                recorder.take(workload)
            if rank == 0 and (changed := changed_settings()):
                _record_settings(path, changed, log)
            if rank == 0 and not spec.recipe:
                _keep_cell(path, workload, strategy.tell)
            exchange = exchange_of(rank, spec.plan.ranks)
            for part in (workload.data, workload.evaluate):
                if isinstance(part, LoaderSource | DatasetSource | CellEvaluation):
                    part.share_with(exchange)
            if isinstance(workload.data, LoaderSource | DatasetSource):
                for name, text in workload.data.remarks().items():
                    strategy.tell(name, text)
            log_peak_events(log, workload, spec.precision, rank_device().type)
            strategy.prepare(workload)
            log_network(log, network)
            separate_generators(strategy, workload.generators)
            strategy.alike = AlikeNumbers(strategy, lambda: progress.step).drawn
            _rehearse(spec, workload, strategy, exchange)
            control = AgreedControl(path, exchange, offset=attempt.offset)
            begin_from(checkpoints.distributed(spec.resume), strategy, control)
            told = {"--notify": target_of(spec.monitor.notify), "on_alert": workload.on_alert}
            if alerts is not None and (spec.monitor.level != "off" or workload.alerts or any(told.values())):
                alerts.begin(workload.alerts, told)
            observers = observers_of(spec, strategy, workload, log, exchange)
            if recorder is not None:
                observers.append(recorder)
            checkpoint = _checkpoint(spec, log, attempt)
            trainer = Trainer(
                spec=spec,
                workload=workload,
                strategy=strategy,
                control=control,
                log=log,
                progress=progress,
                observers=observers,
                guard=NonfiniteGuard(
                    path,
                    strategy,
                    log,
                    control,
                    workload.data,
                    knobs=workload.knobs,
                    generators=workload.generators,
                ),
                run=path,
                resume=checkpoint,
                snapshots=Path(attempt.snapshots) if attempt.snapshots else None,
                repeated=_repeated(attempt, checkpoint),
                on_host=rank_device().type == "cpu",
            )
            return trainer.run(), trainer.reason
        except BaseException as error:
            failed(error)
            _leave(control)
            raise
        finally:
            for observer in observers:
                observer.close()
            strategy.close()


def _leave(control: AgreedControl | None) -> None:
    """Let no other rank wait for this one, which fails."""
    if control is not None:
        control.leave()


def _rehearse(spec: TrainSpec, workload: Workload, strategy: Strategy, exchange: Exchange) -> None:
    """Try the validation before the first step. ``ConfigError`` when it fails, or gives no value of a name that
    something follows."""
    evaluate, rules = workload.evaluate, criteria.parse_rules(spec.stop_when)
    followed = [("--stop-when", rule.name) for rule in rules if not rule.of_training]
    if spec.save_best:
        followed.append(("--save-best", criteria.parse_best(spec.save_best).name))
    if workload.schedule_metric:
        followed.append(("lr_scheduler_metric", workload.schedule_metric))
    followed += workload.alerts.validations()
    values: Mapping[str, Any] = {}
    if isinstance(evaluate, CellEvaluation) and spec.eval_every:
        values = evaluate.rehearse(needed(strategy, Evaluating, Capability.EVALUATING))
    elif evaluate is not None and followed:  # of a recipe, which knows no part of it
        values = evaluate(needed(strategy, Evaluating, Capability.EVALUATING)).values
    if followed:
        known = criteria.names_in(exchange.gathered(dict(values))[0])
        for where, name in followed:
            criteria.check_known(name, known, where)


def _record_settings(path: Path, changed: dict[str, str], log: RankLogWriter) -> None:
    """Keep with the run which settings of torch its cell has changed."""
    try:
        environment.add(path, torch_settings=changed)
    except (OSError, ValueError) as error:
        log.event(EventKind.WARNING, "environment", f"the cell's settings of torch were not recorded: {error}")


def _spec_of(path: Path) -> TrainSpec:
    spec = TrainSpec.from_options(read_spec_options(path / SPEC_FILE))
    recall_algorithm(path, spec.plan.algorithm)
    return spec


def _checkpoint(spec: TrainSpec, log: RankLogWriter, attempt: Attempt) -> Path | None:
    """The checkpoint to go on from; ``ConfigError`` when it is not there (any more). That a restart has none,
    and begins with the first step, is logged."""
    if attempt.checkpoint:
        return Path(attempt.checkpoint)
    if not spec.resume or checkpoints.distributed(spec.resume) is not None:
        if attempt.restart:
            log.event(EventKind.CHECKPOINT, "restored", {"path": "", "rows": log.taken()}, step=0)
        return None
    run, step = checkpoints.split(spec.resume)
    return checkpoints.find(run, step)


def _repeated(attempt: Attempt, checkpoint: Path | None) -> list[tuple[int, Command]]:
    """What was set before a restart and after what it goes on from."""
    commands = [(step, Command.from_line(line)) for step, line in attempt.repeated]
    ours = checkpoint if attempt.checkpoint else None
    asked = ours is not None and bool(checkpoints.read_index(ours)["asked"])
    return since(commands, 0 if ours is None else checkpoints.step_of(ours), asked=asked)


def observers_of(
    spec: TrainSpec, strategy: Strategy, workload: Workload, log: RankLogWriter, exchange: Exchange
) -> list[StepObserver]:
    """What watches the steps of this run."""
    always: list[StepObserver] = [
        BatchSizeLogger(strategy, log, exchange, tokens_per_sample=workload.tokens_per_sample),
        WithoutGradient(strategy),
        JointLosses(spec, strategy, workload.model),
        BufferChanges(spec, strategy, workload.model, exchange, workload.cell_state),
        LoggedValues(workload.user_log, strategy, log),
    ]
    if spec.monitor.level == "off":
        return [*always]
    device = rank_device()
    gradients: list[StepObserver] = []
    if isinstance(strategy, Watchable):
        gradients.append(GradientWatch(spec, strategy, log, device))
    elif isinstance(strategy, UpdateWatchable):
        gradients.append(UpdateWatch(spec, strategy, log, device))
    inside: list[StepObserver] = [InsideWatch(spec, strategy, log, device)] if isinstance(strategy, Inspectable) else []
    always.append(HeldBytes(workload, log))
    return [*always, *add_phase_watch(spec.monitor, strategy, log, device.type, [*gradients, *inside])]


def joined_of(spec: TrainSpec) -> Joined:
    """What makes a process a rank of the plan's framework."""
    return pkgutil.resolve_name(framework(spec.plan.framework).joined)


def load_strategy(spec: TrainSpec, *, own_steps: bool = False) -> type[Strategy]:
    """The class that trains the plan, as its framework names it. ``own_steps``: a cell with a ``train_step``;
    ``ConfigError`` where the plan cannot train it."""
    plugin = framework(spec.plan.framework).plugin(spec.plan.plugin)
    if own_steps:
        check_own_steps(spec.plan.framework, spec.plan.plugin)
    return pkgutil.resolve_name(plugin.own_steps if own_steps else plugin.strategy)


def _has_own_steps(path: Path, spec: TrainSpec) -> bool:
    return not spec.recipe and OWN_STEP in names_of((path / CELL_FILE).read_text(encoding="utf-8"))


def build_workload(path: Path, spec: TrainSpec) -> Workload:
    """The workload of the run directory ``path``: of its recipe, or of its cell."""
    workload = recipe(spec.recipe).build(spec) if spec.recipe else workload_from_cell(path / CELL_FILE, spec)
    workload.base = base_tensors(workload.model)
    return workload


def _agreed_workload(path: Path, spec: TrainSpec, strategy: Strategy) -> Workload:
    """Build the workload; when one rank cannot, no rank starts."""
    failure: BaseException | None = None
    try:
        workload = build_workload(path, spec)
        compile_if_asked(workload, spec)
        strategy.check(spec, workload)
    except BaseException as error:  # answered below, on every rank
        failure = error
    if spec.plan.ranks > 1:
        failures = torch.tensor([failure is not None], dtype=torch.int32, device=rank_device())
        dist.all_reduce(failures)
        if failure is None and int(failures):
            raise PeerFailed(f"{int(failures)} of {spec.plan.ranks} ranks failed to build the model")
    if failure is not None:
        raise failure
    return workload


def _keep_cell(path: Path, workload: Workload, tell: Callable[[str, str], object]) -> None:
    """Keep with the run what its cell took from elsewhere, and say what could not be kept."""
    missing, changed = cell_names.keep(path, (path / CELL_FILE).read_text(encoding="utf-8"), workload.cell_names)
    if missing:
        text = f"the run keeps no copy of {', '.join(missing)}: to repeat it from its spec, define this in the cell"
        tell("names_not_kept", text)
    if changed:
        tell("modules_changed", f"{', '.join(changed)}: the code differs from that of the first run")


def _telling_once(log: RankLogWriter, progress: Progress) -> Callable[[str, str], object]:
    """Logs a warning under each name once."""
    told: set[str] = set()

    def tell(name: str, text: str) -> None:
        if name not in told:
            told.add(name)
            log.event(EventKind.WARNING, name, text, step=progress.step)

    return tell
