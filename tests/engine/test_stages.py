"""torch's pipelines train as one process does, whatever the schedule and the model; each rank keeps its stages only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.engine import staged
from workbench.core.config import ParallelPlan, TrainSpec
from workbench.engine.frameworks.torch.pipeline.items import Blanks, EndOfStage, ShapeOnly
from workbench.engine.frameworks.torch.pipeline.split import check_split, cuts_of, split
from workbench.errors import ConfigError

SCHEDULES = ("1f1b", "gpipe", "interleaved", "zero-bubble")
#: on 2 ranks: name of the model and options of the plan
CASES = [
    *[("llama", {"pp": 2, "micro_batches": 4, "schedule": schedule, "clip": 0.5}) for schedule in SCHEDULES],
    *[("residual", {"pp": 2, "micro_batches": 2, "schedule": schedule, "accumulate": 2}) for schedule in SCHEDULES],
    ("tied", {"pp": 2, "micro_batches": 4, "schedule": "gpipe"}),
    ("named", {"pp": 2, "micro_batches": 2}),
    ("residual", {"clip": 0.5}),
    ("forgetful", {"pp": 2, "micro_batches": 2}),
    ("late", {"pp": 2, "micro_batches": 2}),
]


@pytest.fixture(scope="module")
def trained(torch_pool) -> list[list[Any]]:
    """What each rank found in each of ``CASES``, in one process a rank."""
    return torch_pool.run(2, "tests.engine.staged:train", cases=CASES, timeout_s=400.0)


@pytest.fixture(scope="module")
def alone(torch_pool) -> Any:
    known: dict[Any, dict[str, Any]] = {}

    def of(name: str, clip: float) -> dict[str, Any]:
        if (name, clip) not in known:
            known[name, clip] = torch_pool.run(1, "tests.engine.staged:plain", name=name, clip=clip)[0]
        return known[name, clip]

    return of


def _check(found: list[dict[str, Any]], expected: dict[str, Any], pp: int) -> None:
    for rank in found:
        assert isinstance(rank, dict), rank
        assert rank["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert rank["norms"] == pytest.approx(expected["norms"], rel=1e-4)
        for name, weight in rank["weights"].items():
            np.testing.assert_allclose(weight, expected["weights"][name], atol=1e-5, err_msg=name)
    held = [set(rank["weights"]) for rank in found]
    assert set().union(*held) <= set(expected["weights"])
    if pp > 1:
        assert not (held[0] & held[1]) and all(held), "a weight is on one stage; a tied one has two names"


@pytest.mark.parametrize("number", range(len(CASES) - 2), ids=lambda number: "-".join(map(str, CASES[number])))
def test_loss_norm_and_weights_are_those_of_one_process(trained, alone, number):
    name, options = CASES[number]
    _check([rank[number] for rank in trained], alone(name, options.get("clip", 0.0)), options.get("pp", 1))


def test_four_ranks_do_so_with_replicas(torch_pool, alone):
    cases = [
        (name, {"pp": 2, "micro_batches": 2, "schedule": schedule, "clip": 0.5})
        for name, schedule in (("llama", "1f1b"), ("residual", "gpipe"), ("llama", "zero-bubble"))
    ]
    found = torch_pool.run(4, "tests.engine.staged:train", cases=cases, timeout_s=400.0)
    for number, (name, _) in enumerate(cases):
        _check([rank[number] for rank in found], alone(name, 0.5), 2)


def test_what_a_stage_does_not_have_is_refused_in_the_first_step(trained):
    forgetful, late = [rank[-2] for rank in trained], [rank[-1] for rank in trained]
    assert "pipeline stage 1 takes more from earlier stages than the one tensor" in forgetful[1]
    assert late[0].startswith("head is called before the first module of pipeline stage 1")


def spec(ranks: int = 2, **options: Any) -> TrainSpec:
    return TrainSpec.from_options(
        {"ranks": ranks, "framework": "torch", "plugin": "hybrid", "pp": 2, "micro_batches": 2, **options}
    )


def test_each_rank_keeps_its_modules_under_their_names():
    whole = dict(staged._model("residual").named_parameters())
    for here, expected in enumerate((("place", "parts.embed", "parts.blocks.0", "parts.blocks.1"),
                                     ("parts.blocks.2", "parts.blocks.3", "parts.norm", "head"))):  # fmt: skip
        model = staged._model("residual")
        cuts = cuts_of(model, spec(), ())
        assert cuts == ["parts.blocks.2"]
        found = split(model, cuts, {0: 0, 1: 1}, here, torch.device("cpu"))
        names = [name for name, _ in model.named_parameters()]
        assert names == [name for name in (*whole, "head.weight") if name.startswith(expected)]
        assert len(model.parts.blocks) == 4
        assert [ranks for _, ranks in found.shared] == [[0, 1]], "the embedding and the head are one weight"
        assert len(found.held[here]) == len(names)
        if here == 0:
            with pytest.raises(EndOfStage) as ended:
                model(torch.zeros(2, 8, dtype=torch.long))
            assert ended.value.output.shape == (2, 8, staged.WIDTH)


@pytest.mark.parametrize(
    ("model", "named", "options", "message"),
    [
        ("named", (), {}, "it has no list of blocks. Name the modules with which the later stages begin"),
        ("named", ("nose",), {}, "pipeline_split names 'nose', which the model does not have"),
        ("named", ("neck", "head"), {}, "pipeline_split names 2 modules, and --pp 2 makes 2 stages"),
        ("named", ("neck", "body", "head"), {"schedule": "interleaved"}, "not in the order of the model"),
        ("residual", ("parts.blocks",), {}, "cannot begin with parts.blocks, which is a list"),
        ("residual", "parts.blocks.2", {}, "it is a list of names of modules"),
        ("residual", (), {"pp": 4, "ranks": 4, "micro_batches": 4, "schedule": "interleaved"},
         "--pp 4 with 2 stages each (--schedule interleaved) is more than the 4 blocks"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_split_is_refused_with_what_to_do(model, named, options, message):
    with pytest.raises(ConfigError) as refused:
        check_split(staged._model(model), spec(**options), named)
    assert message in str(refused.value)


class _Chosen(torch.nn.Module):
    """The positive rows, doubled: in a tensor of all rows, or alone."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self._alone = alone

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        chosen = torch.where(rows[:, 0] > 0)[0]
        return 2 * rows[chosen] if self._alone else rows.index_add(0, chosen, rows[chosen])


