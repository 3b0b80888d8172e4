"""The configuration of a run: frozen, keyword-only dataclasses that check their values when they are made.

``TrainSpec`` holds all options of a run; its field ``plan`` says how the training is spread over ranks, ``monitor``
what is observed. A spec file has the same options in TOML, in the tables ``[plan]`` and ``[monitor]`` and at the top;
flags have the same names without tables. The ``spec.toml`` of a run directory adds the tables ``[versions]`` and
``[machine]`` for information; they are ignored when the file is read.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core import algorithms, network, plan_grammar
from workbench.core.frameworks import (
    DEFAULT_FRAMEWORK,
    NEEDED_BY_CONTROL,
    Capability,
    Feature,
    framework_if_usable,
    why_unavailable,
)
from workbench.core.mesh import Mesh
from workbench.core.rules import criteria
from workbench.core.rules.intervals import Every, check_interval
from workbench.core.rules.values import (
    check,
    check_known,
    check_least,
    check_own_types,
    check_precision,
    check_type,
)
from workbench.core.watches import parse_watch
from workbench.errors import ConfigError, SchemaError, suggest

SPEC_VERSION = 1
SPEC_FILE = "spec.toml"
PRECISIONS = ("fp32", "bf16", "fp16")
MONITOR_LEVELS = ("off", "light", "full")
ON_NONFINITE = ("stop", "skip", "go")
_INFORMATION = ("versions", "machine")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


#: keys of spec files and checkpoints of earlier versions -> their names now
_RENAMED = {"strategy": "framework"}


def check_types(options: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for an unknown option, or for a value of the wrong type."""
    for name, value in options.items():
        table = _TABLES.get(_group_of(name), TrainSpec)
        check_type(next(item for item in dataclasses.fields(table) if item.name == name), value)


