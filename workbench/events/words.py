"""Events in words: what happened, as a sentence for people, with units. Pure.

A log may be another version's, or written by anybody: what is not known here is said as it stands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from workbench.core import network
from workbench.core.controls import AUTOMATIC, find, settings
from workbench.core.numbers import decimal_bytes, number, seconds
from workbench.core.records import EventKind
from workbench.errors import ConfigError
from workbench.events.alerts import BEGINS, Alert
from workbench.events.decode import as_number

LONGEST = 300
_CURVES = {"loss": "the loss", "grad_norm": "the gradient norm"}
_STATES = {
    "starting": "starting",
    "running": "training",
    "paused": "paused",
    "restarting": "waiting for the restart of the run",
    "finished": "finished: all steps are done",
    "stopped": "stopped",
    "lost": "its session ended, and the ranks with it",
}
_ACTIONS = {"stop": "the run is stopped", "skip": "update skipped", "go": "training continues"}


def short(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(short, value))
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value)


def setting(name: str, value: Any, unit: str = "") -> str:
    """The value of a setting, in words: "off" for a clip of 0, "every 20 steps" for an interval."""
    if value is None:
        return "not known"
    if name == "clip" and value == 0:
        return "off"
    if name in ("log_every", "grad_every", "watch_every"):
        special = ((AUTOMATIC, "auto (within the monitoring budget)"), (0, "never"), (1, "every step"))
        return next((text for known, text in special if value == known), f"every {short(value)} steps")
    if name == "watch":
        return str(value).replace(",", ", ") if value else "nothing"
    if name in ("grad_layers", "watch_layers"):
        return f"names matching {value!r}" if value else "all"
    return f"{short(value)} {unit}".rstrip()


def words(kind: str, name: str, value: Any = None, old: Any = None, *, units: Mapping[str, str] | None = None) -> str:
    """One line for people. ``value`` and ``old`` are decoded; ``units`` of knobs that the training script declared."""
    if kind == EventKind.CONTROL:
        text = _control(name, value, old, units or {})
    else:
        known = _EVENTS.get((kind, name)) or _KINDS.get(kind)
        text = known(name, value, old) if known else _plain(name, value, old)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _plain(name: str, value: Any, old: Any) -> str:
    now = "" if value is None else f" {short(value)}"
    return f"{name.replace('_', ' ')}{'' if old is None else f' {short(old)} →'}{now}"


#: settings of what is watched inside the model
_INSIDE = ("watch", "watch_every", "watch_layers")


def _control(name: str, value: Any, old: Any, units: Mapping[str, str]) -> str:
    if name in _ACTS:
        return _ACTS[name](value, old)
    if name == "declared" and isinstance(value, dict):
        unit = f" {value['unit']}" if value.get("unit") else ""
        return f"the training script declared the knob {value.get('name')} = {short(value.get('value'))}{unit}"
    unit = units.get(name, "")
    now = setting(name, value, unit)
    colon = ":" if name in ("log_every", "grad_every", "grad_layers", *_INSIDE) else ""
    return f"{_title(name)}{colon} {now if old is None else f'{setting(name, old)} → {now}'}"


def _title(name: str) -> str:
    """What people call a setting; a knob of the training script by its name."""
    return next((control.title for control in settings() if control.name == name), name)


_STOPS = {"checkpoint": " with a checkpoint", "no-checkpoint": " without a checkpoint"}


def _layers(value: Any) -> str:
    return short(value) if value else "none"


def _own_alert(value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    condition = "a function of the cell" if told.get("is_function") else short(told.get("when"))
    return f"alert {short(told.get('name'))} when {condition}"


_ACTS: dict[str, Callable[[Any, Any], str]] = {
    "pause": lambda value, old: "pause after this step",
    "resume": lambda value, old: "resume training",
    "step": lambda value, old: f"train {'1 step' if value in (None, 1) else f'{short(value)} steps'}, then pause",
    "stop": lambda value, old: f"end the run{_STOPS.get(value, '')}",
    "evaluate": lambda value, old: "evaluated",
    "sample": lambda value, old: "sample generated",
    "checkpoint": lambda value, old: "checkpoint requested",
    "rollback": lambda value, old: f"rolled back to step {short(value)}{'' if old is None else f', from {short(old)}'}",
    "branch": lambda value, old: f"branched: a new run continues{f' with {short(value)}' if value else ''}",
    "alert": _own_alert,
    "freeze": lambda value, old: f"frozen layers: {_layers(old)} → {_layers(value)}",
    "unfreeze": lambda value, old: f"frozen layers: {_layers(old)} → {_layers(value)}",
}


def _state(name: str, value: Any, old: Any) -> str:
    if isinstance(value, dict) and "ename" in value:
        return f"{name}: {value['ename']}: {value.get('evalue', '')}"
    return f"{name}: {value}" if isinstance(value, str) and value else _STATES.get(name, name)


def _refused(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    try:
        is_setting = find(name).setting
    except ConfigError:  # a knob of the training script, or another version's
        is_setting = True
    given = "" if told.get("value") is None else f" {'= ' if is_setting else ''}{short(told['value'])}"
    return f"{name}{given} was refused: {told.get('reason', 'no reason was given')}"


def _died(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    return f"rank {told.get('rank', '?')} died: {told.get('reason', 'the reason is not known')}"


def _replaced(name: str, value: Any, old: Any) -> str:
    return f"{_died(name, value, old)}; it is replaced"


def _restart(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    return (
        f"restart {told.get('number', '?')} of {told.get('of', '?')}: {told.get('reason', 'the reason is not known')}"
    )


def _stalled(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    advice = short(told.get("advice") or "")
    begin = "" if told.get("cause") == "debugger" else "stalled: "  # somebody has asked for it
    sentence = f"{begin}{short(told.get('sentence', 'ranks do not go on'))}"
    return f"{sentence}. {advice[:1].upper()}{advice[1:]}" if advice else sentence


def _moving(name: str, value: Any, old: Any) -> str:
    return f"the ranks go on{f', after {seconds(value)}' if isinstance(value, (int, float)) else ''}"


def _nonfinite(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    what = f"{'the loss' if name == 'loss' else 'a gradient'} is not finite"
    layer, module = told.get("layer"), told.get("module")
    if layer is not None:
        kind = f" ({module})" if module else ""
        way = f" in the {told['where']} pass" if told.get("where") else ""
        what += f": it began in {layer or 'the model itself'}{kind}{way}"
    elif told.get("not_found"):
        what += f": {told['not_found']}"
    action = _ACTIONS.get(str(told.get("action")))
    return f"{what}; {action}" if action else what


def _spike(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    what = _CURVES.get(name, name)
    if "value" not in told:
        return f"{what} spiked"
    usual = f" (recent median {short(told['usual'])})" if "usual" in told else ""
    return f"{what} spiked to {short(told['value'])}{usual}"


def _alert(name: str, value: Any, old: Any) -> str:
    alert = Alert.from_value(name, value)
    says_more = alert.state == BEGINS and not alert.is_own
    return f"{alert.sentence()}. {alert.explanation()}" if says_more else alert.sentence()


def _saved(name: str, value: Any, old: Any) -> str:
    return f"checkpoint {_checkpoint_name(value)} was written"


def _checkpoint_name(value: Any) -> str:
    path = value.get("path") if isinstance(value, dict) else value
    return PurePath(path).name if isinstance(path, str) else short(path)


def _without_base(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    own, base = (as_number(told.get(each)) for each in ("bytes", "base_bytes"))
    if not (math.isfinite(own) and math.isfinite(base)):
        return "a checkpoint holds what is trained; the frozen weights are read where they come from"
    return (
        f"a checkpoint holds what is trained and the optimizer's state, {decimal_bytes(own)}; the frozen weights, "
        f"{decimal_bytes(base)}, are read from {short(told.get('directory'))}"
    )


def _restored(name: str, value: Any, old: Any) -> str:
    from_nothing = isinstance(value, dict) and not value.get("path")
    return "started again from step 0" if from_nothing else f"resumed from checkpoint {_checkpoint_name(value)}"


def _snapshot(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    every, size, ms = (as_number(told.get(each)) for each in ("every", "bytes", "ms"))
    if not all(map(math.isfinite, (every, size, ms))) or every < 1:
        return "copies of the state are kept in memory"
    return (
        f"a copy of the state every {every:g} steps takes {decimal_bytes(int(size))} of memory, twice that while one "
        f"is written, and {ms:.3g} ms ({ms / every:.3g} ms a step)"
    )


def _saved_by_script(name: str, value: Any, old: Any) -> str:
    path = value.get("path") if isinstance(value, dict) else None
    return f"the script wrote a checkpoint: {short(path)}" if path else "the script wrote a checkpoint"


def _best(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    return f"best checkpoint: {short(told.get('name'))} {short(told.get('value'))}"


def _epochs(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    epochs, length, steps = (told.get(key) for key in ("epochs", "steps_per_epoch", "steps"))
    done, of = told.get("done"), f" of {short(epochs)}" if epochs else ""
    if name == "epoch":
        return f"epoch {short(done)}{of} is done"
    text = f"{short(epochs)} epochs" if epochs else "epochs are counted"
    if not length:
        return f"{text} of as many steps as the data give"
    text += f" of {short(length)} steps"
    end = told.get("end_of_epochs")
    if steps and end and steps < end:
        return f"{text}, which would end with step {short(end)}: step {short(steps)} comes first and ends the run"
    return f"{text}: the run ends with step {short(steps)}" if steps and epochs else text


def _batch(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    return f"global batch: {short(told.get('samples'))} samples; throughput is in {told.get('unit')}"


def _bad_command(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {"line": value}
    why = told.get("reason", "not read")
    return f"a line of control.jsonl could not be read as a command ({why}): {short(told.get('line'))}"


def _cost(name: str, value: Any, old: Any) -> str:
    return (
        f"monitoring overhead so far: {100 * as_number(value):.2g} %"
        if isinstance(value, (int, float))
        else _plain(name, value, old)
    )


def _peak(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    known = f", {told['precision']}" if told.get("precision") else ""
    source = f" ({told['source']})" if told.get("source") else ""
    return f"peak of the device: {_scaled(told.get('flops_per_s'), 'FLOP/s')}{known}{source}"


def _model(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    count = told.get("parameters")
    parameters = f"{count:,}" if isinstance(count, int) else short(count)
    formula = f" ({told['formula']})" if told.get("formula") else ""
    return f"model: {parameters} parameters, {_scaled(told.get('flops_per_token'), 'FLOP')} per token{formula}"


def _network(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    asked, found = (
        network.in_words(as_number(told.get(f"{kind}bits_per_s")), as_number(told.get(f"{kind}latency_s")))
        for kind in ("asked_", "")
    )
    return f"network {short(told.get('network'))}, emulated around collectives: asked {asked}; measured {found}"


def _memory(name: str, value: Any, old: Any) -> str:
    told = value if isinstance(value, dict) else {}
    parameters, state = (decimal_bytes(as_number(told.get(key))) for key in ("parameters", "optimizer_state"))
    return f"this rank holds {parameters} of parameters and {state} of optimizer state"


def _scaled(value: Any, unit: str) -> str:
    """4.57e10 and "FLOP/s" -> "45.7 GFLOP/s"; what is no number, as it stands."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return f"unknown {unit}"
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} P{unit}"


