"""What ``log`` takes, counts and refuses on one rank, and what a reader makes of the rows of all ranks."""

from __future__ import annotations

import copy
import math
import pickle
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.checkpoint import checkpoint

from workbench.core.config import TrainSpec
from workbench.core.knobs import Knobs
from workbench.core.mesh import Coordinates, Mesh
from workbench.core.records import columns_of
from workbench.engine.base.user_log import UserLog, silenced
from workbench.engine.logged import media, observer
from workbench.engine.logged.observer import LoggedValues
from workbench.engine.logged.pace import Pace
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.logged.curves import curves
from workbench.telemetry.logged.media import Logged, image_file
from workbench.telemetry.logged.media import media as media_of
from workbench.telemetry.store import Store


class Rank:
    """A rank whose log is taken in ``run``: ``log`` as a cell sees it, and what was told."""

    def __init__(self, run: Path, *, rank: int = 0, mesh: Mesh | None = None, log: UserLog | None = None) -> None:
        self.told: list[tuple[str, str]] = []
        place = (mesh or Mesh()).coordinates(rank)
        tell = lambda *told: self.told.append(told)  # noqa: E731
        strategy: Any = SimpleNamespace(rank=rank, coordinates=place, tell=tell, spec=TrainSpec())
        self.run, self.writer, self.log = run, RankLogWriter(run, rank, flush_s=60), log or UserLog()
        self.watch = LoggedValues(self.log, strategy, self.writer)

    def step(self, step: int) -> None:
        self.watch.begins(step, 0)
        self.watch.phase("forward_backward")

    def rows(self, table: str = "values") -> list[tuple[Any, ...]]:
        """End the run; its rows, without the rank."""
        self.watch.close()
        self.writer.close()
        store = Store(self.run)
        store.refresh()
        names = [name for name in columns_of(table) if name != "rank"]
        return list(zip(*(store.table(table)[name].tolist() for name in names), strict=True))


@pytest.fixture
def rank(tmp_path: Path) -> Rank:
    return Rank(tmp_path)


def test_calls_of_one_step_are_summed_up_as_asked(rank: Rank) -> None:
    rank.step(1)
    for value in (1.0, torch.tensor([2.0], requires_grad=True), np.float32(6)):
        for reduce in ("mean", "sum", "max", "min", None):
            rank.log(f"own {reduce}", value, reduce)
    rank.watch.ends(1)
    assert rank.rows() == [
        (1, "own mean", "mean", 3.0, 3),
        (1, "own sum", "sum", 9.0, 3),
        (1, "own max", "max", 6.0, 3),
        (1, "own min", "min", 1.0, 3),
        (1, "own None", "none", 3.0, 3),
    ]


def test_nan_stays_nan_and_infinity_infinite(rank: Rank) -> None:
    rank.step(1)
    for name, values in {"a": (1.0, math.nan, 2.0), "b": (math.inf, 1.0)}.items():
        for value in values:
            rank.log(name, value, "max")
            rank.log(f"{name} mean", value)
    found = {row[1]: row[3] for row in rank.rows()}
    assert math.isnan(found["a"]) and math.isnan(found["a mean"]) and found["b"] == found["b mean"] == math.inf


def test_a_value_changed_later_is_logged_as_it_was(rank: Rank) -> None:
    rank.step(1)
    weight = torch.tensor(3.0)
    knob = Knobs().knob("temperature", 0.5)
    rank.log("weight", weight)
    rank.log("temperature", knob)
    weight.fill_(7.0)
    assert [(row[1], row[3]) for row in rank.rows()] == [("weight", 3.0), ("temperature", 0.5)]


def test_where_a_call_belongs(rank: Rank) -> None:
    """To the step; after it to the step that was; in an evaluation to an own curve of that step."""
    rank.step(4)
    rank.log("own", 1)
    rank.watch.ends(4)
    rank.watch.phase("evaluate")
    rank.log("own", 2)
    rank.watch.phase("checkpoint")
    rank.log("own", 3)
    rank.step(5)
    rank.log("own", 4)
    assert [row[:4] for row in rank.rows()] == [
        (4, "own", "mean", 1.0),
        (4, "eval/own", "mean", 2.0),
        (4, "own", "mean", 3.0),
        (5, "own", "mean", 4.0),
    ]


