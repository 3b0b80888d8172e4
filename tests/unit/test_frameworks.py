"""The seam to frameworks as the notebook sees it: found by entry point, checked by its own schema, never required."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from tests.unit.fake_frameworks import NO_HOOKS, installed
from workbench.core import frameworks
from workbench.core.config import ParallelPlan, TrainSpec, check_capabilities, read_spec_options
from workbench.core.frameworks import Capability, Plugin
from workbench.errors import ConfigError
from workbench.history.row import read_row
from workbench.run import resolve as planning

COLOSSAL = "workbench.engine.frameworks.colossal.framework:COLOSSAL"
BARE = "tests.unit.fake_frameworks:BARE"


def test_todays_spec_files_and_checkpoints_are_read(tmp_path: Path) -> None:
    file = tmp_path / "spec.toml"
    file.write_text('name = "old"\n[plan]\nranks = 2\nstrategy = "colossal"\nplugin = "zero1"\n')
    expected = ParallelPlan(ranks=2, framework="colossal", plugin="zero1")
    assert TrainSpec.from_options(read_spec_options(file)).plan == expected
    kept = {"ranks": 2, "strategy": "colossal", "plugin": "zero1", "tp": 1, "pp": 1, "micro_batches": 1}
    assert ParallelPlan.recorded(kept) == expected


def test_a_framework_that_is_not_installed_can_be_shown_and_not_trained(tmp_path: Path) -> None:
    spec = TrainSpec(name="foreign", plan=ParallelPlan(ranks=2, framework="colosal", plugin="warp"))
    (tmp_path / "spec.toml").write_text(tomli_w.dumps(spec.to_toml()))
    assert TrainSpec.from_options(read_spec_options(tmp_path / "spec.toml")) == spec
    row = read_row(tmp_path)
    assert (row.name, row.plan) == ("foreign", "colosal warp: dp 2 on 2 ranks")
    assert row.state != "broken"
    with pytest.raises(ConfigError, match="unknown framework 'colosal': did you mean 'colossal'"):
        planning.resolve({**spec.options(), "recipe": "digits-vit"}, ranks_up=2, default_ranks=2)


def test_a_broken_framework_stops_nothing_but_its_own_training() -> None:
    with installed(colossal=COLOSSAL, bad="no_such_package.at_all:X", worse="tests.unit.fake_frameworks:NO_HOOKS"):
        assert frameworks.installed() == ["colossal", "bad", "worse"]
        assert [each.name for each in frameworks.usable()] == ["colossal"]
        assert ParallelPlan(framework="bad", plugin="any").describe() == "bad any: one rank"
        with pytest.raises(
            ConfigError, match=r"'bad' is installed but broken: no_such_package\.at_all:X: ModuleNotFound"
        ):
            frameworks.framework("bad")
        with pytest.raises(ConfigError, match=r"'worse' is installed but broken: .* is no Framework"):
            frameworks.framework("worse")


def test_a_plan_is_checked_by_its_own_framework() -> None:
    with installed(colossal=COLOSSAL, bare=BARE):
        assert ParallelPlan(framework="bare", plugin="solo", ranks=3).mesh.dp == 3
        with pytest.raises(ConfigError, match="--tp 2 is not available with bare solo: leave it out") as caught:
            ParallelPlan(framework="bare", plugin="solo", ranks=2, tp=2)
        assert caught.value.field == "--tp"
        with pytest.raises(ConfigError, match=r"unknown plugin 'solo': .* \(--framework bare has solo\)"):
            ParallelPlan(plugin="solo")
        found = planning.resolve({"framework": "bare", "grad_every": 0}, ranks_up=2, default_ranks=2, cell="model = 1")
        assert found.plan.plugin == "solo", "the framework's default plugin"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"save_every": 5}, r"--save-every: checkpoints: not available with bare solo \(it only trains\)"),
        ({"resume": "run@5"}, "--resume: checkpoints: not available with bare solo"),
        ({"grad_every": 2}, NO_HOOKS),
        ({"grad_layers": "fc"}, "--grad-layers: gradient statistics: not available"),
    ],
)
def test_what_a_plugin_lacks_is_refused_before_launch_where_it_is_asked_for(options: dict, words: str) -> None:
    with installed(bare=BARE):
        spec = TrainSpec.from_options({"framework": "bare", "plugin": "solo", **options})
        with pytest.raises(ConfigError, match=words):
            check_capabilities(spec)
        check_capabilities(TrainSpec.from_options({"framework": "bare", "plugin": "solo"}))


def test_what_a_plugin_lacks_has_a_reason() -> None:
    with pytest.raises(ValueError, match="plugin mute: each capability is either"):
        Plugin(name="mute", summary="", strategy="", capabilities=frozenset({Capability.FREEZABLE}))


def test_frameworks_are_described_without_any_tensor_library() -> None:
    code = (
        "import sys\n"
        "from workbench.core.frameworks import usable\n"
        "assert [each.name for each in usable()][0] == 'colossal'\n"
        "assert not {'torch', 'colossalai', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
