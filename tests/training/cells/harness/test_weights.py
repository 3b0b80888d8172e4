"""The trained model in the notebook: whole weights, whatever plan trained them, and what ``from_pretrained`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from magics.model import ModelMagics
from tests.engine.rank_pool import RankPool
from tests.shell import bare_shell
from tests.training.cells.harness import plain
from tests.training.cells.harness.case import Case, load_cases
from tests.training.cells.harness.trained import train_case
from workbench.core.config import TrainSpec
from workbench.errors import ConfigError
from workbench.run.reader import RunReader

CASES = load_cases()
EACH = [("llama_own_loss", plan) for plan in ("zero2", "tp", "pp")] + [
    ("tied_weights", "ddp"),
    ("batch_norm", "1 rank"),
]


def trained_plainly(case: Case) -> Any:
    """The cell's model after the plain loop of one process."""
    spec = TrainSpec.from_options(case.options("1 rank"))
    state = torch.get_rng_state()
    plain.seed(spec.seed)
    names: dict[str, Any] = {"spec": spec, "__name__": "__main__"}
    exec(compile(case.cell, "<cell>", "exec"), names)
    plain.train(names)
    torch.set_rng_state(state)
    return names["model"]


@pytest.mark.parametrize(("name", "plan"), EACH)
def test_the_weights_come_back_whole(name: str, plan: str, pool: RankPool, tmp_path: Path) -> None:
    case = CASES[name]
    run, failure = train_case(pool, case, plan, final_checkpoint=True)
    assert run is not None
    assert not failure
    before = torch.get_rng_state()
    model = run.load_model()
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    expected = trained_plainly(case)
    found = run.state_dict()
    for key, wanted in expected.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[key], wanted, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[key], wanted.detach(), rtol=1e-3, atol=1e-5)
    for key, buffer in expected.named_buffers():
        torch.testing.assert_close(dict(model.named_buffers())[key], buffer, rtol=1e-3, atol=1e-5)
    passed = run.load_model(expected)  # into a model of the notebook
    assert passed is expected
    assert all(torch.equal(a, b) for a, b in zip(passed.parameters(), model.parameters(), strict=True))
    _check_pretrained(run, model, tmp_path / "pretrained")


def _check_pretrained(run: RunReader, model: Any, out: Path) -> None:
    if not hasattr(model, "save_pretrained"):
        with pytest.raises(ConfigError, match="not a model of the transformers library"):
            run.save_pretrained(out)
        return
    again = type(model).from_pretrained(run.save_pretrained(out))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_another_model_is_refused_and_left_as_it_is(pool: RankPool) -> None:
    run, _ = train_case(pool, CASES["tied_weights"], "1 rank", final_checkpoint=True)
    assert run is not None
    other = torch.nn.Linear(3, 2)
    before = other.weight.clone()
    with pytest.raises(ConfigError, match="made for another model"):
        run.load_model(other)
    assert torch.equal(other.weight, before)
    with pytest.raises(ConfigError, match="step 3"):
        run.load_model(step=3)


def test_the_magic_returns_assigns_or_writes_the_model(pool: RankPool, tmp_path: Path) -> None:
    run, _ = train_case(pool, CASES["llama_own_loss"], "tp", final_checkpoint=True, name="small")
    assert run is not None
    with bare_shell() as shell:
        shell.register_magics(ModelMagics)
        found = shell.run_line_magic("dist_model", "small")
        assert shell.run_line_magic("dist_model", f"small@{run.last_step} --into trained") is None
        assert all(
            torch.equal(a, b) for a, b in zip(found.parameters(), shell.user_ns["trained"].parameters(), strict=True)
        )
        shell.run_line_magic("dist_model", f"small --save {tmp_path / 'written'}")
        assert (tmp_path / "written" / "config.json").exists()
        with pytest.raises(ConfigError, match="not a variable"):
            shell.run_line_magic("dist_model", "small --into a-b")
