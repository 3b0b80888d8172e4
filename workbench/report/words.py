"""Describes a run in sentences and formats numbers, durations and event values for a report. Reads no files."""

from __future__ import annotations

import datetime
import math
import shlex
from typing import Any

import numpy as np

from workbench.core import numbers, plan_grammar
from workbench.core.config import TrainSpec
from workbench.core.flags import FLAGS
from workbench.core.records import SESSION_RANK, EventKind
from workbench.errors import format_ranks
from workbench.events.decode import as_number
from workbench.events.epochs import EpochProgress
from workbench.events.outcome import FirstFailure, early_end_of, failure_of
from workbench.report.run_data import LoggedEvent, RunData
from workbench.telemetry.derive import batch_of
from workbench.telemetry.phases import posting_time
from workbench.telemetry.verdict import verdict

#: options whose defaults depend on the recipe: the command line always states them
_ALWAYS_STATED = ("plan", "steps", "batch_size", "lr", "precision", "eval_every", "clip")
_STATUS_SENTENCES = {
    "starting": "It had not completed a step when this report was written.",
    "running": "It was still training when this report was written.",
    "paused": "It was paused when this report was written.",
    "restarting": "It was being restarted when this report was written.",
    "finished": "It finished.",
    "stopped": "It was stopped before its last step.",
    "failed": "It failed.",
    "lost": "It did not report an end: its kernel or session ended, or its machine went down.",
}


def format_number(value: float | int | None, digits: int = 4) -> str:
    """``1234567.8`` -> ``1,234,568``; ``0.00012346`` -> ``1.235e-4``; None -> a dash; not finite -> ``nan``, ``inf``.

    ``digits``: significant digits of a number that is not whole and is smaller than 1000.
    """
    return numbers.number(value, digits)


