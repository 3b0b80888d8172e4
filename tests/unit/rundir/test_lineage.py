"""Which run goes on from which: by their specs alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tomli_w

from tests.fake_run import fake_spec
from workbench.core.config import SPEC_FILE, ParallelPlan
from workbench.rundir.lineage import Branches, origin, parent


def make(home: Path, name: str, resume: str = "", plan: ParallelPlan | None = None) -> Path:
    run = home / name
    run.mkdir(parents=True)
    spec = fake_spec().replace(resume=resume)
    spec = spec if plan is None else dataclasses.replace(spec, plan=plan)
    (run / SPEC_FILE).write_text(tomli_w.dumps(spec.to_toml()))
    return run


def test_trunk_and_branches_name_each_other(tmp_path: Path) -> None:
    old = make(tmp_path, "2026-01-01-115959-old")
    trunk = make(tmp_path, "2026-01-01-120000-trunk", resume=f"{old}@5")
    branches = Branches(trunk, fake_spec().plan)
    assert branches.look() == [] and branches.words() == ""
    make(tmp_path, "2026-01-01-120001-trunk-2", resume=f"{trunk}-2@7")  # of a run whose name begins alike
    (tmp_path / "2026-01-01-120002-twig").mkdir()  # its spec is still being written
    make(tmp_path, "2026-01-01-120003-leaf", resume=f"{trunk}@newest")
    (tmp_path / "2026-01-01-120004-later").mkdir()
    (tmp_path / "2026-01-01-120004-later" / SPEC_FILE).write_text(f'schema = 99\nresume = "{trunk}@3"')
    assert branches.look() == [("leaf", "newest")]
    (tmp_path / "2026-01-01-120002-twig").rmdir()
    twig = make(tmp_path, "2026-01-01-120002-twig", resume=f"{trunk}@12")
    assert branches.look() == [("leaf", "newest"), ("twig", 12)]
    assert branches.words() == "continues in leaf from step newest, twig from step 12"
    assert parent(fake_spec().replace(resume=f"{trunk}@12")) == ("trunk", 12) and parent(fake_spec()) is None
    assert Branches(twig, fake_spec().plan).look() == []


def test_another_plan_is_named_on_both_sides(tmp_path: Path) -> None:
    first, other = fake_spec().plan, ParallelPlan.parse("tp2")
    trunk = make(tmp_path, "2026-01-01-120000-trunk")
    make(tmp_path, "2026-01-01-120001-trunk-tp2", resume=f"{trunk}@5", plan=other)
    branches = Branches(trunk, first)
    branches.look()
    assert branches.words() == "continues in trunk-tp2 from step 5, under tp2"
    resumed = dataclasses.replace(fake_spec().replace(resume=f"{trunk}@5"), plan=other)
    assert origin(resumed) == f"continues trunk from step 5, under {first.describe()}"
    assert origin(fake_spec()) == ""