def test_what_the_top_level_of_a_cell_logs_is_of_step_0(tmp_path: Path) -> None:
    log = UserLog()
    log("parameters", 12)
    log.suspend()
    log("parameters", 13)  # a forward pass while the plan is prepared
    assert Rank(tmp_path, log=log).rows() == [(0, "parameters", "mean", 12.0, 1)]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_forward_pass_repeated_for_backward_counts_once_and_its_hooks_count(rank: Rank, reentrant: bool) -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        rank.log("forward", x.detach().sum(), "sum")
        y = x.sin()
        if y.requires_grad:
            y.register_hook(lambda gradient: rank.log("hook", gradient.sum(), "sum"))
        return y.exp()

    def nested(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, x, use_reentrant=reentrant)

    x = torch.ones(3, requires_grad=True)
    rank.step(1)
    checkpoint(nested, x, use_reentrant=reentrant).sum().backward()
    found = {row[1]: row[3:] for row in rank.rows()}
    assert found["forward"] == (3.0, 1)
    assert found["hook"][0] == pytest.approx(3 * math.exp(math.sin(1.0))) and found["hook"][1] == 1


def test_a_compiled_model_logs_as_it_does_without(rank: Rank) -> None:
    @torch.compile(backend="eager")
    def forward(x: torch.Tensor) -> torch.Tensor:
        rank.log("mean", x.mean())
        return x * 2

    for step in (1, 2, 3):
        rank.step(step)
        forward(torch.full((4,), float(step)))
    assert [row[3:] for row in rank.rows()] == [(1.0, 1), (2.0, 1), (3.0, 1)]


def test_what_is_silenced_or_taken_back_is_not_logged(rank: Rank) -> None:
    rank.step(1)
    with silenced():
        rank.log("own", 1)
    rank.log("own", 2)
    rank.watch.rolled_back(0)
    rank.step(1)
    rank.log("own", 3)
    assert [row[3] for row in rank.rows()] == [3.0]


@pytest.mark.parametrize(
    ("name", "value", "reduce", "part"),
    [
        ("own", torch.ones(2, 3), "mean", "a tensor of shape (2, 3)"),
        ("own", np.ones(4), "mean", "an array of shape (4,)"),
        ("own", "high", "mean", "a str is not a single real number"),
        ("own", 10**400, "mean", "int too large to convert to float"),
        ("own", 1.0, ["mean"], "reduce is one of"),
        ("own", 1j, "mean", "a complex is not a single real number"),
        ("own", None, "mean", "a NoneType"),
        ("own", 1, "average", 'reduce is one of "mean"'),
        (7, 1, "mean", "a name is a text"),
        ("a" * 101, 1, "mean", "a name is a text"),
    ],
)
def test_what_cannot_be_logged_is_told_once(rank: Rank, name: Any, value: Any, reduce: Any, part: str) -> None:
    for step in (1, 2):
        rank.step(step)
        rank.log(name, value, reduce)
        rank.log("good", 1)
    assert [row[1] for row in rank.rows()] == ["good", "good"]
    assert len(rank.told) == 1 and part in rank.told[0][1]


def test_another_reduction_of_a_name_is_told_and_the_first_stays(rank: Rank) -> None:
    rank.step(1)
    for reduce in ("sum", "max", "max"):
        rank.log("own", 2, reduce)
    assert rank.rows() == [(1, "own", "sum", 6.0, 3)]
    assert len(rank.told) == 1 and "'sum' stays in force" in rank.told[0][1]


def test_ten_thousand_names_are_bounded_with_one_warning(rank: Rank) -> None:
    for step in (1, 2):
        rank.step(step)
        for number in range(10_000):
            rank.log(f"sample {number}", number)
    assert len({row[1] for row in rank.rows()}) == observer.MOST_NAMES
    assert len(rank.told) == 1 and "left out" in rank.told[0][1]


def test_copies_share_the_log_and_another_process_has_none(rank: Rank) -> None:
    rank.step(1)
    copy.deepcopy({"log": rank.log})["log"]("own", 1)
    pickle.loads(pickle.dumps(rank.log))("own", 5)
    assert [row[3] for row in rank.rows()] == [1.0]


# ----------------------------------------------------------------------------------------------------- images and texts


def shown(run: Path) -> list[Logged]:
    store = Store(run)
    store.refresh()
    return media_of(store.table("media"), run)


