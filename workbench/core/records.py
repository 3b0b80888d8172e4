"""The vocabulary of a run: every typed record that crosses a process or a file.

A rank appends these to one Arrow table per record type (``TABLES``). ``docs/run-directory.md`` shows the same columns;
a test keeps them equal. Times are seconds since the epoch on the host that wrote them. Steps count from 1; step 0 means
"before the first step".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 2

#: names of a rank's last ``state`` event: nothing more comes from it
#: of a rank that failed while its run may still be restarted
RESTARTING = "restarting"
END_STATES = ("finished", "stopped", "failed")

#: rank number in records written by the session (the notebook's side), which is no rank
SESSION_RANK = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step as one rank saw it.

    ``loss`` is this rank's part of the loss: the mean over replicas is the loss of the global batch. Where all shares
    hold as many labels or samples, it is the mean over the share. NaN where the rank has none (a pipeline stage that is
    not the last). ``grad_sq`` is this rank's share of the squared L2 norm of the reduced gradient before clipping:
    the sum over all ranks is the squared global norm (each parameter element counted once). ``tokens`` is how many
    tokens (samples, where a model has no tokens) this rank's data-parallel replica consumed. ``skipped`` marks a step
    that the loss scaler dropped or that held a non-finite number. ``loss_scale`` is the fp16 scale in force (1 without
    one), ``clip`` the largest global norm in force (0: none), ``framework_norm`` the global norm that the framework
    itself computed (NaN where it computes none), ``monitor_ms`` what watching this step cost on this rank.
    """

    time: float
    step: int
    rank: int
    loss: float
    lr: float
    grad_sq: float
    tokens: int
    step_time_ms: float
    data_wait_ms: float
    skipped: bool = False
    loss_scale: float = 1.0
    clip: float = 0.0
    framework_norm: float = math.nan
    monitor_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """What a rank used at one moment. GPU columns are NaN without a GPU, and ``device`` says "cpu".

    ``cpu_percent`` is of one core (two busy threads: 200). Byte counters of network and disk are the host's network
    and this process' disk traffic since the rank started, so are ``gc_collections`` and ``gc_ms`` (pauses of Python's
    garbage collector). ``gpu_allocated_bytes``, ``gpu_reserved_bytes`` and ``gpu_peak_bytes`` are of torch's caching
    allocator, ``gpu_memory_bytes`` of the whole device. ``gpu_throttle`` is NVML's bit mask of the reasons why clocks
    are held down. PCIe figures are rates (bytes per second), NVLink figures counters since the rank started.
    """

    time: float
    rank: int
    step: int
    phase: str
    cpu_percent: float
    rss_bytes: int
    threads: int
    net_sent_bytes: int
    net_received_bytes: int
    disk_read_bytes: int
    disk_write_bytes: int
    device: str
    gpu_percent: float = math.nan
    gpu_memory_bytes: float = math.nan
    gpu_power_watts: float = math.nan
    shared_bytes: int = 0
    gc_collections: int = 0
    gc_ms: float = 0.0
    gpu_allocated_bytes: float = math.nan
    gpu_reserved_bytes: float = math.nan
    gpu_peak_bytes: float = math.nan
    gpu_temperature_c: float = math.nan
    gpu_clock_mhz: float = math.nan
    gpu_memory_clock_mhz: float = math.nan
    gpu_throttle: int = 0
    gpu_pcie_sent_bytes_per_s: float = math.nan
    gpu_pcie_received_bytes_per_s: float = math.nan
    gpu_nvlink_sent_bytes: float = math.nan
    gpu_nvlink_received_bytes: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientStats:
    """Sums over one rank's part of one layer's gradient: what a reader needs to combine shards exactly.

    ``scope`` is "local" (this data-parallel rank's own batch share, before reduction; loss scale removed) or "reduced"
    (averaged over data-parallel ranks, before clipping); "slice" is the local gradient over that slice of the elements
    which this rank has of the reduced one (ZeRO-2), for ``dot`` alone. ``layer`` is the qualified name of the module
    that owns the parameters in the user's own model ("" for parameters of the root). ``sharded`` names the mesh axes
    over which the elements counted here are split ("", "tp", "dp", "dp+tp"); along every other axis of the layer's
    ranks the same numbers are replicated. ``telemetry.gradients.combine`` turns rows into norm, max_abs, mean and more.
    ``sum``, ``sum_sq`` and ``max_abs`` are over finite elements. ``dot`` (scope "local") is the inner product with the
    reduced gradient over the same elements, NaN where it is not known; ``dot_kind`` says how it was had: "" (unknown),
    "exact", "sampled" (estimated from some coordinates), "slice" (over the rank's own slice only). ``underflow_count``
    counts the elements that are not zero but, with the loss scale still in them, smaller than the smallest normal
    number of the training's precision (2**-14 in fp16, 2**-126 otherwise). Where only the norm was taken, ``sum`` and
    ``max_abs`` are NaN and counts -1; a norm over non-finite elements is then not finite itself.
    """

    step: int
    rank: int
    layer: str
    scope: str
    sharded: str
    numel: int
    sum: float
    sum_sq: float
    max_abs: float
    zero_count: int
    nonfinite_count: int
    dot: float = math.nan
    dot_kind: str = ""
    underflow_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorms:
    """L2 norms of one rank's parts of all layers' gradients at one step, where no other statistics were taken.

    ``scope`` as in ``GradientStats``: "reduced" at every step, "local" at an interval. ``norms`` are in the order of
    the parts that this rank's event ``layers`` with the number ``layout`` lists.
    ``telemetry.layer_norms.expand`` makes rows of ``GradientStats`` of them.
    """

    step: int
    rank: int
    scope: str
    layout: int
    norms: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramStats:
    """How the magnitudes of one rank's part of a layer's gradient are spread.

    ``counts[i]`` elements have a magnitude in [2**(first_exponent + i), 2**(first_exponent + i + 1)); buckets are the
    same in every run. The bucket of 2**-127 (loss scale still in them) holds whatever is smaller as well. Zeros and
    non-finite elements are in ``zero_count`` and ``nonfinite_count``. With ``sampled``, ``counts`` and
    ``underflow_count`` are estimated from about 2,048 elements of each parameter; all other counts are exact. The rest
    as in ``GradientStats``.
    """

    step: int
    rank: int
    layer: str
    scope: str
    sharded: str
    first_exponent: int
    counts: list[int]
    zero_count: int
    nonfinite_count: int
    underflow_count: int
    sampled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientSketch:
    """Some elements of one rank's part of a layer's local gradient, at the same random places on every replica.

    ``values`` are multiplied so that the inner product of two replicas' sketches estimates that of their gradients:
    what pairwise similarity is computed from where it does not follow from norms. Only with four replicas and more.
    """

    step: int
    rank: int
    layer: str
    sharded: str
    values: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightStats:
    """Sums of squares over one rank's part of one layer after an optimizer step: its weights (the fp32 masters where
    there are such), their update (new minus old) and the optimizer's two moments (NaN where it has none). ``sharded``
    as in ``GradientStats``."""

    step: int
    rank: int
    layer: str
    sharded: str
    numel: int
    weight_sq: float
    update_sq: float
    moment1_sq: float
    moment2_sq: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationStats:
    """Sums over one rank's part of a module's output at one step, or of the gradient of that output.

    ``layer`` is the module's qualified name in the user's own model. ``what`` is "output", or "gradient": that of the
    loss of the *global* batch with respect to the output (loss scale removed), so that rows of all ranks add up.
    ``micro_batch`` counts from 0; -1 where the row is of the whole step. ``sharded``: "tp" where the elements are split
    over the tensor-parallel ranks, "" where each of them has all. The other columns as in ``GradientStats``, and
    ``overflow_count``: finite elements of at least 1/16 of the largest number of the training's precision (2**12 in
    fp16, 2**124 otherwise); like ``underflow_count`` with the loss scale still in them, and both estimated from about
    2,048 elements of each output where the interval is automatic. ``telemetry.inside.activations`` combines rows.
    """

    step: int
    rank: int
    layer: str
    what: str
    micro_batch: int
    sharded: str
    numel: int
    sum: float
    sum_sq: float
    max_abs: float
    zero_count: int
    nonfinite_count: int
    underflow_count: int
    overflow_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionStats:
    """Attention probabilities of some ``queries`` (at most 16 positions of each head and sample) of one rank's part.

    ``layer``: the module that computes the attention. ``entropy_sum``: of the queries' entropies in nats;
    ``uniform_sum``: what it would be if each query attended to all keys that its mask allows alike. ``max_logit``: the
    largest product of a query and a key, scaled, before the softmax. ``micro_batch`` and ``sharded`` (the heads) as in
    ``ActivationStats``.
    """

    step: int
    rank: int
    layer: str
    micro_batch: int
    sharded: str
    queries: int
    entropy_sum: float
    uniform_sum: float
    max_logit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStats:
    """What a router of experts chose for one rank's ``tokens``.

    ``load[i]`` of the tokens' choices fell on expert i (``top_k`` of each token); ``entropy_sum`` is that of the
    tokens' probabilities over the experts, in nats. ``layer``: the module that gives the router's logits.
    ``micro_batch`` as in ``ActivationStats``.
    """

    step: int
    rank: int
    layer: str
    micro_batch: int
    tokens: int
    top_k: int
    load: list[int]
    entropy_sum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectralStats:
    """Of the whole of one weight, as a matrix, after an optimizer step: the square of its Frobenius norm, and its
    largest singular value by a power iteration, which comes from below.

    ``layer``: the module that owns it, followed by the parameter's name unless that is "weight". A weight with more
    than two dimensions counts as a matrix of the first by all others. Ranks that hold parts of it log the same.
    """

    step: int
    rank: int
    layer: str
    weight_sq: float
    sigma_max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecord:
    """One phase of one step on one rank. ``start_ms`` counts from the beginning of the step on that rank.

    ``phase``: data, transfer (host to device), forward, backward, communication (exposed: compute waits for it),
    overlapped (communication that hides behind compute), optimizer, bubble (a pipeline stage waits), evaluate,
    checkpoint, paused, monitor. ``micro_batch`` counts from 0, -1 where the phase is of the whole step. A phase that is
    entered several times is one row, the start of the first and the duration of all; what waits (communication, bubble)
    is one per phase of work that it interrupts or follows. The timeline draws waiting within a phase after its work.
    """

    step: int
    rank: int
    phase: str
    micro_batch: int
    start_ms: float
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveRecord:
    """One collective, or one message between two ranks, as one rank saw it.

    ``kind``: all_reduce, reduce_scatter, all_gather, all_to_all, broadcast, send, recv, barrier ... ``group`` names the
    mesh axes it runs over ("dp", "tp", "pp", "world"), ``group_size`` its ranks. ``bytes``: the size of this rank's
    input (of its output for all_gather), as nccl-tests counts. ``duration_ms`` from its call until it was complete;
    ``exposed_ms`` of it the rank waited, ``post_ms`` of it the rank itself needed to hand it to the backend (NaN where
    that is not known). ``start_ms`` counts from the beginning of the step.
    """

    step: int
    rank: int
    kind: str
    group: str
    group_size: int
    bytes: int
    start_ms: float
    duration_ms: float
    exposed_ms: float
    post_ms: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRecord:
    """What the training script logged under one name in one step on one rank: ``log(name, value, reduce=...)``.

    ``value`` sums up the ``count`` calls of this step on this rank: their sum for ``reduce`` "sum", the largest for
    "max", the smallest for "min", their mean for "mean" and "none" (ranks are not combined). ``name`` begins with
    "eval/" where it was logged during the evaluation of that step. ``telemetry.logged.curves`` combines ranks.
    """

    step: int
    rank: int
    name: str
    reduce: str
    value: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaRecord:
    """An image or a text that the training script logged: ``log.image`` and ``log.text``.

    ``kind``: "image" (``file``: a PNG, its path relative to the run directory; ``width`` and ``height`` in pixels) or
    "text" (``text``). ``name`` as in ``ValueRecord``. Of many images of one name some files are removed again.
    """

    step: int
    rank: int
    name: str
    kind: str
    text: str = ""
    file: str = ""
    width: int = 0
    height: int = 0


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
    - ``checkpoint``: saved, failed, removed; best, value: ``name`` and ``value`` of what it is best at; restored,
      value: ``path``, and ``rows``: how many rows of each table this rank had logged by then, of which those of steps
      after ``step`` count no more; resumed_with, value: the settings of the resumed run that are not the checkpoint's
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