@dataclass(frozen=True, kw_only=True)
class ParallelPlan:
    """How one training is spread over ``ranks`` ranks.

    ``framework``: the name of an entry point of the group ``dist_workbench.frameworks``. ``plugin``: one of the
    framework's plugins; for Colossal-AI ``ddp``, ``zero1``, ``zero2``, ``gemini`` (data parallel) or ``hybrid`` (``tp``
    tensor parallel times ``pp`` pipeline stages times data parallel, over ``micro_batches`` in the order of
    ``schedule``); ``zero1`` takes these sizes too, ``zero2`` ``tp``.
    ``cp``: context-parallel ranks share the positions of each sequence.
    ``sync_batchnorm``: batch normalisation uses the statistics of the whole batch, not of each rank's share.
    ``compile``: ``torch.compile`` compiles the model.
    ``replicate``: the data-parallel ranks form this many groups, each of which holds all shards of the model.
    ``sequence_parallel``: how tensor-parallel ranks share the positions of a sequence between split layers.
    ``no_reshard``: parameters that were gathered for the forward pass are kept for the backward pass.
    ``offload``: the host's memory holds the optimizer's state (under fsdp the shards of the weights too).
    ``placement``: how Gemini places chunks of weights, "static" or "auto".
    ``algorithm``: the communication algorithm, such as ``topk:0.01+ef`` ("": an all-reduce in fp32).
    ``ds_config``: what DeepSpeed's configuration file says beside the options of the run, as JSON.

    An installed framework checks the plan. A plan for a framework that is not installed can still be made, so that its
    runs can be shown on any machine; ``workbench.core.frameworks.framework`` raises an error when it is to train. So
    can one with an algorithm that is not installed.
    Raises ``ConfigError`` for values that cannot work.
    """

    ranks: int = 1
    framework: str = DEFAULT_FRAMEWORK
    plugin: str = "ddp"
    tp: int = 1
    pp: int = 1
    cp: int = 1
    micro_batches: int = 1
    schedule: str = "1f1b"
    replicate: int = 1
    no_reshard: bool = False
    offload: bool = False
    placement: str = "static"
    sequence_parallel: str = ""
    sync_batchnorm: bool = False
    compile: bool = False
    algorithm: str = ""
    ds_config: str = ""

    def __post_init__(self) -> None:
        check_own_types(self)
        if self.algorithm:
            object.__setattr__(self, "algorithm", algorithms.normal(self.algorithm))
        for name in ("ranks", "tp", "pp", "cp", "micro_batches", "replicate"):
            check_least(self, name, 1)
        known = framework_if_usable(self.framework)
        if known is not None:
            known.check_plan(self)
        check(
            self.ranks % self.replica_size == 0,
            "--cp" if self.cp > 1 else "--tp",
            f"tp*pp*cp = {self.replica_size} does not divide {self.ranks} ranks: "
            f"use -n {self.replica_size} (or a multiple), or change --tp, --pp and --cp",
        )
        check(
            self.mesh.dp % self.replicate == 0,
            "--replicate",
            f"--replicate {self.replicate} does not divide the {self.mesh.dp} data-parallel ranks: use a divisor of "
            f"{self.mesh.dp}, or change -n",
        )

    @classmethod
    def parse(cls, text: str) -> ParallelPlan:
        """Make a plan from its words, ``"fsdp2 tp2"`` (``workbench.core.plan_grammar``); without a size, for one rank.

        Raises ``ConfigError`` for a text that is no plan, and for a plan that cannot work.
        """
        return cls(**plan_grammar.completed(plan_grammar.expanded({"plan": text})))

    @classmethod
    def recorded(cls, options: Mapping[str, Any]) -> ParallelPlan:
        """Make a plan from the options stored in a checkpoint of this or an earlier version."""
        return cls(**{_RENAMED.get(name, name): value for name, value in options.items()})

    @property
    def mesh(self) -> Mesh:
        """The mesh of the ranks: the data-parallel size is ``ranks // (tp * pp * cp)``."""
        return Mesh(dp=self.ranks // self.replica_size, pp=self.pp, tp=self.tp, cp=self.cp)

    @property
    def replica_size(self) -> int:
        """How many ranks hold one data-parallel replica."""
        return self.tp * self.pp * self.cp

    def describe(self) -> str:
        """The plan's words, such as ``"tp2 pp2"``, ``"zero2 dp2"`` or ``"torch ddp2"``, which ``parse`` reads."""
        return plan_grammar.described(self)

    def why_unavailable(self, asked: Capability | Feature) -> str:
        """Why this plan cannot do something, in words; "" when it can."""
        return why_unavailable(self.framework, self.plugin, asked)

    def why_control_unavailable(self, control: str) -> str:
        """Why a control, or one value of it ("stop checkpoint"), cannot be used in a run of this plan; "" when
        it can."""
        needed = NEEDED_BY_CONTROL.get(control)
        return "" if needed is None else self.why_unavailable(needed)


@dataclass(frozen=True, kw_only=True)
class MonitorSpec:
    """What the monitor observes, and how much time it may take.

    ``level``: "off" (step records only), "light" (norms, phases, device samples) or "full" (all statistics).
    ``grad_every``: steps between gradient statistics; 0: never; None: the governor chooses the interval so that the
    monitor takes at most the share ``budget`` of the step time (0.01 is 1 %). ``grad_layers``: a regular expression;
    statistics cover only layers whose qualified name it matches (``re.search``). ``watch``: what is recorded inside the
    model, names of ``core.watches.WATCHES`` separated by commas ("": nothing), at the first step and every
    ``watch_every`` steps (None: within the budget), of modules whose names ``watch_layers`` matches. ``sample_hz``:
    device samples per second. ``on_nonfinite``: the response to a non-finite loss or gradient: "stop" the run, "skip"
    the step on all ranks, or "go" on. ``notify``: what is told of each alert: a command line, which gets it as JSON on
    its standard input, or ``module:function``. Raises ``ConfigError`` for values that cannot work.
    """

    level: str = "full"
    grad_every: int | None = None
    grad_layers: str = ""
    watch: str = ""
    watch_every: int | None = None
    watch_layers: str = ""
    budget: float = 0.01
    sample_hz: float = 2.0
    on_nonfinite: str = "stop"
    notify: str = ""

    def __post_init__(self) -> None:
        check_own_types(self)
        check_known(self.level, MONITOR_LEVELS, "--monitor")
        check(
            self.grad_every is None or self.grad_every >= 0,
            "--grad-every",
            f"--grad-every must be a whole number of steps (0: never), not {self.grad_every!r}",
        )
        object.__setattr__(self, "watch", parse_watch(self.watch))
        check(
            self.watch_every is None or self.watch_every >= 1,
            "--watch-every",
            f"--watch-every must be a whole number of steps of at least 1, not {self.watch_every!r}",
        )
        for flag, pattern in (("--grad-layers", self.grad_layers), ("--watch-layers", self.watch_layers)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"{flag} {pattern!r} is not a valid regular expression: {error}", field=flag
                ) from error
        check(
            not self.watch or self.level != "off",
            "--watch",
            f"--watch {self.watch} needs the monitor: leave out --monitor off",
        )
        check(0 < self.budget <= 1, "--monitor-budget", f"--monitor-budget must be in (0, 100 %], not {self.budget!r}")
        check(0 < self.sample_hz <= 20, "sample_hz", f"sample_hz must be in (0, 20], not {self.sample_hz!r}")
        check_known(self.on_nonfinite, ON_NONFINITE, "--on-nonfinite")


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """One training run.

    ``recipe``: the name of a recipe; "" when a cell defines the model.
    ``model``, ``data``, ``seq_len``, ``lora_rank``: options of recipes that take them, such as ``causal-lm``: a local
    directory or configuration, data files separated by commas, tokens of a sequence (0: the recipe's choice), and the
    rank of LoRA adapters (0: all weights are trained).
    ``batch_size``: the global batch size, in samples per optimizer step over all ranks (0: the cell's dataloader has
    its own). Each data-parallel rank splits its contiguous share into ``accumulate`` gradient accumulation steps, and a
    pipeline splits each of them into ``plan.micro_batches``.
    ``lr``: the learning rate; None: the recipe's default, or that of the optimizer that the cell defines.
    ``clip``: the largest global L2 norm of the gradient (0: no clipping).
    ``steps`` and ``epochs``: the training ends with whichever comes first (0: that one sets no end).
    ``eval_every``: steps between evaluations, or epochs ("1ep"), with one more at the end (0: no evaluation).
    ``save_every``: likewise between checkpoints (0: only on request), of which the newest ``keep`` are kept (0: all).
    ``save_best``: the value of the validation whose best checkpoint is kept; ``stop_when``: when to end before the last
    step; both as ``core.rules.criteria`` describes ("": off).
    ``final_checkpoint``: whether a run that ends, or is stopped, writes a checkpoint of its last step.
    ``max_restarts``: how often ranks that failed or died are replaced, to go on from the newest checkpoint (0: never),
    or from a copy of the state in memory, which is made every ``snapshot_every`` steps (0: none).
    ``network``: what is emulated around the collectives of ``ddp``, as ``core.network`` reads it ("": nothing).
    ``resume``: ``RUN`` or ``RUN@step``, the checkpoint to continue from, or ``dcp:DIR``.
    Raises ``ConfigError`` for values that cannot work.
    """

    recipe: str = ""
    size: str = ""
    model: str = ""
    data: str = ""
    seq_len: int = 0
    lora_rank: int = 0
    name: str = "run"
    plan: ParallelPlan = field(default_factory=ParallelPlan)
    steps: int = 100
    epochs: int = 0
    batch_size: int = 8
    lr: float | None = None
    precision: str = "fp32"
    seed: int = 1024
    accumulate: int = 1
    clip: float = 0.0
    shuffle: bool = False
    eval_every: Every = 50
    save_every: Every = 0
    save_best: str = ""
    stop_when: str = ""
    keep: int = 0
    final_checkpoint: bool = True
    max_restarts: int = 0
    snapshot_every: int = 0
    network: str = ""
    resume: str = ""
    monitor: MonitorSpec = field(default_factory=MonitorSpec)

    def __post_init__(self) -> None:
        check_own_types(self)
        for name, least in (
            ("steps", 0 if self.epochs > 0 else 1),
            ("epochs", 0),
            ("batch_size", 0),
            ("accumulate", 1),
            ("keep", 0),
            ("max_restarts", 0),
            ("snapshot_every", 0),
            ("seed", 0),
            ("seq_len", 0),
            ("lora_rank", 0),
        ):
            check_least(self, name, least)
        check_interval(self.eval_every, "--eval-every")
        check_interval(self.save_every, "--save-every")
        keeps = "--snapshot-every keeps state for restarts, and none are allowed: add --max-restarts 3"
        check(not self.snapshot_every or self.max_restarts > 0, "--snapshot-every", keeps)
        criteria.check(self.save_best, self.stop_when, evaluates=bool(self.eval_every))
        check(self.seed < 2**32, "--seed", f"--seed must be below 2**32, not {self.seed}")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            check(
                value is None or 0 <= value < float("inf"),
                f"--{name}",
                f"--{name} must be a finite number of at least 0, not {value!r}",
            )
        check_precision(self.precision, PRECISIONS)
        object.__setattr__(self, "network", network.normal(self.network))
        check(
            bool(_NAME.fullmatch(self.name)),
            "--name",
            f"--name {self.name!r} is not a valid name: use letters, digits, '.', '_' and '-', start with a letter or "
            "digit, and use 64 characters at most",
        )
        parts = self.plan.mesh.dp * self.accumulate * self.plan.micro_batches
        check(
            self.batch_size % parts == 0,
            "--batch-size",
            f"--batch-size {self.batch_size} cannot be split into dp {self.plan.mesh.dp} x accumulate "
            f"{self.accumulate} x micro-batches {self.plan.micro_batches} = {parts} equal parts: "
            f"use {max(1, round(self.batch_size / parts)) * parts}",
        )

    @property
    def pieces(self) -> int:
        """Pieces of a global batch whose losses are computed apart: replicas x accumulation steps x micro-batches."""
        return self.plan.mesh.dp * self.accumulate * (self.plan.micro_batches if self.plan.pp > 1 else 1)

    def replace(self, **changes: Any) -> TrainSpec:
        """Return a copy with changed options, named without tables (``tp``, ``lr``, ``grad_every`` ...)."""
        return TrainSpec.from_options({**self.options(), **changes})

    def options(self) -> dict[str, Any]:
        """All options, those of ``plan`` and ``monitor`` included: name -> value."""
        flat: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            grouped = isinstance(value, (ParallelPlan, MonitorSpec))
            flat.update(dataclasses.asdict(value) if grouped else {item.name: value})
        return flat

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> TrainSpec:
        """Make a spec from ``options``, the inverse of ``options()``.

        Raises ``ConfigError``, which suggests the nearest name, for an unknown option.
        """
        groups: dict[str, dict[str, Any]] = {"plan": {}, "monitor": {}, "": {}}
        for key, value in options.items():
            groups[_group_of(key)][key] = value
        return cls(plan=ParallelPlan(**groups["plan"]), monitor=MonitorSpec(**groups["monitor"]), **groups[""])

    def to_toml(self) -> dict[str, Any]:
        """The content of a spec file as nested tables; options that are None are left out."""
        return {"spec_version": SPEC_VERSION, **_without_none(dataclasses.asdict(self))}


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """Remove options that are None: TOML has no null, and an absent option takes its default."""
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None
    }