def test_images_come_back_as_they_were(rank: Rank) -> None:
    figure = matplotlib.figure.Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2])
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    images = {
        "grey": grey,
        "tensor": torch.zeros(3, 5, 7).index_fill(0, torch.tensor([1]), 1.0),
        "mask": grey > 5,
        "pil": Image.new("P", (6, 2)),
        "figure": figure,
        "range": np.array([[-1.0, 3.0], [math.nan, 1.0]]),
        "wide": np.array([[0, 60_000], [30_000, 15_000]], dtype=np.uint16),
        "widest": np.array([[-1.5e308, 1.5e308]]),
    }
    rank.step(2)
    for name, image in images.items():
        rank.log.image(name, image)
    rank.rows()
    found = {one.name: (one.width, one.height, np.asarray(Image.open(one.file))) for one in shown(rank.run)}
    assert {name: size[:2] for name, size in found.items()} == {
        "grey": (4, 3), "tensor": (7, 5), "mask": (4, 3), "pil": (6, 2), "figure": (200, 100), "range": (2, 2),
        "wide": (2, 2), "widest": (2, 1),
    }  # fmt: skip
    np.testing.assert_array_equal(found["grey"][2], grey)
    np.testing.assert_array_equal(found["tensor"][2], np.broadcast_to([0, 255, 0], (5, 7, 3)))
    np.testing.assert_array_equal(found["mask"][2], 255 * (grey > 5))
    np.testing.assert_array_equal(found["range"][2], [[0, 255], [64, 128]])
    np.testing.assert_array_equal(found["wide"][2], [[0, 255], [128, 64]])
    np.testing.assert_array_equal(found["widest"][2], [[0, 255]])
    assert not rank.told


def test_images_and_texts_are_bounded_in_number_and_size(rank: Rank) -> None:
    for step in range(1, 301):
        rank.step(step)
        rank.log.text("words", "w" * 20_000)
        rank.log.image("small", np.full((2, 2), step % 256, dtype=np.uint8))
        rank.watch._media.finish()
    rank.log.image("large", np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8))
    rank.rows()
    found = shown(rank.run)
    small = [one for one in found if one.name == "small"]
    assert media.MOST_KEPT // 4 < len(small) < media.MOST_KEPT and small[0].step == 1 and small[-1].step > 280
    assert len(list(rank.run.glob("rank-*/media/*.png"))) == len(small) + 1
    texts = [one.text for one in found if one.kind == "text"]
    assert len(texts) < 3 * media.MOST_KEPT and max(map(len, texts)) < media.LONGEST_TEXT + 100
    (large,) = (one for one in found if one.name == "large")
    assert large.file is not None and large.file.stat().st_size <= media.MOST_BYTES


@pytest.mark.parametrize(
    ("image", "part"),
    [
        ([[1, 2]], "a list is not an image"),
        (np.ones((2, 2, 2)), "no dimension is 1, 3 or 4"),
        (np.ones(5), "shape (5,)"),
        (np.ones((0, 3)), "shape (0, 3)"),
        (torch.ones(2, 2, dtype=torch.complex64), "is not an image"),
        (types.SimpleNamespace(savefig=lambda out, **_: {}["backend"]), "'backend'"),
    ],
)
def test_what_is_no_image_is_told_once(rank: Rank, image: Any, part: str) -> None:
    rank.step(1)
    rank.log.image("own", image)
    rank.log.image("own", image)
    rank.log.text("said", 5)  # type: ignore[arg-type]
    assert rank.rows("media") == []
    assert [part in rank.told[0][1], "not a text" in rank.told[1][1]] == [True, True] and len(rank.told) == 2


def test_images_come_from_the_first_replica_unless_all_are_asked_for(tmp_path: Path) -> None:
    mesh = Mesh(dp=2, tp=2)
    for number in range(4):
        rank = Rank(tmp_path, rank=number, mesh=mesh)
        rank.step(1)
        rank.log.text("first", "a")
        rank.log.text("every", "b", every_rank=True)
        rank.watch.close()
        rank.writer.close()
    found = [(one.name, one.rank) for one in shown(tmp_path)]
    assert sorted(found) == [("every", 0), ("every", 1), ("every", 2), ("every", 3), ("first", 0)]
    assert Coordinates(dp=0, pp=0, tp=0) == mesh.coordinates(0)


