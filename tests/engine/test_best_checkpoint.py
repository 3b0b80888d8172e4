"""The best checkpoint is one that a run can go back to, and that its steps do not replace."""

from __future__ import annotations

from tests.engine.rank_pool import RankPool


def test_a_rollback_to_the_best_trains_the_same_again(pool: RankPool) -> None:
    """The validation loss of the model is always 1, so the first evaluation is the best."""
    options = {"eval_every": 2, "save_best": "validation_loss", "plugin": "ddp"}
    ranks = pool.run(
        2, "tests.engine.steered:train", model="plain", options=options, steps=6, script={"4": [["rollback", "best"]]}
    )
    for found in ranks:
        steps = [row[0] for row in found["rows"]]
        back = steps.index(3, 3)
        assert steps == [*range(1, steps[back - 1] + 1), 3, 4, 5, 6]
        losses = {step: [row[1] for row in found["rows"] if row[0] == step] for step in (3, 4)}
        assert all(first == again for first, again in losses.values())
    best = [event for event in ranks[0]["events"] if event["kind"] == "checkpoint" and event["name"] == "best"]
    assert [(event["step"], event["value"]) for event in best] == [(2, {"name": "validation_loss", "value": 1.0})]
