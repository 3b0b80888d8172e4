"""Evaluation through a strategy, without processes: replicas, vocabulary slices and stages are played in turn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from workbench.core.mesh import Mesh
from workbench.engine.frameworks.torch_common import generate as module
from workbench.engine.frameworks.torch_common.generate import gather_rows, generate, shares, token_loss

VOCABULARY = 16


def scores(tokens: torch.Tensor) -> torch.Tensor:
    """Logits [rows, length, vocabulary] of a fixed causal "model" (it sees one token)."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))
    return table[tokens]


class Rank:
    """A strategy of one rank of a mesh: the last stage has logits, sliced over tp or whole."""

    def __init__(self, mesh: Mesh, rank: int, sliced: bool) -> None:
        self.mesh, self.rank, self.sliced = mesh, rank, sliced
        self.coordinates = mesh.coordinates(rank)
        self.calls = 0

    def forward(self, batch: dict) -> object:
        self.calls += 1
        if self.coordinates.pp < self.mesh.pp - 1:
            return None
        logits = scores(batch["input_ids"])
        return SimpleNamespace(logits=logits.chunk(self.mesh.tp, -1)[self.coordinates.tp] if self.sliced else logits)


def on_every_rank(mesh: Mesh, sliced: bool, work, monkeypatch: pytest.MonkeyPatch) -> list:
    """Results of ``work(strategy)`` on each rank: sums are repeated until all ranks' parts are known."""
    known: list[torch.Tensor] = []
    while True:
        parts: list[list[torch.Tensor]] = []
        results = []
        for rank in range(mesh.world_size):
            own: list[torch.Tensor] = []

            def add(tensor: torch.Tensor, own: list[torch.Tensor] = own) -> torch.Tensor:
                own.append(tensor.clone())
                if len(own) <= len(known):
                    tensor.copy_(known[len(own) - 1])
                return tensor

            monkeypatch.setattr(module, "sum_over_ranks", add)
            results.append(work(Rank(mesh, rank, sliced)))
            parts.append(own)
        assert len({len(own) for own in parts}) == 1, "every rank takes part in every sum"
        if len(known) == len(parts[0]):
            return results
        known.append(torch.stack([own[len(known)] for own in parts]).sum(0))


MESHES = [
    (Mesh(), False),
    (Mesh(dp=2), False),
    (Mesh(tp=2), True),
    (Mesh(tp=2), False),
    (Mesh(pp=2), False),
    (Mesh(dp=2, pp=2, tp=2), True),
    (Mesh(dp=3), False),
]


@pytest.mark.parametrize(("mesh", "sliced"), MESHES)
def test_token_loss_is_that_of_one_process(mesh: Mesh, sliced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randint(VOCABULARY, (7, 9), generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.cross_entropy(scores(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    found = on_every_rank(mesh, sliced, lambda s: token_loss(s, tokens, vocabulary=VOCABULARY, rows=2), monkeypatch)
    assert found == pytest.approx([float(expected)] * mesh.world_size, abs=1e-5)


@pytest.mark.parametrize(("mesh", "sliced"), MESHES)
def test_the_same_text_under_every_plan(mesh: Mesh, sliced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(strategy: Rank) -> list[int]:
        return generate(strategy, [0, 3], tokens=4, vocabulary=VOCABULARY, seed=2)

    alone = generate(Rank(Mesh(), 0, False), [0, 3], tokens=4, vocabulary=VOCABULARY, seed=2)
    assert len(alone) == 6
    assert on_every_rank(mesh, sliced, work, monkeypatch)[0] == alone


def test_only_the_first_replica_generates() -> None:
    strategy = Rank(Mesh(dp=2), 1, False)
    assert generate(strategy, [0], tokens=4, vocabulary=VOCABULARY) == [0]
    assert not strategy.calls


def test_rows_of_replicas_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.randn(5, 3)

    def work(strategy: Rank) -> torch.Tensor:
        last = strategy.coordinates.pp == strategy.mesh.pp - 1
        own = shares(5, strategy)[strategy.coordinates.dp]
        return gather_rows(strategy, whole[own] if last else None, 5, 3)

    for found in on_every_rank(Mesh(dp=2, pp=2, tp=2), False, work, monkeypatch):
        assert torch.equal(found, whole)
