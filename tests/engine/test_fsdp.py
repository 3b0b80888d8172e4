"""FSDP2 where it would go wrong by itself: ranks that use different parameters; and what is refused before a step."""

from __future__ import annotations

import pytest
import torch

from workbench.core.config import TrainSpec
from workbench.errors import ConfigError

FSDP = {"framework": "torch", "plugin": "fsdp"}


def test_ranks_may_use_different_parameters(pool):
    """Without an agreement FSDP2 adds the gradients of the two heads up, as they are of one size."""
    (expected,) = pool.run(1, "tests.engine.branching:alone")
    for found in pool.run(2, "tests.engine.branching:train", options=FSDP):
        for name, weights in expected.items():
            assert found[name] == pytest.approx(weights, abs=1e-6), name


#: a class of each family that DTensor cuts, with settings in which models differ
CUT = [
    ("llama", "LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True}, {}),
    ("llama", "LlamaForCausalLM", {}, {"recompute": True}),
    ("mistral", "MistralForCausalLM", {"head_dim": 16, "attn_implementation": "eager"}, {}),
    ("qwen2", "Qwen2ForCausalLM", {}, {}),
    ("mixtral", "MixtralForCausalLM", {}, {}),
    ("gpt2", "GPT2LMHeadModel", {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True}, {}),
    ("gpt2", "GPT2LMHeadModel", {"attn_implementation": "eager"}, {}),
    ("vit", "ViTForImageClassification", {}, {}),
]


def test_models_that_dtensor_cuts_train_as_in_one_process(pool):
    expected = pool.run(1, "tests.engine.split_ranks:plain", cases=CUT)[0]
    for found in pool.run(2, "tests.engine.split_ranks:train", cases=CUT, options={**FSDP, "tp": 2}):
        for case, one, (losses, norms) in zip(CUT, found, expected, strict=True):
            assert one[0] == pytest.approx(losses, abs=1e-5), case
            assert one[1] == pytest.approx(norms, rel=1e-4), case


def _check(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None, **options) -> None:
    from workbench.engine.base.workload import Workload
    from workbench.engine.frameworks.torch.fsdp.strategy import FsdpStrategy

    spec = TrainSpec.from_options({**FSDP, "ranks": 2, **options})
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = lambda model, batch: model(batch).mean()  # noqa: E731
    FsdpStrategy.check(spec, Workload(model=model, optimizer=optimizer, data=None, loss_fn=loss_fn))  # type: ignore[arg-type]


class _Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))


def _hooked() -> torch.nn.Module:
    model = torch.nn.Linear(3, 2)
    model.weight.register_hook(lambda gradient: gradient * 2)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Scaled(), r"scale is a single number.*torch.nn.Parameter\(torch.zeros\(1\)\)"),
        (torch.nn.Linear(3, 2, dtype=torch.complex64), "weight is complex"),
        (torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2).double()), "the types float32, float64"),
        (torch.nn.Embedding(4, 3, sparse=True), "has sparse gradients"),
        (_hooked(), "weight has a gradient hook"),
    ],
    ids=["scalar", "complex", "types", "sparse", "hook"],
)
def test_what_cannot_be_sharded_is_refused(model: torch.nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _check(model)


def test_an_optimizer_that_looks_at_whole_weights_is_refused() -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    with pytest.raises(ConfigError, match="reads whole weights"):
        _check(model, torch.optim.Muon(model.parameters(), lr=0.1))


def test_blocks_are_the_outermost_lists_of_one_class() -> None:
    from tests.engine import boosted
    from workbench.engine.frameworks.torch.fsdp.sharding import blocks_of

    model = boosted.models.model("llama")
    assert blocks_of(model) == list(model.model.layers)
    assert blocks_of(boosted.models.model("plain")) == []
    shared = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    shared[1].weight = shared[0].weight
    assert blocks_of(torch.nn.ModuleDict({"all": shared})) == [], "a tied weight stays with the rest"


class _Own(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"q": torch.nn.Linear(4, 6)}) for _ in range(2)])
        self.head = torch.nn.Linear(6, 5)


def test_a_cell_names_the_layers_to_cut() -> None:
    from workbench.engine.frameworks.torch.tensor_parallel.plan import plan_of

    model = _Own()
    found = plan_of(model, 2, {"layers.*.q": "colwise", "head": "rowwise"})
    assert {name: style for name, (_, style) in found.modules.items()} == {
        "layers.0.q": "colwise",
        "layers.1.q": "colwise",
        "head": "rowwise",
    }


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (None, r"how to cut _Own over ranks is not known .*tp_plan = "),
        ({"layers.*.k": "colwise"}, r"tp_plan\['layers.\*.k'\] matches no module.*layers.0.q"),
        ({"head": "colwize"}, "colwise"),
        ({"head": "colwise"}, "head cannot be cut colwise over --tp 2: 2 does not divide 5"),
        ({"layers": "colwise"}, "it is a ModuleList, not a torch.nn.Linear"),
        (["head"], "tp_plan is a list: it must be a dict"),
    ],
)
def test_a_plan_that_cannot_be_cut_is_refused(own, message: str) -> None:
    from workbench.engine.frameworks.torch.tensor_parallel.plan import plan_of

    with pytest.raises(ConfigError, match=message):
        plan_of(_Own(), 2, own)


def test_heads_have_to_be_a_multiple_of_the_ranks() -> None:
    from tests.engine import boosted
    from workbench.engine.frameworks.torch.tensor_parallel.plan import plan_of

    with pytest.raises(ConfigError, match="--tp 3 does not divide num_attention_heads = 4: use a divisor of 4"):
        plan_of(boosted.models.model("llama"), 3)
