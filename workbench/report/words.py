"""A run in words: sentences and formatted figures. Pure functions of the run."""

from __future__ import annotations

import datetime
import math
import shlex
from typing import Any

import numpy as np

from workbench.core.config import TrainSpec
from workbench.core.flags import FLAGS
from workbench.core.records import SESSION_RANK, EventKind
from workbench.errors import format_ranks
from workbench.events.decode import as_number
from workbench.events.outcome import FirstFailure, failure_of
from workbench.report.run_data import LoggedEvent, RunData
from workbench.telemetry.derive import batch_of
from workbench.telemetry.phases import posting_time
from workbench.telemetry.verdict import verdict

#: options that a recipe has its own defaults for, so a command line names them
_ALWAYS = ("ranks", "steps", "batch_size", "lr", "precision", "eval_every", "clip")
STATUS = {
    "starting": "It had not taken a step yet when this report was made.",
    "running": "It was still training when this report was made.",
    "finished": "It ran to its end.",
    "stopped": "It was stopped before its last step.",
    "failed": "It failed.",
    "lost": "It never reported an end: its ranks were killed, or their machine went down.",
}


def number(value: float | int | None, digits: int = 4) -> str:
    """``1234567.8`` -> ``1,234,568``; ``0.00012346`` -> ``0.0001235``; nothing or not finite -> a dash or its name."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def gibibytes(count: float) -> str:
    """Bytes in GiB, or MiB below one."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """``75`` -> ``1 min 15 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def moment(time: float) -> str:
    """Local date and time, with the zone."""
    return datetime.datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def summary(run: RunData) -> list[str]:
    """The run in a few sentences: what was trained, on what, how fast, what limited it, how it ended."""
    return [text for text in (_what(run), _learned(run), _speed(run), limits(run), _end(run)) if text]


def limits(run: RunData) -> str:
    """What limited the run, and who was slow; "" when no phases were logged, or not by every rank."""
    phases = run.store.table("phases")
    if not phases["step"].size or run.store.absent:
        return ""
    return verdict(phases, run.mesh, posting_time(run.store.table("collectives"))).sentence


def _what(run: RunData) -> str:
    spec = run.spec
    if spec is None:
        return f"A run on {run.mesh.world_size} ranks whose spec could not be read."
    what = (
        f"The recipe {spec.recipe}{f' (size {spec.size})' if spec.size else ''}"
        if spec.recipe
        else "A model of its own"
    )
    batch = spec.batch_size or batch_of(run.store.table("events"))[0]
    samples = f"{batch:,} samples a step" if batch else "in batches of the cell's own dataloader"
    done = int(run.metrics["step"][-1]) if run.metrics["step"].size else 0
    trained = f"was trained for {done:,} of {spec.steps:,} steps"
    if not done:
        trained = f"was to be trained for {spec.steps:,} steps and did not finish one"
    return f"{what} {trained}, with plan {spec.plan.describe()}, in {spec.precision}, {samples}."


def _learned(run: RunData) -> str:
    figures = run.summary()
    first, last = figures["first_loss"], figures["last_loss"]
    if first is None or last is None:
        losses = run.metrics["loss"]
        return "The loss was not a finite number." if losses.size and not np.isfinite(losses).any() else ""
    verb = "fell" if last < first else "rose" if last > first else "stayed"
    text = f"The training loss {verb} from {first:.4f} to {last:.4f}."
    validation = run.validation()
    if validation:
        values = ", ".join(f"{key} {number(value)}" for key, value in validation[-1].items() if key != "step")
        text += f" Validation at step {validation[-1]['step']:,}: {values}."
    return text


def _speed(run: RunData) -> str:
    tps = run.summary()["tokens_per_second"]
    if tps is None:
        return ""
    times = run.metrics["step_time_ms"]
    step_ms = float(np.median(times[1:] if times.size > 1 else times))
    unit = batch_of(run.store.table("events"))[1]
    per_device = tps / run.mesh.world_size
    return (
        f"Training took {duration(run.seconds)}: {number(step_ms, 3)} ms a step (median), {number(tps)} {unit} a "
        f"second, which is {number(per_device)} per device."
    )


def _end(run: RunData) -> str:
    text = STATUS[run.status]
    failed = first_failure(run)
    if failed:
        text = f"It failed on {failed.who}: {short(failed.message)}."
    for died in run.of_kind(EventKind.RANK, "died"):
        if isinstance(died.value, dict) and died.value.get("rank") not in (failed.ranks if failed else ()):
            text += f" Rank {died.value.get('rank')} died: {died.value.get('reason', 'the reason is not known')}."
    dropped = run.of_kind(EventKind.LOG, "dropped")
    if dropped:
        text += f" {number(sum(_as_number(h.value) for h in dropped))} records did not fit into the logs."
    return text


def first_failure(run: RunData) -> FirstFailure | None:
    """The failure that explains the others."""
    return failure_of(run.store.table("events"))


def _as_number(value: Any) -> float:
    found = as_number(value)
    return 0.0 if math.isnan(found) else found


def who(logged_event: LoggedEvent) -> str:
    """``ranks 0-3``, or ``notebook`` for what its side wrote."""
    if logged_event.ranks == (SESSION_RANK,):
        return "notebook"
    return format_ranks(rank for rank in logged_event.ranks if rank != SESSION_RANK)


def short(value: Any, limit: int = 400) -> str:
    """A decoded event value for a table cell, cut at ``limit`` characters."""
    if value is None:
        return ""
    if isinstance(value, dict) and "ename" in value:
        value = f"{value['ename']}: {value.get('evalue', '')}"
    text = (
        value
        if isinstance(value, str)
        else ", ".join(f"{k}: {number(v, 6) if isinstance(v, float) else v}" for k, v in value.items())
        if isinstance(value, dict)
        else str(value)
    )
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def flags(spec: TrainSpec) -> list[str]:
    """The words of a command line for this spec, as ``%dist_train`` and ``workbench train`` take them."""
    plain = TrainSpec().options()
    words: list[str] = []
    options = spec.options()
    for flag in FLAGS:
        value = options[flag.option]
        if value is not None and (value != plain[flag.option] or flag.option in _ALWAYS):
            words += [flag.names[0]] if flag.kind is None else [flag.names[0], str(value)]
    return words


def rerun(run: RunData) -> list[tuple[str, str]]:
    """How to run it again: (where, what to type)."""
    if run.spec is None:
        return []
    spec_file = shlex.quote(str(run.path / "spec.toml"))
    if not run.spec.recipe:
        line = shlex.join(flags(run.spec))
        return [("In a notebook", f"%%dist_train {line}\n{run.cell or '# the cell was not kept'}")]
    return [
        ("In a terminal", f"workbench train {spec_file}"),
        ("In a notebook", f"%dist_train --config {spec_file}"),
        ("Without its file", f"%dist_train {shlex.join(flags(run.spec))}"),
    ]
