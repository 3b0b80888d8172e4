"""One grammar for parallel plans: ``"fsdp2 tp2"`` in flags, spec files, Python and everything that is shown.

A plan is words, in any order, separated by spaces or commas::

    plan      = { word }
    word      = framework | plugin [ SIZE ] [ ":" algorithm ] | axis SIZE | "mb" COUNT | "replicate" COUNT | switch
    axis      = "dp" | "tp" | "pp" | "cp"
    switch    = "gpipe" | "interleaved" | "zero-bubble" | "sync-batchnorm" | "no-reshard" | "offload"
              | "auto-placement" | "split-gather" | "ring" | "compile"
    algorithm = NAME [ ":" NUMBER ] [ "+ef" ]

A size behind a plugin is its data-parallel size: ``ddp2`` is ``ddp dp2``. A plugin whose own name ends in a digit takes
none: ``zero2`` is ZeRO stage 2, and ``zero2 dp4`` that on 4 ranks. Without a framework, that of the plugin is meant;
without a plugin, the first that takes the sizes. Sizes that are written give the number of ranks; ``zero2`` alone
leaves it to ``-n``. Capital letters count as small ones.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from workbench.core import algorithms
from workbench.core.frameworks import (
    DEFAULT_FRAMEWORK,
    PLUGIN_OPTIONS,
    SPLIT,
    Framework,
    PlanOptions,
    ReadConfig,
    framework,
    framework_if_usable,
    installed,
    usable,
)
from workbench.core.rules.values import flag_of
from workbench.errors import ConfigError, suggest

#: words with a number -> the option that it sets ("dp" is none: it gives the number of ranks)
COUNTS: Mapping[str, str] = MappingProxyType(
    {"dp": "dp", "tp": "tp", "pp": "pp", "cp": "cp", "mb": "micro_batches", "replicate": "replicate"}
)
#: words without a number -> the option that they set, and its value
SWITCHES: Mapping[str, tuple[str, Any]] = MappingProxyType(
    {
        "gpipe": ("schedule", "gpipe"),
        "interleaved": ("schedule", "interleaved"),
        "zero-bubble": ("schedule", "zero-bubble"),
        "sync-batchnorm": ("sync_batchnorm", True),
        "no-reshard": ("no_reshard", True),
        "offload": ("offload", True),
        "auto-placement": ("placement", "auto"),
        "split-gather": ("sequence_parallel", "split_gather"),
        "ring": ("sequence_parallel", "ring"),
        "compile": ("compile", True),
    }
)
#: words of other libraries and of papers, without their number -> what to write here, or why there is none
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "ep": (
            "expert parallelism puts the experts of a layer on different data-parallel ranks, an axis that plans here "
            "do not have: every rank computes its share of all experts with tp2, pp2, 'zero1 dp2 tp2' or 'fsdp2 tp2'"
        ),
        "zero": (
            "write zero1 or zero2; ZeRO-3, which splits the weights too, is zero3 (DeepSpeed), fsdp2 (torch) or "
            "gemini2 (Colossal-AI)"
        ),
        "zero0": "ZeRO-0 splits nothing: write ddp2, or tp2 or pp2 without a plugin",
        "hsdp": "hybrid sharding is fsdp4 replicate2: groups of ranks that each hold all shards",
        "sp": (
            "sequence parallelism shares positions over the tensor-parallel ranks: write 'tp2 split-gather' or "
            "'tp2 ring'"
        ),
        "all-to-all": (
            "Colossal-AI gives it ranks beside those of tp, an axis that plans here do not have: write "
            "'tp2 split-gather'"
        ),
        "ring-attn": (
            "Colossal-AI's ring attention needs flash_attn, which runs on GPUs only, and its gradients in fp32 "
            "overwrite each other: write 'tp2 ring'"
        ),
        "1f1b": "1F1B is the schedule of a pipeline that names none: leave it out",
        "zbv": "Colossal-AI's zero-bubble schedule loses gradients: write 'torch pp2 zero-bubble'",
        "dualpipe": "there is no such schedule: write 'torch pp2 zero-bubble'",
        "vpp": "virtual stages are the schedule interleaved: write 'pp2 interleaved'",
        "lora": "the cell declares adapters: lora = LoraConfig(...)",
        "gradient-checkpointing": (
            "the cell asks its model: model.gradient_checkpointing_enable(), under all schedules but zero-bubble"
        ),
        "observed": "%dist_train starts no loop of another library: call workbench.observe(model, optimizer) in it",
        **{name: f"precision is no part of a plan: pass --precision {name}" for name in ("fp32", "bf16", "fp16")},
        "fp8": "no plan trains in fp8: pass --precision bf16",
    }
)
#: other spellings of these words
_SPELT = {
    "ulysses": "all-to-all",
    "ring-attention": "ring-attn",
    "zero-bubble-v": "zbv",
    "interleaved-1f1b": "vpp",
    "checkpointing": "gradient-checkpointing",
    "ac": "gradient-checkpointing",
    "accelerate": "observed",
    "lightning": "observed",
}
#: all options that a plan stands for
OPTIONS = ("ranks", "framework", "plugin", *PLUGIN_OPTIONS)
_FIELD = "--plan"


def read(text: str, *, chosen: str = "") -> dict[str, Any]:
    """The options that a plan's words set, and no others; ``dp`` is among them where it is written.

    ``chosen``: a framework that was chosen elsewhere, of which plugins are then. Raises ``ConfigError``, with the
    nearest word, for a word that is none, for a word that is there twice, and for a plugin of another framework.
    """
    if not isinstance(text, str) or not _words(text):
        raise ConfigError(
            f"--plan {text!r} is not a plan: write words such as 'ddp2', 'zero2' or 'tp2 pp2'", field=_FIELD
        )
    found: dict[str, Any] = {}
    for word in _words(text):
        for option, value in _meaning(word, text).items():
            if option in found:
                one = f"{found[option]!r} or " if option == "plugin" and found[option] != value else ""
                raise ConfigError(
                    f"--plan {text!r} sets {_called(option)} twice: leave out {one}{word!r}", field=_FIELD
                )
            found[option] = value
    written = found.get("framework", chosen)
    if "plugin" in found and not written:
        found["framework"] = _framework_with(found["plugin"])
    elif "plugin" in found:
        framework(written).plugin(found["plugin"])  # refuses one of another framework
    return found


def expanded(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with those that ``options["plan"]`` stands for in its place, and those that the configuration file of
    a framework states; options that are None are left out.

    Raises ``ConfigError`` for a plan, and for a file, that another option contradicts.
    """
    found = _with_words(options)
    for config in _configs(found):
        found.setdefault("framework", config.framework)
        for option, stated in config.read.options.items():
            if found.setdefault(option, stated.value) != stated.value:
                flag = flag_of(option)
                raise ConfigError(
                    f"{config.read.name} says {stated.key} ({_shown(option, stated.value)}), and {flag} says "
                    f"{found[option]}: leave out one of them",
                    field=flag,
                )
        found[config.option] = config.read.rest
    return found