Record = (
    StepRecord
    | DeviceSample
    | GradientStats
    | LayerNorms
    | HistogramStats
    | GradientSketch
    | WeightStats
    | ActivationStats
    | AttentionStats
    | RouterStats
    | SpectralStats
    | PhaseRecord
    | CollectiveRecord
    | ValueRecord
    | MediaRecord
    | Event
)

#: table name (also the file's stem in a rank's directory) -> record type
TABLES: dict[str, type] = {
    "steps": StepRecord,
    "devices": DeviceSample,
    "gradients": GradientStats,
    "layer_norms": LayerNorms,
    "histograms": HistogramStats,
    "sketches": GradientSketch,
    "weights": WeightStats,
    "activations": ActivationStats,
    "attention": AttentionStats,
    "routers": RouterStats,
    "spectra": SpectralStats,
    "phases": PhaseRecord,
    "collectives": CollectiveRecord,
    "values": ValueRecord,
    "media": MediaRecord,
    "events": Event,
}

#: tables whose rows are of a step of training, which a rollback takes back
STEP_TABLES = tuple(table for table in TABLES if table not in ("devices", "events"))

_KINDS = {"float": "f8", "int": "i8", "str": "U", "bool": "?", "list[int]": "L", "list[float]": "F"}


def columns_of(table: str) -> dict[str, str]:
    """Column name -> kind ("f8", "i8", "U" text, "?" bool, "L" list of integers, "F" list of single floats) of a table,
    in file order."""
    return {f.name: _KINDS[str(f.type)] for f in fields(TABLES[table])}


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