def _phases(name: str, value: Any, old: Any) -> str:
    return f"phase timing: every {'step' if value == 1 else f'{_ordinal(value)} step'}"


def _ordinal(value: Any) -> str:
    """4 -> "4th"."""
    text = short(value)
    ending = "" if text[-2:] in ("11", "12", "13") else {"1": "st", "2": "nd", "3": "rd"}.get(text[-1:], "")
    return f"{text}{ending or 'th'}"


def _resumed_with(name: str, value: Any, old: Any) -> str:
    now, before = (told if isinstance(told, dict) else {} for told in (value, old))
    texts = [f"{_title(key)} {setting(key, before.get(key))} → {setting(key, now[key])}" for key in now]
    return f"resumed with {', '.join(texts) or 'the same settings'}"


_KINDS: dict[str, Callable[[str, Any, Any], str]] = {
    EventKind.STATE: _state,
    EventKind.REFUSED: _refused,
    EventKind.NONFINITE: _nonfinite,
    EventKind.SPIKE: _spike,
    EventKind.ALERT: _alert,
    EventKind.WARNING: lambda name, value, old: name.replace("_", " ") if value is None else short(value),
}
_EVENTS: dict[tuple[str, str], Callable[[str, Any, Any], str]] = {
    (EventKind.RANK, "died"): _died,
    (EventKind.RANK, "replaced"): _replaced,
    (EventKind.RANK, "restart"): _restart,
    (EventKind.RANK, "stalled"): _stalled,
    (EventKind.RANK, "moving"): _moving,
    (EventKind.CHECKPOINT, "saved"): _saved,
    (EventKind.CHECKPOINT, "without_base"): _without_base,
    (EventKind.CHECKPOINT, "snapshot"): _snapshot,
    (EventKind.CHECKPOINT, "saved_by_script"): _saved_by_script,
    (EventKind.CHECKPOINT, "best"): _best,
    (EventKind.DATA, "epochs"): _epochs,
    (EventKind.DATA, "epoch"): _epochs,
    (EventKind.CHECKPOINT, "restored"): _restored,
    (EventKind.CHECKPOINT, "resumed_with"): _resumed_with,
    (EventKind.CHECKPOINT, "removed"): lambda name, value, old: (
        f"checkpoint {_checkpoint_name(value)} was removed: newer ones are kept"
    ),
    (EventKind.CHECKPOINT, "failed"): lambda name, value, old: f"the checkpoint could not be written: {short(value)}",
    (EventKind.DATA, "batch"): _batch,
    (EventKind.GPU, "lost"): lambda name, value, old: f"the GPU can no longer be read: {short(value)}",
    (EventKind.LOG, "dropped"): lambda name, value, old: (
        f"{short(value)} records did not fit into the log and are missing"
    ),
    (EventKind.LOG, "failed"): lambda name, value, old: f"the log can no longer be written: {short(value)}",
    (EventKind.LOSS_SCALE, "changed"): lambda name, value, old: _plain("loss scale", value, old),
    (EventKind.PEAK, "flops"): _peak,
    (EventKind.PEAK, "model"): _model,
    (EventKind.PEAK, "held"): _memory,
    (EventKind.PEAK, "network"): _network,
    (EventKind.MONITOR, "interval"): lambda name, value, old: _control("grad_every", value, old, {}),
    (EventKind.MONITOR, "cost"): _cost,
    (EventKind.MONITOR, "phases"): _phases,
    (EventKind.WARNING, "bad_command"): _bad_command,
    (EventKind.WARNING, "nonfinite_loss"): lambda name, value, old: f"the loss is {short(value)}",
    (EventKind.WARNING, "schedule_not_saved"): lambda name, value, old: (
        f"checkpoints lack a part of the schedule: {short(value)}"
    ),
    (EventKind.WARNING, "reloaded_modules"): lambda name, value, old: (
        f"modules that changed on disk were reloaded: {short(value)}"
    ),
    (EventKind.WARNING, "gpu_unavailable"): lambda name, value, old: f"the GPU cannot be read: {short(value)}",
    (EventKind.WARNING, "device_sampler_ended"): lambda name, value, old: (
        f"devices are no longer sampled: {short(value)}"
    ),
}
