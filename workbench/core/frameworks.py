"""Training frameworks, as everything but a rank sees them: facts, found by entry point, that load no tensor library.

A framework is an entry point of the group ``dist_workbench.frameworks`` whose object is a ``Framework``. The module
that defines it imports neither the framework's library nor torch: the notebook and the command line load it to check
plans. What runs on ranks is named by dotted names (``"package.module:name"``) and loaded there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol

from workbench.core import registry
from workbench.core.shares import Shares
from workbench.errors import ConfigError, suggest

GROUP = "dist_workbench.frameworks"
#: the framework of a plan that names none
DEFAULT_FRAMEWORK = "colossal"
#: the framework of the plan of an observed loop: it is none that ``%dist_train`` could start
OBSERVED = "observed"


class Capability(StrEnum):
    """What a strategy may be able to do beside training; the value is how people call it."""

    NORMED = "the gradient's norm and clipping"
    WATCHABLE = "gradient statistics"
    CHECKPOINTABLE = "checkpoints"
    REPLAYABLE = "replay of a faulty step"
    PIPELINED = "pipeline stages"
    FREEZABLE = "freezing layers"
    EVALUATING = "evaluation"
    INSPECTABLE = "looking inside the model"


class Feature(StrEnum):
    """What else a person may ask of a plan; the value is how people call it."""

    CPU = "CPU ranks"
    GPU = "GPU ranks"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    ACCUMULATED = "gradient accumulation"
    COMPILED = "torch.compile"
    ADAPTED = "LoRA adapters"
    OWN_STEPS = "train_step"


#: of plugins that have only been run on CPU ranks so far
UNTRIED_ON_GPUS: Mapping[Feature, str] = MappingProxyType(
    {Feature.GPU: "written and tested with fakes, not yet run on a GPU (tests/gpu/RESULTS.md)"}
)
#: the capability that a control of a run (``workbench.core.controls``), or one value of it, needs; the others need none
NEEDED_BY_CONTROL: Mapping[str, Capability] = MappingProxyType(
    {
        "clip": Capability.NORMED,
        "grad_every": Capability.WATCHABLE,
        "grad_layers": Capability.WATCHABLE,
        "watch": Capability.INSPECTABLE,
        "watch_every": Capability.INSPECTABLE,
        "watch_layers": Capability.INSPECTABLE,
        "freeze": Capability.FREEZABLE,
        "unfreeze": Capability.FREEZABLE,
        "checkpoint": Capability.CHECKPOINTABLE,
        "stop checkpoint": Capability.CHECKPOINTABLE,
        "rollback": Capability.CHECKPOINTABLE,
        "branch": Capability.CHECKPOINTABLE,
        "evaluate": Capability.EVALUATING,
        "sample": Capability.EVALUATING,
    }
)


#: options of a plan that only some plugins take -> what they are for the others
PLUGIN_OPTIONS: Mapping[str, int | str] = MappingProxyType(
    {
        "tp": 1,
        "pp": 1,
        "cp": 1,
        "micro_batches": 1,
        "schedule": "1f1b",
        "replicate": 1,
        "no_reshard": False,
        "offload": False,
        "placement": "static",
        "sequence_parallel": "",
        "sync_batchnorm": False,
        "compile": False,
        "algorithm": "",
        "ds_config": "",
    }
)


#: options that are sizes over which one replica is spread
SPLIT = ("tp", "pp", "cp")
#: options of a plan -> what a plugin needs for them
_ASKED_BY_OPTION: Mapping[str, Capability | Feature] = MappingProxyType(
    {"pp": Capability.PIPELINED, "compile": Feature.COMPILED}
)


class PlanOptions(Protocol):
    """The part of a ``ParallelPlan`` that a framework checks and describes."""

    @property
    def ranks(self) -> int:
        """How many ranks train."""

    @property
    def framework(self) -> str:
        """Name of the framework."""

    @property
    def plugin(self) -> str:
        """Name of a plugin of the framework."""

    @property
    def tp(self) -> int:
        """Tensor parallel size."""

    @property
    def pp(self) -> int:
        """Pipeline stages."""

    @property
    def cp(self) -> int:
        """Ranks that share the positions of a sequence."""

    @property
    def micro_batches(self) -> int:
        """Pieces that a pipeline cuts a batch into."""

    @property
    def schedule(self) -> str:
        """The order of a pipeline's micro-batches."""

    @property
    def replicate(self) -> int:
        """Groups of data-parallel ranks that each hold all shards of the model."""

    @property
    def no_reshard(self) -> bool:
        """Whether parameters stay whole between the forward and the backward pass."""

    @property
    def offload(self) -> bool:
        """Whether the host's memory holds the optimizer's state."""

    @property
    def placement(self) -> str:
        """How chunks of weights are placed: "static", or "auto" by the memory that is free."""

    @property
    def sequence_parallel(self) -> str:
        """How tensor-parallel ranks share the positions of a sequence between split layers ("": each has all)."""

    @property
    def sync_batchnorm(self) -> bool:
        """Whether batch normalisation uses the statistics of the whole batch."""

    @property
    def compile(self) -> bool:
        """Whether ``torch.compile`` compiles the model before it is spread over the ranks."""

    @property
    def algorithm(self) -> str:
        """The communication algorithm, as ``workbench.core.algorithms`` reads it ("": none)."""

    @property
    def ds_config(self) -> str:
        """What DeepSpeed's configuration file says beside the options of the run, as JSON ("": nothing)."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a ``key`` of a configuration file says an option of the run is."""

    key: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """A framework's configuration file, read. ``name``: what messages call it. ``options``: those of the run that it
    states. ``rest``: what else the framework is given, as JSON ("": nothing), and ``passed`` the keys of that.
    ``others``: keys of which neither is made -> what becomes of them."""

    name: str
    options: Mapping[str, Stated]
    rest: str
    passed: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def words(self) -> str:
        """What becomes of each key, in a line."""
        stated = [f"{option.replace('_', ' ')} {each.value} ({each.key})" for option, each in self.options.items()]
        parts = [f"sets {', '.join(stated)}"] if stated else []
        parts += [f"gives the engine {', '.join(self.passed)}"] if self.passed else []
        parts += [f"{key} {text}" for key, text in self.others.items()]
        return f"{self.name} {'; '.join(parts) or 'says nothing'}"


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """The configuration file of a framework. ``option``: the option of the plan that names it. ``read`` takes its path,
    its text or its content, and the other options of the run, and raises ``ConfigError``. ``resolved``: the spec of a
    run -> its whole configuration, which is kept as ``file`` in the run directory."""

    option: str
    file: str
    read: Callable[[Any, Mapping[str, Any]], ReadConfig]
    resolved: Callable[[Any], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SplitModels:
    """Classes of one family of models (``title``) that ``tp``, ``pp`` and ``cp`` of a plugin split."""

    title: str
    tp: tuple[str, ...] = ()
    pp: tuple[str, ...] = ()
    cp: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One way in which a framework spreads a training over ranks.

    ``strategy``: dotted name of the class that trains (``workbench.engine.base.strategy.Strategy``). ``options``: those
    of ``PLUGIN_OPTIONS`` that it takes; the others keep their defaults.
    ``own_steps``: dotted name of the class that trains a cell with a ``train_step`` ("": this plugin cannot).
    ``capabilities``: what the strategy can do. ``lacks``: why it cannot do the others, one reason for each.
    ``refuses``: why it cannot have a feature; ``untried``: why nobody knows yet whether a feature works. It has those
    that are in neither. ``models``: those that ``tp``, ``pp`` and ``cp`` split. ``shares``: what its ranks hold and
    send, for the planner (None: it cannot predict the plugin). ``splits``: dotted name of a function of a workload,
    sizes of tp and sizes of pp that says, on a rank, how the plugin cuts the model
    (``workbench.planner.model.Splits``).
    """

    name: str
    summary: str
    strategy: str
    own_steps: str = ""
    options: frozenset[str] = frozenset()
    capabilities: frozenset[Capability]
    lacks: Mapping[Capability, str] = field(default_factory=lambda: MappingProxyType({}))
    refuses: Mapping[Feature, str] = field(default_factory=lambda: MappingProxyType({}))
    untried: Mapping[Feature, str] = field(default_factory=lambda: MappingProxyType({}))
    models: tuple[SplitModels, ...] = ()
    shares: Shares | None = None
    splits: str = ""

    def __post_init__(self) -> None:
        unexplained = set(Capability) - self.capabilities - set(self.lacks)
        if unexplained or self.capabilities & set(self.lacks):
            raise ValueError(
                f"plugin {self.name}: each capability is either in capabilities or, with a reason, in lacks; "
                f"wrong: {sorted(unexplained | self.capabilities & set(self.lacks))}"
            )

    def why_not(self, asked: Capability | Feature) -> str:
        """Why this plugin cannot do what is asked; "" where it can, or where it was not tried."""
        if isinstance(asked, Capability):
            return "" if asked in self.capabilities else self.lacks[asked]
        needs = "a step of the cell's own needs the whole model and its gradients on every rank"
        return self.refuses.get(asked, needs if asked is Feature.OWN_STEPS and not self.own_steps else "")


def _no_check(plan: PlanOptions) -> None:
    """The options need no check beyond the plugin's own."""


@dataclass(frozen=True, kw_only=True)
class Framework:
    """What a training framework brings.

    ``title``: its name in texts. ``plugins``: the first one is the default. ``preload``: dotted name of a function that
    imports, in a process that then forks or becomes ranks, what a rank needs. ``joined``: dotted name of the context
    manager that makes a process a rank (``workbench.engine.base.joined.Joined``). ``packages``: distributions whose
    versions belong into a run's record. ``library``: the module that its ranks import, where an environment may lack
    it, which the extra of the framework's name brings; ``size``: what an environment for it takes, in words.
    ``adopts``: dotted name of a function of what a cell defines and of the spec, which makes of these what the engine
    trains ("": cells define models of torch, as recipes do).
    ``joins_once``: a rank meets the others once in its life, so where one is replaced or added, all are started anew.
    ``config_file``: the library's own configuration file, where it has one. ``not_offered``: ways to train that
    its library has and that have no plugin here -> why, and what to use. ``check`` raises ``ConfigError`` for options
    that exclude each other.
    """

    name: str
    title: str
    plugins: tuple[Plugin, ...]
    preload: str
    joined: str
    packages: tuple[str, ...]
    library: str = ""
    size: str = ""
    adopts: str = ""
    joins_once: bool = False
    config_file: ConfigFile | None = None
    not_offered: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    check: Callable[[PlanOptions], None] = _no_check

    def plugin(self, name: str) -> Plugin:
        """The plugin of that name; ``ConfigError`` with the nearest name when there is none."""
        for plugin in self.plugins:
            if plugin.name == name:
                return plugin
        if name in self.not_offered:
            raise ConfigError(f"{name} is not available with {self.name}: {self.not_offered[name]}", field="--plugin")
        known = [plugin.name for plugin in self.plugins]
        others = [other for other in installed() if other != self.name and name in _plugin_names(other)]
        if others:
            raise ConfigError(
                f"--plugin {name} belongs to another framework: add --framework {others[0]} (known with --framework "
                f"{self.name}: {', '.join(known)})",
                field="--plugin",
            )
        raise ConfigError(f"unknown plugin {name!r}: {suggest(name, known)}", field="--plugin")

    def plugin_with(self, options: Collection[str]) -> Plugin:
        """The first plugin that takes all of these options; the default one where none does."""
        return next((plugin for plugin in self.plugins if plugin.options.issuperset(options)), self.plugins[0])

    def check_plan(self, plan: PlanOptions) -> None:
        """Refuse, with ``ConfigError``, a plan that the framework cannot train."""
        plugin = self.plugin(plan.plugin)
        given = {option: getattr(plan, option) for option in PLUGIN_OPTIONS}
        self._check_sizes({option: given[option] for option in SPLIT if given[option] > 1})
        for option, value in given.items():
            if value != PLUGIN_OPTIONS[option] and option not in plugin.options:
                flag = f"--{option.replace('_', '-')}"
                able = [other.name for other in self.plugins if option in other.options]
                shown = flag if value is True else f"{flag} {value}"
                needs = f"needs --plugin {' or '.join(able)}, not {plugin.name}"
                asked = _ASKED_BY_OPTION.get(option)
                reason = plugin.why_not(asked) if asked is not None else ""
                needs += f": {reason}" if reason else ""
                cannot = f"is not available with {self.name} {plugin.name}: leave it out, or choose another --framework"
                raise ConfigError(f"{shown} {needs if able else cannot}", field=flag)
        self.check(plan)

    def _check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Refuse sizes each of which some plugin takes, and that none takes together."""
        able = {size: [each.name for each in self.plugins if size in each.options] for size in sizes}
        if all(able.values()) and not any(each.options.issuperset(sizes) for each in self.plugins) and sizes:
            flags = [f"--{size} {number}" for size, number in sizes.items()]
            plugins = "; ".join(f"--{size}: {', '.join(names)}" for size, names in able.items())
            raise ConfigError(
                f"{' and '.join(flags)}: no plugin of {self.name} takes them together ({plugins}): leave out one of "
                "them",
                field=f"--{next(iter(sizes))}",
            )


def check_own_steps(name: str, plugin: str) -> None:
    """Refuse, with ``ConfigError``, a cell with a ``train_step`` under a plugin that cannot train it."""
    reason = framework(name).plugin(plugin).why_not(Feature.OWN_STEPS)
    if reason:
        able = [
            f"--framework {each.name} --plugin {found.name}"
            for each in usable()
            for found in each.plugins
            if found.own_steps
        ]
        raise ConfigError(
            f"train_step is not available with {name} {plugin} ({reason}): use {' or '.join(able)}",
            field="--plugin",
        )


def installed() -> list[str]:
    """Names of the frameworks that are installed, the default one first."""
    return sorted(registry.entries(GROUP), key=lambda name: (name != DEFAULT_FRAMEWORK, name))


def framework(name: str) -> Framework:
    """The framework of that name. ``ConfigError``: none is installed (with the nearest name), or it is broken."""
    found: Framework = registry.load(GROUP, name, what="framework", kind=Framework, field="--framework")
    return found


def framework_if_usable(name: str) -> Framework | None:
    """The framework of that name, or None where it is not installed or broken: what a run of it did can be shown."""
    try:
        return framework(name)
    except ConfigError:
        return None


def usable() -> list[Framework]:
    """All frameworks that are installed and not broken, the default one first."""
    return [found for found in map(framework_if_usable, installed()) if found is not None]


def _plugin_names(name: str) -> list[str]:
    found = framework_if_usable(name)
    return [plugin.name for plugin in found.plugins] if found is not None else []


def check_feature(name: str, plugin: str, feature: Feature, *, field: str) -> None:
    """Refuse, with ``ConfigError``, a feature that a plugin cannot have."""
    reason = why_unavailable(name, plugin, feature)
    if reason:
        able = [
            f"--framework {each.name} --plugin {found.name}"
            for each in usable()
            for found in each.plugins
            if not found.why_not(feature)
        ]
        raise ConfigError(f"{reason}: leave it out" + (f", or use {' or '.join(able)}" if able else ""), field=field)


def why_unavailable(name: str, plugin: str, asked: Capability | Feature) -> str:
    """Why a plan cannot do something: ``"checkpoints: not available with NAME PLUGIN (reason)"``; "" when it can, or
    when nothing is known about the framework."""
    found = framework_if_usable(name)
    known = next((each for each in found.plugins if each.name == plugin), None) if found is not None else None
    reason = "" if known is None else known.why_not(asked)
    return f"{asked.value}: not available with {name} {plugin} ({reason})" if reason else ""
