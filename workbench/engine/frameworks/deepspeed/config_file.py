"""DeepSpeed's JSON configuration beside the flags of a run. Imports no tensor library.

A key that has a flag (``train_batch_size``, ``gradient_clipping``, ``zero_optimization.stage`` ...) sets that option as
the flag would; the flag may say the same, and nothing else. The other keys are given to the engine, or refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.frameworks import ConfigFile, ReadConfig, Stated
from workbench.engine.frameworks.deepspeed.config_keys import (
    DTYPES,
    KINDS,
    OF_OPTIMIZER,
    PASSED,
    REFUSED,
    RENAMED,
    SECTIONS,
    TRANSLATED,
    UNUSED,
    is_off,
    known_in,
)
from workbench.errors import ConfigError, suggest

if TYPE_CHECKING:
    from workbench.core.config import TrainSpec

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
#: DeepSpeed's own sizes of buckets, in elements
BUCKET = 500_000_000
#: first loss scale in fp16 as a power of 2. DeepSpeed's 2**16 skips so many steps that short runs learn less
_SCALE_POWER = 10
_FIELD = "--ds-config"
#: what files for transformers say where a flag decides
_AUTO = "auto"


def read(source: Any, given: Mapping[str, Any]) -> ReadConfig:
    """Read a configuration: a file's path, JSON text, or a mapping. ``given``: options of the run that are known.

    Raises ``ConfigError`` for a file that cannot be read, for a key that is unknown (with the nearest name) or cannot
    be had (with the reason), and for values that cannot work.
    """
    name, data = _loaded(source)
    stated: dict[str, Any] = {}
    passed: dict[str, Any] = {}
    compared: dict[str, Any] = {}
    others: dict[str, str] = {}
    for key, value in _leaves(data, name):
        if key in UNUSED:
            others[key] = f"is not used: {UNUSED[key]}"
        elif value == _AUTO:
            continue
        elif key in TRANSLATED:
            stated[key] = _checked(key, value, TRANSLATED[key], name)
        elif key in PASSED:
            passed[key] = _checked(key, value, PASSED[key], name)
        elif key in OF_OPTIMIZER or key.startswith("optimizer.params."):
            compared[key] = value
            others[key] = "has to be that of the optimizer that the cell or the recipe makes"
        elif not is_off(value):
            raise ConfigError(f"{name}: {key} is not available: {REFUSED[key]}", field=_FIELD)
    options = {option: Stated(key=key, value=value) for option, key, value in _options(stated, given, name)}
    rest = _nested({**passed, **compared})
    text = json.dumps(rest) if rest else ""
    return ReadConfig(name=name, options=options, rest=text, passed=tuple(passed), others=others)


def resolved(spec: TrainSpec) -> dict[str, Any]:
    """The whole configuration of a run: what its options say, its file, and the defaults here."""
    offload = {"offload_optimizer": {"device": "cpu"}} if spec.plan.offload else {}
    zero = {"stage": STAGES[spec.plan.plugin], "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    batch = {"train_batch_size": spec.batch_size, "train_micro_batch_size_per_gpu": spec.batch_size // spec.pieces}
    config: dict[str, Any] = {
        **(batch if spec.batch_size else {}),
        "gradient_accumulation_steps": spec.accumulate,
        "gradient_clipping": spec.clip,
        "zero_optimization": {**zero, **offload},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": spec.precision == "bf16"},
        "fp16": {"enabled": spec.precision == "fp16", "initial_scale_power": _SCALE_POWER},
        **({} if spec.lr is None else {"optimizer": {"params": {"lr": spec.lr}}}),
    }
    return _over(config, left(spec))


def left(spec: TrainSpec) -> dict[str, Any]:
    """What the file of a run says beside its options."""
    found: dict[str, Any] = json.loads(spec.plan.ds_config or "{}")
    return found


CONFIG_FILE = ConfigFile(option="ds_config", file="ds_config.json", read=read, resolved=resolved)


def _loaded(source: Any) -> tuple[str, dict[str, Any]]:
    """How messages call a configuration, and its content."""
    if isinstance(source, Mapping):
        return _FIELD, dict(source)
    text, name = str(source), _FIELD
    if not text.lstrip().startswith("{"):
        path = Path(text).expanduser()
        name = f"{_FIELD} {path}"
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error.strerror}", field=_FIELD) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name} is not text in UTF-8: {error.reason}", field=_FIELD) from error
    try:
        data = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except ValueError as error:
        raise ConfigError(f"{name} is not valid JSON: {error}", field=_FIELD) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{name} must hold an object ({{...}}), not {type(data).__name__}", field=_FIELD)
    return name, data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the key {twice!r} is there twice")
    return dict(pairs)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _leaves(section: Mapping[str, Any], name: str, inside: str = "") -> Iterator[tuple[str, Any]]:
    """``zero_optimization.stage``, 2 and so on. ``ConfigError`` for a key that DeepSpeed does not have."""
    for word, value in section.items():
        key = f"{inside}.{RENAMED.get(word, word)}" if inside else RENAMED.get(word, word)
        is_section = key in SECTIONS or (key == "optimizer.params" and value != _AUTO)
        if inside != "optimizer.params" and not is_section and RENAMED.get(word, word) not in known_in(inside):
            raise ConfigError(f"{name}: unknown key {key!r}: {suggest(word, known_in(inside))}", field=_FIELD)
        if not is_section:
            yield key, value
        elif isinstance(value, dict):
            yield from _leaves(value, name, key)
        elif value is not None:
            raise ConfigError(f"{name}: {key} must be an object ({{...}}), not {value!r}", field=_FIELD)


def _checked(key: str, value: Any, kind: str, name: str) -> Any:
    types, called = KINDS[kind]
    fits = isinstance(value, types) and (kind == "switch" or not isinstance(value, bool))
    if kind in ("count", "size", "number"):
        least = 1 if kind == "size" else 0
        fits = fits and least <= value < float("inf") and (kind == "number" or value == int(value))
    if not fits or (kind == "dtype" and value not in DTYPES):
        raise ConfigError(f"{name}: {key} must be {called}, not {value!r}", field=_FIELD)
    return int(value) if kind in ("count", "size") else value


def _options(stated: Mapping[str, Any], given: Mapping[str, Any], name: str) -> Iterator[tuple[str, str, Any]]:
    """Option, key and value of what a flag could say too."""
    for option, key in (("clip", "gradient_clipping"), ("lr", "optimizer.params.lr")):
        if key in stated:
            yield option, key, float(stated[key])
    if (stage := stated.get(key := "zero_optimization.stage")) is not None:
        if stage > 3:
            raise ConfigError(f"{name}: {key} must be 1, 2 or 3, not {stage}", field=_FIELD)
        yield "plugin", key, f"zero{stage}" if stage else "ddp"
    if (device := stated.get(key := "zero_optimization.offload_optimizer.device")) is not None:
        if device not in ("cpu", "none"):
            reason = REFUSED["zero_optimization.offload_optimizer.nvme_path"]
            raise ConfigError(f'{name}: {key} must be "cpu" or "none", not {device!r}: {reason}', field=_FIELD)
        yield "offload", key, device == "cpu"
    yield from _precision(stated, given, name)
    yield from _batch(stated, given, name)


def _precision(stated: Mapping[str, Any], given: Mapping[str, Any], name: str) -> Iterator[tuple[str, str, Any]]:
    chosen = [each for each in ("fp16", "bf16") if stated.get(f"{each}.enabled")]
    if len(chosen) > 1:
        raise ConfigError(f"{name} enables both fp16 and bf16: leave out one of them", field=_FIELD)
    if chosen:
        yield "precision", f"{chosen[0]}.enabled", chosen[0]
    asked = given.get("precision", "")
    if not chosen and stated.get(f"{asked}.enabled") is False:
        raise ConfigError(
            f"{name}: {asked}.enabled is false, and --precision says {asked}: leave out one of them", field=_FIELD
        )


def _batch(stated: Mapping[str, Any], given: Mapping[str, Any], name: str) -> Iterator[tuple[str, str, Any]]:
    """train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x ranks, as DeepSpeed has it."""
    whole, micro, pieces = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
    batch, accumulate = stated.get(whole), stated.get(pieces)
    if batch is not None:
        yield "batch_size", whole, batch
    if accumulate is not None:
        yield "accumulate", pieces, accumulate
    if (size := stated.get(micro)) is None:
        return
    ranks = given.get("ranks")
    batch = given.get("batch_size") if batch is None else batch
    accumulate = given.get("accumulate") if accumulate is None else accumulate
    if ranks is None:
        raise ConfigError(f"{name}: {micro} {size} needs the number of ranks: pass -n", field="--nproc-per-node")
    if batch is None:
        yield "batch_size", micro, size * (accumulate or 1) * ranks
    elif accumulate is None and size > 0 and batch % (size * ranks) == 0:
        yield "accumulate", micro, batch // (size * ranks)
    elif batch != size * (accumulate or 1) * ranks:
        raise ConfigError(
            f"{name}: {micro} {size} x {pieces} {accumulate or 1} x {ranks} ranks = "
            f"{size * (accumulate or 1) * ranks} samples, and the batch has {batch}: change one of them, or -n",
            field=_FIELD,
        )


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in leaves.items():
        *sections, last = key.split(".")
        inside = found
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[last] = value
    return found


def _over(base: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with what ``above`` says in its place, section by section."""
    found = dict(base)
    for key, value in above.items():
        below = found.get(key)
        found[key] = _over(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return found
