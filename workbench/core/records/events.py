"""What happened in a run, and what people asked of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: of tables and of lines of ``control.jsonl``
SCHEMA_VERSION = 2

#: name of the ``state`` event of a rank that failed while its run may still be restarted
RESTARTING = "restarting"
#: names of a rank's last ``state`` event: nothing more comes from it
END_STATES = ("finished", "stopped", "failed")

#: rank number in records written by the session (the notebook's side), which is no rank
SESSION_RANK = -1


class EventKind(StrEnum):
    """What an event is about: see ``Event``."""

    STATE = "state"
    CONTROL = "control"
    REFUSED = "refused"
    SETTINGS = "settings"
    VALIDATION = "validation"
    SAMPLE = "sample"
    WARNING = "warning"
    LOG = "log"
    RANK = "rank"
    DATA = "data"
    NONFINITE = "nonfinite"
    SPIKE = "spike"
    ALERT = "alert"
    MONITOR = "monitor"
    LAYERS = "layers"
    LOSS_SCALE = "loss_scale"
    CHECKPOINT = "checkpoint"
    GPU = "gpu"
    PEAK = "peak"
    VERIFY = "verify"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. ``value`` and ``old_value`` are JSON texts (a number, a string, a matrix).

    Kinds, and what their names and values are:

    - ``state``: starting, running, paused, finished (value: why before the last step), stopped, failed
    - ``control``: what was done or set, ``who``: who asked for it, ``step``: after which it took effect; ``declared``:
      a knob of the training script, value: its declaration and ``value``
    - ``refused``: a command that could not be applied; value: why. Of this and of ``control``, ``command`` is the
      ``id`` of the line of ``control.jsonl`` that is answered
    - ``settings``: in_force; value: settings, knobs and ``frozen`` layers as they are at the begin and after a
      rollback, from rank 0
    - ``validation``: loss, accuracy, bits_per_byte, confusion_matrix, or any other name of a metric
    - ``sample``: text
    - ``warning``: any name; value: its text
    - ``log``: dropped, value: how many records did not fit; failed, value: why nothing is logged any more
    - ``rank``: died; stalled, value: ``cause``, ``sentence``, ``missing`` and ``waiting`` ranks, ``advice``; moving,
      value: seconds since it was told that they had stalled
    - ``data``: batch; value: ``samples`` of a global batch, and the ``unit`` that throughput counts, "tokens" or
      "samples"; epochs, where a training that counts them begins, and epoch, at each end of one; value: ``epochs`` to
      train, ``steps_per_epoch``, ``done``, the last ``steps`` and ``end_of_epochs``
    - ``nonfinite``: loss, gradient; value: what was found
    - ``spike``: loss, grad_norm; value: ``value``, the ``usual`` median before it, and ``score``, robust standard
      deviations between, from rank 0
    - ``alert``: the rule, or the user's own name; value: the fields of ``events.alerts.Alert``; from rank 0, with the
      step and the time that it is about
    - ``monitor``: interval, steps between full sets of gradient statistics; cost, share of the time so far
    - ``layers``: norms; value: ``layout``, its number, and ``parts``, the layer, ``sharded`` and number of elements of
      each norm of a row of ``LayerNorms``
    - ``loss_scale``: changed
    - ``checkpoint``: saved, failed, removed; snapshot, of the copies in memory; value: made ``every`` so many steps,
      ``bytes`` of one, and ``ms`` that making one takes, from rank 0; best, value: ``name`` and ``value`` of what it is
      best at; restored, value: ``path``, and ``rows``: how many rows of each table this rank had logged by then, of
      which those of steps after ``step`` count no more; resumed_with, value: the settings of the resumed run that are
      not the checkpoint's; without_base, value: ``bytes`` of a checkpoint, ``base_bytes`` of the frozen weights that it
      does not hold, and the ``directory`` that has them
    - ``gpu``: lost
    - ``peak``: flops; value: what the device can do per second, and how that is known; model; value: its parameters,
      and the floating point operations that training takes per token; held, at the second step; value: bytes of this
      rank's ``parameters`` and ``optimizer_state``, and by how many its memory has ``grown`` at most since the first
    """

    time: float
    step: int
    rank: int
    kind: str
    name: str
    value: str = "null"
    old_value: str = "null"
    who: str = ""
    command: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One line of ``control.jsonl``: what a person asked, when, and who. Rank 0 reads it; all ranks apply it.

    ``id`` is another for every line, whoever writes it: events that answer it have it as their ``command``.
    """

    time: float
    name: str
    value: Any = None
    who: str = ""
    id: int = 0

    def to_line(self) -> str:
        """One JSON line, newline included; one ``write`` of it is atomic for the reader."""
        record = {"v": SCHEMA_VERSION, "id": self.id, "time": self.time, "name": self.name, "value": self.value}
        return json.dumps({**record, "who": self.who}, allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Command:
        """Parse one line; ``ValueError`` for another schema version or a line that is no command."""
        data = json.loads(line)
        if not isinstance(data, dict) or data.pop("v", None) != SCHEMA_VERSION or "name" not in data:
            raise ValueError(f"not a command of schema version {SCHEMA_VERSION}: {line[:80]!r}")
        return cls(**data)
