"""``stdlib-llama``: a small Llama that learns Python from the source files of the standard library."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.core.config import TrainSpec
from workbench.core.recipe import ModelShape, Recipe
from workbench.recipes import stdlib_text
from workbench.recipes.stdlib_corpus import Corpus, load_corpus

if TYPE_CHECKING:
    import torch

    from workbench.engine.base.capabilities import Evaluating
    from workbench.engine.base.workload import Evaluation, Workload

PROMPT = "import os\n\n\ndef"  # no trailing space: in this vocabulary a word includes the space before it


@dataclass(frozen=True, kw_only=True)
class _Size:
    """A size of the model and its data.

    ``intermediate``: hidden size of the MLP. ``text_bytes``: amount of source text that is read.
    ``validation_windows``: sequences per evaluation. ``sample_tokens``: length of a sampled text.
    """

    shape: ModelShape
    intermediate: int
    initializer_range: float
    text_bytes: int
    validation_windows: int
    sample_tokens: int


_SIZES = {
    "tiny": _Size(
        shape=ModelShape(layers=4, hidden=128, heads=4, kv_heads=4, vocabulary=1024, sequence_length=128),
        intermediate=352,
        initializer_range=0.08,
        text_bytes=2_500_000,
        validation_windows=128,
        sample_tokens=56,
    ),
    "small": _Size(
        shape=ModelShape(layers=8, hidden=512, heads=8, kv_heads=4, vocabulary=4096, sequence_length=512),
        intermediate=1408,
        initializer_range=0.04,
        text_bytes=50_000_000,
        validation_windows=64,
        sample_tokens=128,
    ),
    "1b": _Size(
        shape=ModelShape(layers=16, hidden=2048, heads=32, kv_heads=8, vocabulary=8192, sequence_length=1024),
        intermediate=8192,
        initializer_range=0.02,
        text_bytes=50_000_000,
        validation_windows=64,
        sample_tokens=128,
    ),
}


def make_config(size: str) -> Any:
    """Make the ``LlamaConfig`` of a size ("tiny", "small", "1b")."""
    from transformers import LlamaConfig

    chosen = _SIZES[size]
    shape = chosen.shape
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=chosen.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.sequence_length,
        initializer_range=chosen.initializer_range,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def learning_rate_factor(step: int, steps: int) -> float:
    """Learning rate at ``step`` relative to its peak: linear warm-up over a twentieth of the steps, then cosine decay
    to a tenth."""
    warm_up = max(1, min(100, steps // 20))
    if step < warm_up:
        return (step + 1) / warm_up
    progress = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def build(spec: TrainSpec) -> Workload:
    """Build model, data and evaluation for ``spec.size``; equal on every rank."""
    import torch

    from workbench.engine.base.workload import Workload
    from workbench.engine.data.dataset_source import dataset_source, steps_planned
    from workbench.recipes.models import collate_tokens, loss_of_model, seeded_model

    size = spec.size or RECIPE.default_size
    length = RECIPE.shape(size).sequence_length
    corpus = _load_corpus(size)
    model = seeded_model("LlamaForCausalLM", make_config(size), spec.seed)
    _rescale_initial_weights(model)
    evaluator = _Evaluator(size, corpus.vocabulary, corpus.validation)
    lr = spec.lr if spec.lr is not None else RECIPE.defaults[size]["lr"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    data = dataset_source(corpus.train, spec, collate_tokens)
    steps = steps_planned(spec, data)
    return Workload(
        model=model,
        optimizer=optimizer,
        data=data,
        criterion=loss_of_model,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps)),
        tokens_per_sample=length,
        evaluate=evaluator,
        sample=evaluator.sample,
    )


@functools.cache
def _load_corpus(size: str) -> Corpus:
    """Load the encoded text, once per process; a rank server does so for the default size before it forks ranks."""
    shape = RECIPE.shape(size)
    return load_corpus(max_bytes=_SIZES[size].text_bytes, vocabulary=shape.vocabulary, length=shape.sequence_length)


def _rescale_initial_weights(model: Any) -> None:
    """Rescale the initial weights so that the loss falls from the first steps on.

    Output projections of residual branches are divided by sqrt(2 x layers) as in GPT-2 (Radford et al. 2019, section
    2.3), embeddings get the standard deviation 0.5, and the output layer gets 0.02, so that initial logits are small.
    """
    import torch

    std = model.config.initializer_range
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.5 / std)
        model.lm_head.weight.mul_(0.02 / std)
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.div_(math.sqrt(2 * model.config.num_hidden_layers))


class _Evaluator:
    """Computes the validation loss over a fixed sample of windows, and samples a continuation of a fixed prompt."""

    def __init__(self, size: str, vocabulary: stdlib_text.Vocabulary, windows: torch.Tensor) -> None:
        import torch

        self.size = _SIZES[size]
        self.vocabulary = vocabulary
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
        self.windows = windows[order[: self.size.validation_windows]]
        self.bytes_per_token = stdlib_text.measure_bytes_per_token(vocabulary, self.windows)

    def __call__(self, strategy: Evaluating) -> Evaluation:
        from workbench.engine.base.workload import Evaluation
        from workbench.engine.frameworks.torch_common.generate import token_loss

        loss = token_loss(strategy, self.windows, vocabulary=self.vocabulary.size, rows=16)
        return Evaluation(
            values={"loss": loss, "bits_per_byte": loss / math.log(2) / self.bytes_per_token},
            texts=self.sample(strategy),
        )

    def sample(self, strategy: Evaluating) -> list[str]:
        """Sample a continuation of ``PROMPT``."""
        from workbench.engine.frameworks.torch_common.generate import generate

        prompt = self.vocabulary.encode(PROMPT)
        tokens = generate(
            strategy, prompt, tokens=self.size.sample_tokens, vocabulary=self.vocabulary.size, temperature=0.7
        )
        return [self.vocabulary.decode(tokens)]


RECIPE: Recipe = Recipe(
    name="stdlib-llama",
    title="A small Llama that learns Python from the source files of the standard library",
    sizes={name: size.shape for name, size in _SIZES.items()},
    default_size="tiny",
    defaults={
        "tiny": {"steps": 400, "batch_size": 8, "lr": 8e-3, "eval_every": 100, "shuffle": True},
        "small": {"steps": 1000, "batch_size": 16, "lr": 1e-3, "eval_every": 100, "shuffle": True, "clip": 1.0},
        "1b": {"steps": 500, "batch_size": 16, "lr": 3e-4, "eval_every": 100, "shuffle": True, "clip": 1.0},
    },
    check_data=lambda: stdlib_text.check_sources(stdlib_text.stdlib_directory()),
    build=build,
    warm=lambda: _load_corpus("tiny"),
)
