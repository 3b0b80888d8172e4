"""Verification on ranks: every plugin of every framework trains the same as one process; planted errors are found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.rank_pool import RankPools
from tests.engine.verified import GPT2, KERAS, LLAMA, MASKED_GPT2, MLP, Verifier
from workbench.core.frameworks import PLUGIN_OPTIONS, Feature, usable
from workbench.engine.frameworks.torch import schedules
from workbench.errors import ConfigError

#: options that a pipeline, a model with batch normalisation or a GPU needs, that only say where values are kept, under
#: which losses are others, or that wait for a compiler (tests/engine/test_gradients.py has compiled models)
NOT_ALONE = (
    "micro_batches",
    "sync_batchnorm",
    "schedule",
    "sequence_parallel",
    "placement",
    "offload",
    "algorithm",
    "compile",
    "ds_config",
)
CELLS = {"mlp": MLP, "llama": LLAMA, "gpt2": GPT2}
#: of frameworks that train models of another library
OTHER_CELLS = {"tensorflow": {"mlp": KERAS}}


def _plans() -> Iterator[Any]:
    """Every plugin on two ranks: by itself, with each option that needs no other, and with schedules of two stages."""
    for framework in usable():
        for plugin in framework.plugins:
            options = {"framework": framework.name, "plugin": plugin.name}
            if plugin.why_not(Feature.FP32):
                options["precision"] = "bf16"
            yield pytest.param(options, id=f"{framework.name}-{plugin.name}")
            for name, default in PLUGIN_OPTIONS.items():
                if name in plugin.options and name not in NOT_ALONE:
                    value = True if isinstance(default, bool) else 2
                    yield pytest.param({**options, name: value}, id=f"{framework.name}-{plugin.name}-{name}")
            takes = framework.name == "torch" and "schedule" in plugin.options
            # the models have two blocks: one for each of two stages
            for name in [name for name, each in schedules.SCHEDULES.items() if takes and each.stages == 1]:
                pipeline = {"pp": 2, "micro_batches": 2, "schedule": name}
                yield pytest.param({**options, **pipeline}, id=f"{framework.name}-{plugin.name}-{name}")


@pytest.fixture(scope="module")
def verify(pool: RankPools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verifier]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("runs")))
        yield Verifier(pool)


@pytest.mark.parametrize("options", list(_plans()))
def test_a_plan_trains_the_same_as_one_process(options: dict[str, Any], verify: Verifier) -> None:
    """A model that a plan cannot split is refused before the first step."""
    for name, cell in OTHER_CELLS.get(options["framework"], CELLS).items():
        try:
            found = verify(cell, **options)
        except ConfigError as refusal:
            is_split = options.keys() & {"tp", "pp", "cp"} or options["framework"] == "megatron"
            assert name == "mlp" and is_split, refusal
            continue
        assert found.same, str(found)
        assert max(found.losses) > 0 and len(found.layers) > 2
        assert not any("sample" in note for note in found.notes)
        if name != "mlp":
            assert any(note.startswith("causal:") for note in found.notes), found.notes


def test_stages_with_several_parts_train_the_same_as_one_process(verify: Verifier) -> None:
    deep = LLAMA.replace("num_hidden_layers=2", "num_hidden_layers=4")
    found = verify(deep, plugin="hybrid", pp=2, micro_batches=2, schedule="interleaved")
    assert found.same, str(found)
    assert max(found.losses) > 0 and any(note.startswith("causal:") for note in found.notes), found.notes


def test_ranks_that_share_a_sequence_train_the_same_as_one_process(verify: Verifier) -> None:
    found = verify(LLAMA, plugin="hybrid", tp=2, sequence_parallel="ring")
    assert found.same, str(found)
    assert max(found.losses) > 0 and any(note.startswith("causal:") for note in found.notes), found.notes


def test_bf16_has_the_tolerance_of_bf16(verify: Verifier) -> None:
    found = verify(GPT2, tp=2, precision="bf16")
    assert found.same, str(found)
    assert max(found.loss_tolerances) > 1e-3 and "in bf16" in found.basis


@pytest.mark.parametrize(
    ("plant", "options", "cause"),
    [
        ("scale 1/dp twice", {}, "each gradient is 0.5 times the reference: averaged twice over dp (2 replicas)"),
        ("not reduced over dp", {}, "is not averaged over dp: each rank keeps that of its own share"),
        ("accumulation", {"accumulate": 2}, "or not divided by the 2 gradient accumulation steps"),
        ("stale copy", {"plugin": "zero1"}, "rank 1 holds another copy of 0.weight after step 2: a stale shard"),
    ],
)
def test_an_error_planted_into_the_reduction_is_named(
    plant: str, options: dict[str, Any], cause: str, verify: Verifier
) -> None:
    found = verify(MLP, plant=plant, **options)
    assert found.verdict == "differs"
    assert any(cause in text for text in found.causes), str(found)
    assert found.first_step == (3 if plant == "stale copy" else 1)


def test_a_layer_norm_that_tensor_parallel_ranks_do_not_share_is_named(verify: Verifier) -> None:
    name = "transformer.h.1.ln_1.weight"
    found = verify(GPT2, plant="layer norm", tp=2)
    assert found.verdict == "differs" and found.first_step == 1
    assert name in found.sentence and [each.name for each in found.ranked("gradient")] == [name]
    assert found.causes == [
        f"the gradient of {name} is not reduced over tp: the sum of the ranks' parts is the reference"
    ]


def test_errors_of_shared_sequences_are_found(verify: Verifier) -> None:
    found = verify(LLAMA, plant="keys not summed over cp", framework="torch", cp=2)
    assert found.verdict == "differs" and found.first is not None and found.first.what == "gradient"
    worst = [each.name.rpartition(".")[0].rpartition(".")[2] for each in found.ranked("gradient")[:2]]
    assert {"k_proj", "v_proj"} & set(worst), worst
    blind = verify(LLAMA, plant="no causal mask over cp", framework="torch", cp=2)
    assert blind.verdict == "differs" and blind.causes[0].startswith("the causal mask is lost")


def test_the_causal_mask_that_colossal_ai_loses_is_found(verify: Verifier) -> None:
    """Without the repair: sharded GPT-2 hands sdpa a padding mask, which switches off its causal one."""
    assert verify(MASKED_GPT2, pp=2).same
    found = verify(MASKED_GPT2, plant="causal mask", pp=2)
    assert (
        found.verdict == "differs" and found.first is not None and (found.first.what, found.first.step) == ("loss", 1)
    )
    assert found.causes[0].startswith(
        "the causal mask is lost: another last token moves the logits of earlier positions"
    )


def test_batch_normalisation_and_random_numbers_are_named(verify: Verifier) -> None:
    normed = MLP.replace("LayerNorm", "BatchNorm1d")
    found = verify(normed)
    assert found.verdict == "differs" and "uses the statistics of each rank's own share" in found.causes[0]
    assert verify(normed, sync_batchnorm=True).same


def test_a_plan_that_sends_less_than_gradients_is_refused(verify: Verifier) -> None:
    with pytest.raises(ConfigError, match="verify the plan without it"):
        verify(MLP, algorithm="bf16")
    noisy = MLP.replace("torch.nn.Tanh()", "Noise()").replace(
        "model =",
        "class Noise(torch.nn.Module):\n    def forward(self, x):\n        return x + torch.randn_like(x)\nmodel =",
    )
    found = verify(noisy)
    assert found.verdict == "undecided" and "draws random numbers (2)" in found.causes[0]


def test_a_plan_may_be_compared_with_ddp(verify: Verifier) -> None:
    found = verify(LLAMA, against="ddp", tp=2)
    assert found.same and found.reference == "torch's DistributedDataParallel on 2 ranks", str(found)


def test_large_tensors_are_sampled(verify: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.run import verify as module

    few = dataclasses.replace(module.RecordRequest(), elements=500)
    monkeypatch.setattr(module, "RecordRequest", lambda **more: dataclasses.replace(few, **more))
    found = verify(LLAMA, plugin="zero2")
    assert found.same and any("a sample of the elements was compared" in note for note in found.notes)
    planted = verify(LLAMA, plant="scale 1/dp twice")
    assert "averaged twice over dp" in planted.causes[0]
