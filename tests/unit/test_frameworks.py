"""The seam to frameworks as the notebook sees it: found by entry point, checked by its own schema, never required."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from tests.fake_run import make_fake_run
from tests.unit.fake_frameworks import NO_HOOKS, installed
from widgets.panel import control_set
from workbench.core import frameworks
from workbench.core.config import ParallelPlan, TrainSpec, read_spec_options
from workbench.core.frameworks import Capability, Feature, Framework, Plugin
from workbench.core.plans.capability_table import ASKED, capability_table
from workbench.core.plans.requirements import check_capabilities
from workbench.engine.agree.control import AgreedControl
from workbench.engine.agree.exchange import Alone
from workbench.engine.base.capabilities import PROTOCOLS
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Workload
from workbench.engine.faults.nonfinite import NonfiniteGuard
from workbench.engine.frameworks.torch_common.batches import check_trainable
from workbench.engine.loop.trainer import Trainer
from workbench.engine.watch.host.sampler import Progress
from workbench.errors import ConfigError
from workbench.history.row import read_row
from workbench.run.resolve import resolve
from workbench.run.run import Run
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store

CELL = "model = optimizer = dataset = criterion = 1\n"
ROOT = Path(__file__).resolve().parents[2]
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
    assert (row.name, row.plan) == ("foreign", "colosal warp2")
    assert row.state != "broken"
    with pytest.raises(ConfigError, match="unknown framework 'colosal': did you mean 'colossal'"):
        resolve({**spec.options(), "recipe": "digits-vit"}, default_ranks=2)


def test_a_broken_framework_stops_nothing_but_its_own_training() -> None:
    with installed(colossal=COLOSSAL, bad="no_such_package.at_all:X", worse="tests.unit.fake_frameworks:NO_HOOKS"):
        assert frameworks.installed() == ["colossal", "bad", "worse"]
        assert [each.name for each in frameworks.usable()] == ["colossal"]
        assert ParallelPlan(framework="bad", plugin="any").describe() == "bad any1"
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
        with pytest.raises(
            ConfigError, match=r"--plugin solo belongs to another framework: add --framework bare \(known"
        ):
            ParallelPlan(plugin="solo")
        found = resolve({"framework": "bare", "grad_every": 0}, default_ranks=2, cell=CELL).spec
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


def _with_half_precision_refused() -> Plugin:
    return Plugin(
        name="solo",
        summary="",
        strategy="",
        capabilities=frozenset(Capability) - {Capability.PIPELINED},
        lacks={Capability.PIPELINED: "every rank holds all layers"},
        refuses={Feature.FP16: "its kernels have no fp16", Feature.COMPILED: "it rewrites the forward pass"},
        untried={Feature.GPU: "nobody has one"},
    )


def test_a_feature_is_refused_untried_or_works_and_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    framework = Framework(
        name="own", title="Own", plugins=(_with_half_precision_refused(),), preload="", joined="", packages=()
    )
    found = capability_table([framework])
    signs = dict(found.rows())
    assert (signs["fp32"], signs["fp16"], signs["GPU ranks"], signs["train_step"]) == ("yes", "no", "?", "no")
    assert signs["pipeline stages"] == "no" and signs["gradient statistics"] == "yes"
    assert "fp16 with own solo: its kernels have no fp16" in found.reasons()
    assert "GPU ranks with own solo: nobody has one" in repr(found)
    assert "<th>own solo</th>" in found._repr_html_() and "<li>fp16 with own solo" in found._repr_html_()
    monkeypatch.setattr(frameworks, "framework_if_usable", lambda name: framework)
    monkeypatch.setattr(frameworks, "installed", lambda: ["own"])
    reason = r"fp16: not available with own solo \(its kernels have no fp16\)"
    assert frameworks.why_unavailable("own", "solo", Feature.FP32) == ""
    with pytest.raises(ConfigError, match=reason):
        frameworks.check_feature("own", "solo", Feature.FP16, field="--precision")
    spec = SimpleNamespace(plan=SimpleNamespace(framework="own", plugin="solo", tp=1, pp=1), precision="fp32")
    network = torch.compile(torch.nn.Linear(2, 1))
    work = Workload(
        model=network,
        optimizer=torch.optim.SGD(network.parameters()),
        data=None,
        criterion=lambda out, batch: out.sum(),
    )
    with pytest.raises(ConfigError, match=r"torch\.compile: not available with own solo"):
        check_trainable(spec, work)


def test_things_that_the_same_plugins_can_do_share_a_row() -> None:
    whole = Plugin(name="whole", summary="", strategy="", capabilities=frozenset(Capability))
    other = Plugin(name="other", summary="", strategy="", own_steps="a:b", capabilities=frozenset(Capability))
    frameworks = [
        Framework(name=name, title=name, plugins=plugins, preload="", joined="", packages=())
        for name, plugins in (("own", (_with_half_precision_refused(),)), ("two", (whole, other)))
    ]
    rows = {row[0]: row[1:] for row in capability_table(frameworks).by_framework()}
    assert rows["plugins"] == ("solo", "whole, other")
    assert rows["GPU ranks"] == ("not tried yet", "all") and rows["train_step"] == ("none", "other")
    shared = next(cells for name, cells in rows.items() if "fp32" in name.split(", "))
    assert shared == ("all", "all") and sum(len(name.split(", ")) for name in rows) == len(ASKED) + 1


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("colossal fsdp2", "fsdp is not available with colossal: .* use --framework torch --plugin fsdp"),
        ("moe2", "moe is not available with colossal: .* A Mixtral trains with --tp 2"),
        ("colossal moe", "moe is not available with colossal"),
        ("torch tp2 cp2", "--tp 2 and --cp 2: no plugin of torch takes them together .*: leave out one of them"),
        ("cp2 pp2", "--pp 2 and --cp 2: no plugin of torch takes them together"),
        ("fsdp2 cp2", "--cp 2 needs --plugin context, not fsdp"),
        ("torch cp2 compile", "--compile needs --plugin ddp or fsdp or hybrid, not context: the layers compute with"),
        ("gemini2 tp2", "--tp 2 needs --plugin hybrid or zero1 or zero2, not gemini"),
        ("zero2 pp2", "--pp 2 needs --plugin hybrid or zero1, not zero2: ZeRO-2 would reduce"),
        (
            "gemini2 compile",
            "--compile needs --plugin ddp or hybrid or zero1 or zero2, not gemini: Gemini gathers weights",
        ),
        ("torch pp2 compile", "--compile --pp 2: a pipeline of torch cuts the model into blocks"),
        ("zero1 tp2 split-gather", "--sequence-parallel split_gather needs --plugin hybrid, not zero1"),
        ("zero2 dp2 auto-placement", "--placement auto needs --plugin gemini, not zero2"),
        ("torch ddp2 offload", "--offload needs --plugin fsdp, not ddp"),
        ("pp2 zero-bubble", "--schedule zero-bubble: Colossal-AI's adds only the first micro-batch's gradient"),
    ],
)
def test_what_a_library_has_and_no_plan_offers_is_refused_with_the_reason(plan: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ParallelPlan.parse(plan)


def test_what_no_plan_offers_stands_in_the_table() -> None:
    found = capability_table()
    offered = {f"{each.name} {name}" for each in frameworks.usable() for name in each.not_offered}
    others = {"deepspeed ddp", "deepspeed pipeline", "megatron zero1"}
    assert offered == {"colossal fsdp", "colossal moe"} | others
    assert all(any(line.startswith(f"{name} is not offered: ") for line in found.reasons()) for name in offered)


@pytest.mark.parametrize("mode", ["all_to_all", "ring_attn"])
def test_modes_of_sequence_parallelism_that_no_plan_offers_are_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"--sequence-parallel {mode}: .* use split_gather or ring"):
        ParallelPlan(ranks=2, plugin="hybrid", tp=2, sequence_parallel=mode)


def test_fp8_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"--precision fp8: no plan trains in fp8.*pass --precision bf16"):
        TrainSpec.from_options({"precision": "fp8"})


def test_gemini_asks_for_half_precision() -> None:
    spec = TrainSpec.from_options({"ranks": 2, "plugin": "gemini"})
    with pytest.raises(ConfigError, match=r"fp32: not available with colossal gemini .* pass --precision bf16 or fp16"):
        check_capabilities(spec)
    check_capabilities(spec.replace(precision="bf16"))


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


def test_what_a_plugin_lacks_is_said_by_the_panel_and_refused_by_the_verbs(tmp_path: Path) -> None:
    with installed(bare=BARE):
        spec = TrainSpec(name="bare", plan=ParallelPlan(framework="bare", plugin="solo"))
        run = Run(make_fake_run(tmp_path / "run", steps=2))
        (run.path / "spec.toml").write_text(tomli_w.dumps(spec.to_toml()))
        run = Run(run.path)
        asked = {"checkpoint": None, "freeze": "fc", "clip": 1.0, "grad_every": 2, "evaluate": None}
        for name, value in asked.items():
            with pytest.raises(ConfigError, match=rf"{name}: .*not available with bare solo \(it"):
                run.ask(name, value)
        shown = {control["name"]: control for control in control_set.declared(Store(run.path))}
        assert "freezing layers: not available with bare solo (it only trains)" in shown["freeze"]["help"]
        assert shown["freeze"]["states"] == [] and shown["lr"]["states"], "in no state of the run can it be asked for"
        assert not (run.path / "control.jsonl").exists(), "nothing was asked of the ranks"


class OnlyTrains(Strategy):
    """A strategy with the core alone."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None: ...

    def prepare(self, workload: Workload) -> None: ...

    def forward_backward(self, pieces: Sequence[Any]) -> float:
        return 1.0 / len(pieces)

    def step(self) -> bool:
        return True

    def skip(self) -> None: ...

    def close(self) -> None: ...