def format_bytes(count: float) -> str:
    """A number of bytes in GiB, or in MiB if it is less than 1 GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def format_duration(seconds: float) -> str:
    """``75`` -> ``1 min 15 s``."""
    return numbers.seconds(seconds)


def format_local_time(time: float) -> str:
    """Date and time in the local time zone, with the name of the zone. ``time``: seconds since the epoch."""
    return datetime.datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def describe_run(run: RunData) -> list[str]:
    """Sentences about the run: the training, its losses, its speed, the verdict, and how it ended."""
    sentences = (
        _describe_training(run),
        _describe_losses(run),
        _describe_speed(run),
        verdict_sentence(run),
        _describe_end(run),
    )
    return [sentence for sentence in sentences if sentence]


def verdict_sentence(run: RunData) -> str:
    """What limited the run, and which rank the others waited for; "" unless every rank logged phases."""
    phases = run.store.table("phases")
    if not phases["step"].size or run.store.absent:
        return ""
    return verdict(phases, run.mesh, posting_time(run.store.table("collectives"))).sentence


def _describe_training(run: RunData) -> str:
    spec = run.spec
    if spec is None:
        return f"The run used {run.mesh.world_size} ranks. Its spec could not be read."
    model = (
        f"The recipe {spec.recipe}{f' (size {spec.size})' if spec.size else ''}"
        if spec.recipe
        else "The model defined in the cell"
    )
    batch = spec.batch_size or batch_of(run.store.table("events"))[0]
    batches = f"{batch:,} samples per step" if batch else "with the batches of the cell's dataloader"
    done = int(run.metrics["step"][-1]) if run.metrics["step"].size else 0
    epochs = EpochProgress().take(run.store.table("events"))
    steps = epochs.last_step(spec.steps)
    trained = f"was trained for {done:,} of {steps:,} steps" if steps else f"was trained for {done:,} steps"
    if epochs.counts and done:
        trained += f" ({epochs.words(done)})"
    if not done:
        trained = f"completed none of its {f'{steps:,} ' if steps else ''}steps"
    return f"{model} {trained}, with plan {spec.plan.describe()}, in {spec.precision}, {batches}."


def _describe_losses(run: RunData) -> str:
    figures = run.summary()
    first, last = figures["first_loss"], figures["last_loss"]
    if first is None or last is None:
        losses = run.metrics["loss"]
        return "The training loss was never finite." if losses.size and not np.isfinite(losses).any() else ""
    verb = "fell" if last < first else "rose"
    text = f"The training loss {verb} from {format_number(first)} to {format_number(last)}."
    if last == first:
        text = f"The training loss stayed at {format_number(last)}."
    validation = run.validation()
    if validation:
        values = ", ".join(
            f"{key.replace('_', ' ')} {format_number(value)}" for key, value in validation[-1].items() if key != "step"
        )
        text += f" Validation at step {validation[-1]['step']:,}: {values}."
    return text


def _describe_speed(run: RunData) -> str:
    tps = run.summary()["tokens_per_second"]
    if tps is None:
        return ""
    times = run.metrics["step_time_ms"]
    step_ms = float(np.median(times[1:] if times.size > 1 else times))
    unit = batch_of(run.store.table("events"))[1]
    per_device = tps / run.mesh.world_size
    return (
        f"Training took {format_duration(run.seconds)}: {numbers.milliseconds(step_ms)} per step (median), "
        f"{format_number(tps)} {unit} per second, {format_number(per_device)} per second per device."
    )


def _describe_end(run: RunData) -> str:
    text = _STATUS_SENTENCES[run.status]
    failed = find_first_failure(run)
    reason = early_end_of(run.store.table("events"))
    if reason and run.status == "finished":
        text = f"It ended before its last step: {reason}."
    if failed:
        text = f"It failed on {failed.who}: {format_value(failed.message)}."
    for died in run.events_of_kind(EventKind.RANK, "died"):
        if isinstance(died.value, dict) and died.value.get("rank") not in (failed.ranks if failed else ()):
            text += f" Rank {died.value.get('rank')} died: {died.value.get('reason', 'the reason is not known')}."
    dropped = run.events_of_kind(EventKind.LOG, "dropped")
    if dropped:
        totals = {rank: _number_or_zero(event.value) for event in dropped for rank in event.ranks}  # the last of each
        count = format_number(sum(totals.values()))
        text += f" {count} records were dropped because they did not fit into the log buffer."
    return text


def find_first_failure(run: RunData) -> FirstFailure | None:
    """The failure that caused the others; None when no rank failed or died."""
    return failure_of(run.store.table("events"))


def _number_or_zero(value: Any) -> float:
    number = as_number(value)
    return 0.0 if math.isnan(number) else number


def format_event_ranks(event: LoggedEvent) -> str:
    """The ranks that logged an event (``ranks 0-3``), or ``notebook`` if the session in the notebook logged it."""
    if event.ranks == (SESSION_RANK,):
        return "notebook"
    return format_ranks(rank for rank in event.ranks if rank != SESSION_RANK)


def format_value(value: Any, limit: int = 400) -> str:
    """A decoded event value as text for a table cell, cut off after ``limit`` characters."""
    if value is None:
        return ""
    if isinstance(value, dict) and "ename" in value:
        value = f"{value['ename']}: {value.get('evalue', '')}"
    text = (
        value
        if isinstance(value, str)
        else ", ".join(f"{k}: {format_number(v, 6) if isinstance(v, float) else v}" for k, v in value.items())
        if isinstance(value, dict)
        else str(value)
    )
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def command_line_flags(spec: TrainSpec) -> list[str]:
    """The arguments of ``%dist_train`` or ``workbench train`` that make this spec."""
    defaults = TrainSpec().options()
    arguments: list[str] = []
    options = {name: value for name, value in spec.options().items() if name not in plan_grammar.OPTIONS}
    options |= {"plan": spec.plan.describe(), "ds_config": spec.plan.ds_config}
    for flag in FLAGS:
        value = options.get(flag.option)
        if value is not None and (value != defaults.get(flag.option) or flag.option in _ALWAYS_STATED):
            arguments += [flag.names[0]] if flag.kind is None else [flag.names[0], str(value)]
    return arguments


def rerun_commands(run: RunData) -> list[tuple[str, str]]:
    """Ways to run the training again: (title, command). Empty when the spec could not be read."""
    if run.spec is None:
        return []
    spec_file = shlex.quote(str(run.path / "spec.toml"))
    if not run.spec.recipe:
        line = shlex.join(command_line_flags(run.spec))
        cell = run.cell or "# the run directory does not contain the cell"
        return [("In a notebook", f"%%dist_train {line}\n{cell}")]
    return [
        ("In a terminal", f"workbench train {spec_file}"),
        ("In a notebook", f"%dist_train --config {spec_file}"),
        ("In a notebook, without the spec file", f"%dist_train {shlex.join(command_line_flags(run.spec))}"),
    ]