def test_the_shape_of_a_block_that_chooses_rows_is_told_unless_it_depends_on_them():
    blanks, rows = Blanks(torch.device("cpu")), torch.randn(4, 3)
    assert ShapeOnly("experts", _Chosen(alone=False), blanks)(rows).shape == (4, 3)
    with pytest.raises(ConfigError, match=r"experts is on another pipeline stage.*it depends on numbers"):
        ShapeOnly("experts", _Chosen(alone=True), blanks)(rows)


def test_what_would_differ_in_a_pipeline_is_refused():
    normed = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    with pytest.raises(ConfigError, match="would normalise each micro-batch by itself"):
        check_split(normed, spec(), ())
    with pytest.raises(ConfigError, match="compile its blocks instead"):
        check_split(torch.compile(staged._model("residual"), backend="eager"), spec(), ())
    block = torch.nn.Linear(4, 4)
    with pytest.raises(ConfigError, match="0 and 1 are the same module"):
        check_split(torch.nn.Sequential(block, block, torch.nn.Linear(4, 4)), spec(), ())
    lists = [torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2)) for _ in range(2)]
    with pytest.raises(ConfigError, match=r"several lists of blocks \(0, 1\)"):
        check_split(torch.nn.ModuleList(lists), spec(), ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "zigzag"}, "unknown schedule 'zigzag'"),
        ({"micro_batches": 1}, "pass --micro-batches 2, or --schedule gpipe"),
        ({"micro_batches": 5, "schedule": "interleaved"}, "Pass --micro-batches 4 or 6"),
        ({"micro_batches": 5, "schedule": "zero-bubble"}, "Pass --micro-batches 4 or 6"),
        ({"pp": 1, "schedule": "gpipe", "micro_batches": 1}, "pass --pp 2 or more, or leave it out"),
        ({"pp": 1, "micro_batches": 2}, "or use --accumulate without a pipeline"),
        ({"plugin": "ddp", "schedule": "gpipe", "pp": 1}, "--schedule gpipe needs --plugin hybrid, not ddp"),
        ({"framework": "colossal", "schedule": "gpipe"}, "Colossal-AI has no such schedule: use --schedule 1f1b, or"),
        (
            {"framework": "colossal", "schedule": "zero-bubble"},
            "off by 0.38 after 20 steps: use --schedule interleaved",
        ),
        ({"framework": "colossal", "schedule": "zigzag"}, "unknown schedule 'zigzag'"),
        ({"framework": "colossal", "schedule": "interleaved", "micro_batches": 5}, "Pass --micro-batches 4 or 6"),
        (
            {"framework": "colossal", "sequence_parallel": "ring_attn"},
            "--sequence-parallel ring_attn: Colossal-AI's ring",
        ),
        ({"framework": "colossal", "sequence_parallel": "rings"}, "unknown mode 'rings'"),
        ({"framework": "colossal", "sequence_parallel": "ring"}, "pass --tp 2 or more"),
        ({"framework": "colossal", "schedule": "interleaved", "pp": 1, "micro_batches": 1}, "pass --pp 2 or more"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused_with_what_to_do(options, message):
    asked = {"ranks": 2, "framework": "torch", "plugin": "hybrid", "pp": 2, "micro_batches": 2, **options}
    asked = {name: value for name, value in asked.items() if options.get("plugin") != "ddp" or name != "micro_batches"}
    with pytest.raises(ConfigError) as refused:
        ParallelPlan(**asked)
    assert message in str(refused.value)