@dataclass(frozen=True, kw_only=True)
class _GivenConfig:
    """The configuration file that ``option`` names, of ``framework``."""

    framework: str
    option: str
    read: ReadConfig


def files(options: Mapping[str, Any]) -> list[ReadConfig]:
    """The configuration files that options of a run name. Raises as ``expanded``."""
    return [config.read for config in _configs(_with_words(options))]


def _configs(given: Mapping[str, Any]) -> list[_GivenConfig]:
    return [
        _GivenConfig(framework=each.name, option=file.option, read=file.read(given[file.option], given))
        for each in usable()
        if (file := each.config_file) is not None and given.get(file.option)
        if given.get("framework", each.name) == each.name
    ]


def _shown(option: str, value: Any) -> str:
    """``--clip 1.0``; ``--offload`` of a switch."""
    return f"{flag_of(option)} {value}" if not isinstance(value, bool) else f"{'' if value else 'no '}{flag_of(option)}"


def _with_words(options: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None}
    text = given.pop("plan", None)
    named = [each.name for each in usable() if each.config_file is not None and given.get(each.config_file.option)]
    if isinstance(given.get("ds_config"), Mapping):
        given["ds_config"] = json.dumps(given["ds_config"])
    if text is None:
        return given
    written = read(text, chosen=given.get("framework", "".join(named[:1])))
    for option, value in written.items():
        if option in given and given[option] != value:
            flag = f"--{option.replace('_', '-')}"
            raise ConfigError(
                f"--plan {text!r} says {_called(option)} {value}, and {flag} says {given[option]}: "
                "leave out one of them",
                field=flag,
            )
    dp = written.pop("dp", None)
    found = {**given, **written}
    block, product = replica_size(found), "*".join(_sizes(found)) or "tp*pp"
    if dp is not None and given.get("ranks", dp * block) != dp * block:
        raise ConfigError(
            f"--plan {text!r} is for {dp * block} ranks (dp {dp} x {product} {block}), and -n says {given['ranks']}: "
            "leave out -n, or the data-parallel size of the plan",
            field="--nproc-per-node",
        )
    if dp is not None or any(option in written for option in SPLIT):
        found.setdefault("ranks", (dp or 1) * block)
    return found


def replica_size(options: Mapping[str, Any]) -> int:
    """How many ranks hold one data-parallel replica under a plan with these options."""
    return math.prod(max(1, int(options.get(option, 1))) for option in SPLIT)


def _sizes(options: Mapping[str, Any]) -> list[str]:
    return [option for option in SPLIT if options.get(option, 1) > 1]