def test_a_strategy_that_only_trains_is_trained_and_nothing_is_made_up(tmp_path: Path) -> None:
    with installed(bare=BARE):
        plan = ParallelPlan(framework="bare", plugin="solo")
        spec = TrainSpec(name="bare", plan=plan, steps=3, batch_size=4)
        work = Workload(model=None, optimizer=SimpleNamespace(param_groups=[{"lr": 0.1}]), data=Data())  # type: ignore[arg-type]
        (tmp_path / "control.jsonl").touch()
        strategy = OnlyTrains(spec, 0)
        assert not [name for name, protocol in PROTOCOLS.items() if isinstance(strategy, protocol)]
        with RankLogWriter(tmp_path, 0) as log:
            control = AgreedControl(tmp_path, Alone())
            trainer = Trainer(
                spec=spec, workload=work, strategy=strategy, control=control, log=log, progress=Progress(),
                run=tmp_path, guard=NonfiniteGuard(tmp_path, strategy, log, control),
            )  # fmt: skip
            assert trainer.run() == "finished"
            for act in (lambda: trainer.save(3, asked=True), lambda: trainer.settings.freeze("a", frozen=True)):
                with pytest.raises(ConfigError, match="not available with bare solo"):
                    act()
        store = Store(tmp_path)
        store.refresh()
        steps = store.table("steps")
        assert steps["loss"].tolist() == [1.0] * 3
        assert np.isnan(steps["grad_sq"]).all(), "no norm is known, and none is told"


class Data:
    """Batches of ones."""

    def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[torch.Tensor]:
        while True:
            yield torch.ones(4, 2)


def test_a_framework_stays_in_its_room() -> None:
    sources = [path for room in ("workbench", "widgets", "magics") for path in (ROOT / room).rglob("*.py")]
    named = [path for path in sources if "colossalai" in path.read_text(encoding="utf-8")]
    assert named and all(path.is_relative_to(ROOT / "workbench/engine/frameworks/colossal") for path in named)


@pytest.mark.parametrize("room", ["base", "loop", "agree", "watch/host"])
def test_rooms_of_ranks_that_know_no_tensor_library(room: str) -> None:
    """No module of them imports torch itself when it is loaded, so that ranks of another library can use it."""
    files = sorted((ROOT / "workbench/engine" / room).glob("*.py"))
    assert files
    for path in files:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"torch", "transformers"}, path.name