_TABLES: dict[str, type] = {"plan": ParallelPlan, "monitor": MonitorSpec}


#: option -> the table of a spec file that it belongs in; "": the top of the file
_GROUPS = {
    item.name: table
    for table, kind in {"": TrainSpec, **_TABLES}.items()
    for item in dataclasses.fields(kind)
    if item.name not in _TABLES
}


def _group_of(key: str) -> str:
    if key in _GROUPS:
        return _GROUPS[key]
    if key in _TABLES:
        words = " (or plan = 'zero2' at the top of the file)" if key == "plan" else ""
        raise ConfigError(f"{key} is a table: write [{key}] and its options below it{words}", field=key)
    raise ConfigError(f"unknown option {key!r}: {suggest(key, _GROUPS)}", field=key)


def read_spec_options(path: str | Path) -> dict[str, Any]:
    """Read the options that a spec file contains, without their tables: name -> value.

    Raises ``ConfigError`` for a missing file, invalid TOML, an unknown key or a key in the wrong table, and
    ``SchemaError`` for a spec of a newer version.
    """
    path = Path(path).expanduser()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the spec {path}: {error.strerror}", field="--config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", field="--config") from error
    version = data.pop("spec_version", SPEC_VERSION)
    if not isinstance(version, int) or version > SPEC_VERSION:
        raise SchemaError(
            f"{path} has spec_version {version!r}, but this version reads up to {SPEC_VERSION}: update dist-workbench"
        )
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if key in _INFORMATION:
            continue
        if key == "plan" and isinstance(value, str):  # its words; what they stand for depends on flags beside them
            flat[key] = value
            continue
        entries = value if isinstance(value, dict) else {key: value}
        table = key if isinstance(value, dict) else ""
        if table and table not in _TABLES:
            raise ConfigError(
                f"{path}: unknown table [{table}]: {suggest(table, [*_TABLES, *_INFORMATION])}", field=table
            )
        for key_in_file, entry in entries.items():
            name = _RENAMED.get(key_in_file, key_in_file) if table == "plan" else key_in_file
            group = _group_of(name)
            if group != table:
                place = f"table [{group}]" if group else "the top of the file"
                raise ConfigError(f"{path}: key {name!r} belongs in {place}", field=name)
            flat[name] = entry
    return flat