def test_a_file_outside_the_run_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "run").mkdir()
    assert image_file(tmp_path / "run", "../secret.png") is None


# ------------------------------------------------------------------------------------------------------------- reading


def rows_of(*rows: tuple[int, int, str, str, float, int]) -> dict[str, np.ndarray]:
    columns = zip(*rows, strict=True)
    kinds = {"step": int, "rank": int, "name": object, "reduce": object, "value": float, "count": int}
    return {name: np.array(values, dtype=kinds[name]) for name, values in zip(kinds, columns, strict=True)}


def test_a_mean_over_ranks_weighs_each_call_alike() -> None:
    rows = rows_of((1, 0, "own", "mean", 2.0, 3), (1, 1, "own", "mean", 6.0, 1), (2, 1, "own", "mean", 5.0, 2))
    (curve,) = curves(rows, Mesh(dp=2))
    assert (curve.label, curve.steps.tolist(), curve.values.tolist()) == ("own", [1, 2], [3.0, 5.0])


def test_other_reductions_and_ranks_that_are_not_combined() -> None:
    rows = rows_of(*(
        (1, rank, reduce, reduce, value, 1)
        for reduce in ("sum", "max", "min", "none")
        for rank, value in ((0, 2.0), (1, -3.0))
    ))  # fmt: skip
    found = {curve.label: curve.values.tolist() for curve in curves(rows, Mesh(dp=2))}
    assert found == {"sum": [-1.0], "max": [2.0], "min": [-3.0], "none/rank 0": [2.0], "none/rank 1": [-3.0]}


def test_ranks_of_a_tensor_parallel_group_count_once_and_stages_each() -> None:
    mesh = Mesh(dp=2, pp=2, tp=2)
    rows = rows_of(*((1, rank, "own", "sum", 1.0, 1) for rank in range(8)))
    assert curves(rows, mesh)[0].values.tolist() == [4.0]
    only = rows_of((1, 3, "own", "sum", 1.0, 1), (1, 99, "own", "sum", 1.0, 1))
    assert curves(only, mesh)[0].values.tolist() == [1.0], "a later rank of the group speaks where it is alone"


def test_many_names_are_taken_at_an_interval_that_is_said_once(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 10 ms on this clock, and each look at it 50 microseconds: 30 names are far over half of 1 %. What
    comes at every fifth step, in an evaluation, or from another rank's point of view is as before."""
    clock = [0.0]

    def now() -> float:
        clock[0] += 5e-5
        return clock[0]

    monkeypatch.setattr(observer.time, "perf_counter", now)
    watch = 0
    for step in range(1, 1001):
        rank.watch.begins(step, watch)
        watch = rank.watch.propose(step)
        rank.watch.phase("forward_backward")
        for number in range(30):
            rank.log(f"name {number}", float(step))
        if step % 5 == 0:
            rank.log("rare", float(step))
        clock[0] += 0.01
        rank.watch.ends(step)
        rank.watch.accounted(step, rank.watch.cost_ms)
        rank.log("after", 1.0)
        if step % 100 == 0:
            rank.watch.phase("evaluate")
            rank.log("name 1", float(step))
    rows = rank.rows()
    steps = [step for step, name, *_ in rows if name == "name 0"]
    assert [row[0] for row in rows if row[1] == "rare"] == list(range(5, 1001, 5))
    assert [row[0] for row in rows if row[1] == "eval/name 1"] == list(range(100, 1001, 100))
    assert {step for step, name, *_ in rows if name == "after"} >= set(steps[10:-1])
    # 31 values of 50 us and as much for writing them, against half of 1 % of about 10 ms
    assert 10 < len(steps) < 40 and steps[:10] == list(range(1, 11))
    assert [name for name, _ in rank.told] == ["log_interval"] and "every" in rank.told[0][1]


def test_few_names_are_taken_whatever_they_cost() -> None:
    pace = Pace(0.01)
    for step in range(1, 50):
        pace.came(step, [str(number) for number in range(10)])
        pace.account(5.0, 10.0, taken=True)
    assert len(pace.frequent) == 10 and not pace.skips_next()
    for step in range(50, 70):
        pace.came(step, ["one more"])
    assert pace.skips_next()
