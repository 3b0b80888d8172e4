"""What each rank holds, against closed forms and against torch's own way to cut."""

import math

import pytest
import torch

from tests.unit.planner.models import FFN, HIDDEN, LAYERS, TOKENS, VOCAB, job, transformer
from workbench.core.mesh import Coordinates
from workbench.planner.holdings import memory, parts
from workbench.planner.model import ModelDescription

ELEMENTS = 2 * VOCAB * HIDDEN + 2 * LAYERS * HIDDEN * FFN
TENSORS = 2 + 2 * LAYERS
FIRST = Coordinates(dp=0, pp=0, tp=0)


def held(text: str, here: Coordinates = FIRST, **changes):
    model = transformer()
    return memory(model, job(text, model, **changes), here)


def test_a_replica_holds_everything():
    found = held("ddp2")
    assert (found.parameters, found.gradients) == (4 * ELEMENTS, 4 * ELEMENTS)
    assert found.state == 8 * ELEMENTS + 4 * TENSORS
    assert found.buffers == 64 + 4 * ELEMENTS
    assert held("ddp1").buffers == 64


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_zero_cuts_padded_slices_of_every_parameter(ranks):
    model = transformer()
    slices = sum(-(-parameter.elements // ranks) for parameter in model.parameters)
    first, second = held(f"zero1 dp{ranks}"), held(f"zero2 dp{ranks}")
    assert first.parameters == second.parameters == 4 * ELEMENTS
    assert first.state == second.state == 12 * slices + 4 * TENSORS, "fp32 copy and two moments of each slice"
    assert (first.gradients, second.gradients) == (4 * ELEMENTS, 4 * slices)


@pytest.mark.parametrize("ranks", [2, 3, 5, 64])
def test_fsdp_cuts_rows_as_torch_does(ranks):
    model = transformer()
    plan = job(f"fsdp{ranks}", model)
    for dp in range(ranks):
        found = list(parts(model, plan, Coordinates(dp=dp, pp=0, tp=0)))
        chunks = [torch.empty(part.parameter.shape).chunk(ranks) for part in found]
        expected = [each[dp].numel() if dp < len(each) else 0 for each in chunks]
        assert [part.slice_elements for part in found] == expected
    assert sum(memory(model, plan, Coordinates(dp=dp, pp=0, tp=0)).parameters for dp in range(ranks)) == 4 * ELEMENTS


def test_replicas_of_all_shards_hold_the_same():
    model = transformer()
    plan = job("fsdp4 replicate2", model)
    sizes = [memory(model, plan, Coordinates(dp=dp, pp=0, tp=0)).parameters for dp in range(4)]
    assert sizes[:2] == sizes[2:]
    assert sum(sizes) == 2 * 4 * ELEMENTS


def test_tensor_parallel_ranks_pad_the_vocabulary():
    found = held("tp2")
    rows = math.ceil(VOCAB / 2)
    assert found.parameters == 4 * (2 * rows * HIDDEN + LAYERS * HIDDEN * FFN)


@pytest.mark.parametrize("text", ["pp2", "pp4", "tp2 pp2"])
def test_stages_hold_the_model_between_them(text):
    model = transformer()
    plan = job(text, model)
    whole = memory(model, job("tp2", model), FIRST).parameters if plan.plan.tp > 1 else 4 * ELEMENTS
    stages = [memory(model, plan, Coordinates(dp=0, pp=pp, tp=0)) for pp in range(plan.plan.pp)]
    assert sum(stage.parameters for stage in stages) == whole
    assert sum(stage.state for stage in stages) == 2 * whole + 4 * TENSORS


def test_a_tied_weight_is_on_both_stages():
    model = transformer()
    tied = ModelDescription(
        **{**vars(model), "parameters": model.parameters[:-1], "tied": {"embed.weight": ("head",)}},
    )
    plan = job("pp2", tied)
    names = [[part.parameter.name for part in parts(tied, plan, Coordinates(dp=0, pp=pp, tp=0))] for pp in range(2)]
    assert [stage.count("embed.weight") for stage in names] == [1, 1]


def test_mixed_precision_keeps_copies():
    assert held("zero1 dp2", precision="bf16").parameters == 2 * ELEMENTS
    assert held("ddp2", precision="bf16").parameters == 4 * ELEMENTS, "autocast over fp32 weights"
    model = transformer()
    plan = job("tp2", model, precision="bf16")
    elements = memory(model, job("tp2", model), FIRST).parameters // 4
    assert memory(model, plan, FIRST).parameters == 2 * elements
    assert memory(model, plan, FIRST).state == 12 * elements + 4 * TENSORS


def test_activations_of_a_replica_are_those_of_its_samples():
    hidden, ffn = 4 * TOKENS * HIDDEN, 4 * TOKENS * FFN
    each = LAYERS * (hidden + 2 * ffn)
    assert held("ddp2").activations == 4 * each + 100
    assert held("ddp2", accumulate=2).activations == 2 * each + 100


def test_tensor_parallel_ranks_keep_their_share_between_split_layers():
    hidden, ffn = 4 * TOKENS * HIDDEN, 4 * TOKENS * FFN
    assert held("tp2").activations == 8 * LAYERS * (hidden + ffn) + 100, "the input of each up projection is whole"


def test_context_parallel_ranks_keep_their_positions_and_the_keys_and_values_of_all():
    each = LAYERS * 4 * TOKENS * (HIDDEN + 2 * FFN)
    keys = LAYERS * 4 * TOKENS * FFN / 2
    assert held("cp2").activations == 8 * (each + keys) / 2 + 100, "the head computes with whole sequences"
    assert held("cp2 dp2").activations == 4 * (each + keys) / 2 + 100
    assert held("cp2").parameters == held("torch ddp2").parameters
    assert held("cp2").buffers == held("torch ddp2").buffers


def test_the_first_stage_keeps_most_micro_batches():
    hidden, ffn = 4 * TOKENS * HIDDEN, 4 * TOKENS * FFN
    of_layer = 2 * (hidden + 2 * ffn)  # of a micro-batch of two samples
    found = [held("pp4", Coordinates(dp=0, pp=pp, tp=0)).activations for pp in range(4)]
    assert found == [4 * of_layer, 3 * of_layer, 2 * of_layer, of_layer + 100]


def test_what_is_not_known_is_nan():
    model = transformer()
    bare = ModelDescription(**{**vars(model), "states": {}, "activity": {}})
    found = memory(bare, job("ddp2", bare), FIRST)
    assert math.isnan(found.state)
    assert math.isnan(found.activations)
    assert found.total == 8 * ELEMENTS + 64 + 4 * ELEMENTS


def test_a_description_survives_json():
    model = transformer()
    assert ModelDescription.from_json(model.to_json()) == model
