"""``causal-lm``: any causal language model of a local directory, on any text: fine-tuning in one line.

A directory gives weights and tokenizer; a ``config.json`` gives a model with random weights, and its tokenizer is the
one beside it, or single bytes. Nothing is looked up on a hub.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.config import TrainSpec
from workbench.core.recipe import Recipe
from workbench.engine.pretrained.directory import TOKENIZER_FILES, architecture_of, read_config, read_directory
from workbench.errors import ConfigError
from workbench.recipes import language_data
from workbench.tokens import texts

if TYPE_CHECKING:
    import torch

    from workbench.engine.base.capabilities import Evaluating
    from workbench.engine.base.workload import Evaluation, Workload

_CAUSAL = ("ForCausalLM", "LMHeadModel")
_LENGTH = 512
_LORA_ALPHA = 2  # times the rank
_SAMPLE_TOKENS = 48
_PROMPT_TOKENS = 16
_VALIDATION_WINDOWS = 64
#: the largest learning rate: of random weights, of trained ones, of adapters
_RATES = {"random": 3e-4, "trained": 2e-5, "adapters": 2e-4}


def check(spec: TrainSpec) -> None:
    """Raise ``ConfigError`` for a model, data or a length that cannot be trained; no weights and no texts are read, but
    the first record of each file."""
    if not spec.model:
        raise ConfigError("causal-lm needs --model: a local Hugging Face directory, or a config.json", field="--model")
    if not spec.data:
        raise ConfigError("causal-lm needs --data: text, .jsonl or .parquet files", field="--data")
    config, architecture = _read_model(spec)
    if not architecture.endswith(_CAUSAL):
        raise ConfigError(
            f"--model {spec.model} is a {architecture}, no causal language model (...ForCausalLM, ...LMHeadModel): "
            "train it in a cell, with pretrained = DIR",
            field="--model",
        )
    if not _is_config(spec) and not _has_tokenizer(Path(spec.model)):
        raise ConfigError(
            f"--model {spec.model} has no tokenizer ({', '.join(TOKENIZER_FILES)}), so it cannot read text: copy its "
            "tokenizer there",
            field="--model",
        )
    length_of(spec, config)
    for file in texts.find_files(spec.data):
        if next(texts.records(file), None) is None:
            raise ConfigError(f"--data {file} contains no text: leave it out", field="--data")


def length_of(spec: TrainSpec, config: dict[str, Any]) -> int:
    """Tokens of a sequence. ``ConfigError`` for more than the model has positions for, and for less than 2."""
    most = config.get("max_position_embeddings") or config.get("n_positions") or 0
    length = spec.seq_len or min(_LENGTH, most or _LENGTH)
    if length < 2 or (most and length > most):
        raise ConfigError(
            f"--seq-len {length}: the model has {most or 'any number of'} positions, and a sequence needs at least 2 "
            f"tokens: pass --seq-len {min(_LENGTH, most or _LENGTH)}",
            field="--seq-len",
        )
    return length


def _is_config(spec: TrainSpec) -> bool:
    return Path(spec.model).suffix == ".json"


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _read_model(spec: TrainSpec) -> tuple[dict[str, Any], str]:
    """The configuration and the architecture that ``--model`` names."""
    if _is_config(spec):
        file = Path(spec.model)
        config = read_config(file, field="--model")
        return config, architecture_of(config, file, "--model")
    directory = read_directory(spec.model, field="--model")
    return dict(directory.config), directory.architecture


def build(spec: TrainSpec) -> Workload:
    """Build model, data and evaluation; equal on every rank."""
    import torch

    from workbench.engine.base.workload import Workload
    from workbench.engine.data.dataset_source import dataset_source, steps_planned
    from workbench.recipes.models import collate_tokens, loss_of_model
    from workbench.recipes.stdlib_llama import learning_rate_factor

    config, _ = _read_model(spec)
    length = length_of(spec, config)
    tokenizer = _tokenizer(spec)
    model, after_split = _model(spec)
    _check_vocabulary(model, tokenizer, spec)
    tokens = texts.encode(texts.find_files(spec.data), tokenizer)
    windows = language_data.cut_windows(tokens, length, f"--data {spec.data}", "--data")
    train, validation = language_data.split_validation(windows, length)
    kind = "adapters" if spec.lora_rank else "random" if _is_config(spec) else "trained"
    lr = _RATES[kind] if spec.lr is None else spec.lr
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.95), weight_decay=0.01
    )
    data = dataset_source(train, spec, collate_tokens)
    steps = steps_planned(spec, data)
    evaluator = _Evaluator(tokenizer, model.config.vocab_size, validation[:_VALIDATION_WINDOWS])
    return Workload(
        model=model,
        optimizer=optimizer,
        data=data,
        criterion=loss_of_model,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps)),
        tokens_per_sample=length,
        evaluate=evaluator,
        sample=evaluator.sample,
        after_split=after_split,
        tokenizer=tokenizer,
    )


def _tokenizer(spec: TrainSpec) -> Any:
    from transformers import AutoTokenizer

    folder = Path(spec.model).parent if _is_config(spec) else Path(spec.model)
    if not _has_tokenizer(folder):
        return texts.byte_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(f"--model {folder}: its tokenizer cannot be read: {error}", field="--model") from error


def _model(spec: TrainSpec) -> tuple[Any, Any]:
    """The model, and what is to be called with it once a plan has split it."""
    import torch

    from workbench.engine.frameworks.torch_common.cells.pretrained import load_for_plan
    from workbench.engine.pretrained.load import class_of
    from workbench.engine.pretrained.lora import add_adapters
    from workbench.recipes.models import seeded_model

    after_split = None
    if _is_config(spec):
        config, architecture = _read_model(spec)
        made = class_of(architecture, "--model").config_class.from_dict(config)
        model: Any = seeded_model(architecture, made, spec.seed)
    else:
        model, after_split = load_for_plan(spec.model, spec, field="--model")
    model.config.use_cache = False
    if spec.lora_rank:
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)
            add_adapters(model, {"r": spec.lora_rank, "lora_alpha": _LORA_ALPHA * spec.lora_rank})
    return model, after_split


def _check_vocabulary(model: Any, tokenizer: Any, spec: TrainSpec) -> None:
    if len(tokenizer) > model.config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, and the model of --model {spec.model} a vocabulary of "
            f"{model.config.vocab_size}: give the tokenizer of this model, or a config.json with vocab_size "
            f"{len(tokenizer)}",
            field="--model",
        )


class _Evaluator:
    """Computes the validation loss, and samples a continuation of the beginning of the validation data."""

    def __init__(self, tokenizer: Any, vocabulary: int, windows: torch.Tensor) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.windows = windows

    def __call__(self, strategy: Evaluating) -> Evaluation:
        from workbench.engine.base.workload import Evaluation
        from workbench.engine.frameworks.torch_common.generate import token_loss

        loss = token_loss(strategy, self.windows, vocabulary=self.vocabulary, rows=8)
        return Evaluation(values={"loss": loss, "perplexity": math.exp(min(loss, 700))}, texts=self.sample(strategy))

    def sample(self, strategy: Evaluating) -> list[str]:
        """Sample a continuation of the first validation sequence's beginning."""
        from workbench.engine.frameworks.torch_common.generate import generate

        length = self.windows.shape[1]
        prompt = self.windows[0, : min(_PROMPT_TOKENS, length // 2)].tolist()
        count = min(_SAMPLE_TOKENS, length - len(prompt))
        tokens = generate(strategy, prompt, tokens=count, vocabulary=self.vocabulary, temperature=0.7)
        return [self.tokenizer.decode(tokens)]


RECIPE = Recipe(
    name="causal-lm",
    title="A causal language model of a local directory, on text of your own",
    sizes={},
    default_size="",
    defaults={"": {"steps": 100, "batch_size": 8, "eval_every": 50, "shuffle": True, "clip": 1.0}},
    check_data=lambda: None,
    build=build,
    options=("model", "data", "seq_len", "lora_rank"),
    check=check,
)