def completed(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with the defaults that follow from others: the plugin, and the micro-batches of a pipeline."""
    found = dict(options)
    if "plugin" not in found:
        sizes = _sizes(found)
        found.setdefault("framework", _framework_that_takes(sizes))
        found["plugin"] = framework(found["framework"]).plugin_with(sizes).name
    if found.get("pp", 1) > 1:
        found.setdefault("micro_batches", found["pp"])
    return found


def described(plan: PlanOptions) -> str:
    """The words of a plan, its data-parallel size included: ``"zero2 dp2"``, ``"tp2 pp2"``, ``"torch ddp2"``.

    Of an installed framework, they are read back as the same plan, but for the configuration file of a framework.
    """
    dp = plan.ranks // (plan.tp * plan.pp * plan.cp)
    sizes = [f"{axis}{getattr(plan, axis)}" for axis in SPLIT if getattr(plan, axis) > 1]
    words = []
    if not (sizes and _is_implied(plan)):
        if plan.framework != _framework_with(plan.plugin, missing=DEFAULT_FRAMEWORK):
            words.append(plan.framework)
        words.append(plan.plugin)
    if dp > 1 or not sizes:
        if words and not words[-1][-1].isdigit():
            words[-1] += str(dp)
        else:
            words.append(f"dp{dp}")
    if plan.algorithm:
        words[0 if words[0] != plan.framework else 1] += f":{plan.algorithm}"
    words += sizes
    if plan.micro_batches != (plan.pp if plan.pp > 1 else 1):
        words.append(f"mb{plan.micro_batches}")
    if plan.replicate != 1:
        words.append(f"replicate{plan.replicate}")
    words += [word for word, (option, value) in SWITCHES.items() if getattr(plan, option) == value]
    return " ".join(words)


def _is_implied(plan: PlanOptions) -> bool:
    """Whether the default framework takes this plugin for the plan's sizes."""
    known = framework_if_usable(plan.framework)
    if known is None or plan.framework != DEFAULT_FRAMEWORK:
        return False
    return known.plugin_with([option for option in SPLIT if getattr(plan, option) > 1]).name == plan.plugin


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text.strip()) if word]


def _meaning(word: str, text: str) -> dict[str, Any]:
    """What one word sets."""
    plugin, colon, algorithm = word.partition(":")
    if colon:
        return {**_meaning(plugin, text), "algorithm": algorithms.chosen(algorithm).text}
    plugins = _plugins()
    word = word if word in (*SWITCHES, *installed(), *plugins) else word.lower()
    if word in SWITCHES:
        option, value = SWITCHES[word]
        return {option: value}
    if word in installed():
        return {"framework": word}
    if word in plugins:
        return {"plugin": word}
    name, number = _split(word)
    if name in COUNTS and number is not None:
        return {COUNTS[name]: number}
    if name in plugins and number is not None:
        return {"plugin": name, "dp": number}
    raise _refused(word, name, number, text)


def _refused(word: str, name: str, number: int | None, text: str) -> ConfigError:
    """Why ``word``, which is ``name`` with ``number``, is no word of a plan."""
    named = [each for each in usable() if each.name in _words(text)]
    _say_why(named, word, name)
    for spelt in (word.replace("_", "-"), name.replace("_", "-")):
        if _SPELT.get(spelt, spelt) in ELSEWHERE:
            return ConfigError(f"--plan {text!r}: {word}: {ELSEWHERE[_SPELT.get(spelt, spelt)]}", field=_FIELD)
    _say_why(usable(), word, name)
    if name in algorithms.names():
        return ConfigError(f"--plan {text!r}: write an algorithm behind its plugin, as in ddp2:{name}", field=_FIELD)
    if word in COUNTS:
        return ConfigError(f"--plan {text!r}: {word} needs a number, such as {word}2", field=_FIELD)
    known = [*_plugins(), *(f"{count}{number or 2}" for count in COUNTS), *SWITCHES, *installed()]
    return ConfigError(f"--plan {text!r}: unknown word {word!r}: {suggest(word, known)}", field=_FIELD)


def _say_why(frameworks: Iterable[Framework], word: str, name: str) -> None:
    """Raise what the first of them says that does not offer ``word``, or ``name``."""
    for each in frameworks:
        if name in each.not_offered or word in each.not_offered:
            each.plugin(name if name in each.not_offered else word)


def _split(word: str) -> tuple[str, int | None]:
    """``"tp2"`` -> ``("tp", 2)``."""
    found = re.fullmatch(r"(.*?)(\d+)", word)
    return (found[1], int(found[2])) if found else (word, None)


def _plugins() -> list[str]:
    """Names of all plugins, each once, those of the default framework first."""
    return list(dict.fromkeys(plugin.name for each in usable() for plugin in each.plugins))


def _framework_with(plugin: str, missing: str = "") -> str:
    """The first framework that has a plugin of this name."""
    return next((each.name for each in usable() if plugin in _names(each.plugins)), missing)


def _framework_that_takes(options: list[str]) -> str:
    """The first framework with a plugin that takes all of these options, or else with plugins that take each of them;
    the default one where there is none."""
    for each in usable():
        if each.plugin_with(options).options.issuperset(options):
            return each.name
    for each in usable():
        if all(any(option in plugin.options for plugin in each.plugins) for option in options):
            return each.name
    return DEFAULT_FRAMEWORK


def _names(plugins: Iterable[Any]) -> list[str]:
    return [plugin.name for plugin in plugins]


def _called(option: str) -> str:
    return {"dp": "the data-parallel size", "micro_batches": "micro-batches"}.get(option, option.replace("_", "-"))
