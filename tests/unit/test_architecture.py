"""The architecture, executable: which room may import which, that nothing runs in circles, what a room may hold.

``docs/architecture.md`` has the picture. All imports count, those within functions and ``if TYPE_CHECKING`` too.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.unit.imports import ROOT, called_names, circles, graph, imported, reached, room, sources, tree, within

DATA = ("core", "events", "rundir", "telemetry")
BELOW_RUN = (*DATA, "planner", "plots", "history", "export", "verification", "report", "cluster", "diagnosis")
#: room of ``workbench`` -> the other rooms that it may import
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "__main__": ("cli",),
    "core": (),
    "events": ("core",),
    "rundir": ("core", "events"),
    "telemetry": ("core", "events", "rundir"),
    "planner": ("core",),
    "plots": DATA,
    "history": (*DATA, "plots"),
    "export": (*DATA, "history"),
    "verification": DATA,
    "report": (*DATA, "plots", "history"),
    "cluster": ("core",),
    "diagnosis": ("core", "cluster"),
    "engine": (*DATA, "planner"),
    "tokens": ("core",),
    "recipes": ("core", "engine", "tokens"),
    "run": BELOW_RUN,
    "terminal": (*BELOW_RUN, "run"),
    "cli": (*BELOW_RUN, "run", "terminal", "tokens", "workbench"),  # its reference lists the public names
}
#: tensor libraries and frameworks: imported on ranks only
FRAMEWORKS = ("torch", "colossalai", "transformers", "tensorflow", "oneflow", "deepspeed", "megatron", "mpi4py")
#: rooms of the engine that start on ranks of any framework
WITHOUT_TENSORS = ("base", "loop", "agree", "watch.host")
MOST_FILES = 20
#: one module per figure: a room that grows with what is drawn
ROOMS_OF_MANY = {"workbench.plots"}


def top(module: str) -> str:
    """``workbench.engine.loop.trainer`` -> ``engine``; ``widgets``, ``magics`` and ``workbench`` are themselves."""
    first, *rest = module.split(".")
    return rest[0] if first == "workbench" and rest else first


def test_there_is_something_to_check() -> None:
    assert len(sources()) > 200
    assert "torch" in imported("workbench.engine.watch.torch.tensor_statistics", at_module_level=True)
    assert "workbench.core.mesh" in imported("workbench.core.config")


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(graph()) == []


def test_no_rooms_import_each_other_in_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for module, others in graph().items():
        rooms.setdefault(room(module), set()).update(room(other) for other in others if room(other) != room(module))
    del rooms["workbench"]  # the public names: nothing imports them from there
    assert circles(rooms) == []


def test_circles_are_found() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": []}) == [["a", "b", "c"]]


@pytest.mark.parametrize("where", MAY_IMPORT)
def test_a_room_imports_only_those_below_it(where: str) -> None:
    allowed = {where, "errors", *MAY_IMPORT[where]}
    offences = [
        f"{module} imports {other}"
        for module, others in graph().items()
        if top(module) == where
        for other in others
        if top(other) not in allowed
    ]
    assert offences == []


def test_every_room_has_its_rule() -> None:
    assert {top(module) for module in sources()} - {"workbench", "widgets", "magics"} == set(MAY_IMPORT)


def test_widgets_know_no_magics_and_no_ranks() -> None:
    offences = [
        f"{module} imports {other}"
        for module, others in graph().items()
        if top(module) == "widgets"
        for other in others
        if top(other) in ("magics", "cli", "engine", "recipes")
    ]
    assert offences == []


def test_only_load_ipython_extension_reaches_the_magics() -> None:
    reaching = {module for module, others in graph().items() if any(top(other) == "magics" for other in others)}
    assert {module for module in reaching if top(module) != "magics"} == {"workbench"}
    assert not any(within(name, "magics") for name in imported("workbench", at_module_level=True))


def test_only_ranks_import_frameworks() -> None:
    offences = [
        f"{module} imports {name}"
        for module in sources()
        if top(module) not in ("engine", "recipes", "tokens")
        for name in imported(module)
        if name.partition(".")[0] in FRAMEWORKS
    ]
    assert offences == []


@pytest.mark.parametrize("where", WITHOUT_TENSORS)
def test_rooms_of_every_framework_load_no_tensor_library(where: str) -> None:
    """Ranks of TensorFlow and OneFlow start without torch: neither these rooms nor what they import load it."""
    edges = graph(at_module_level=True)
    offences = [
        f"{module} loads {name} ({other})"
        for module in sources()
        if within(module, f"workbench.engine.{where}")
        for other in reached(module, edges)
        for name in imported(other, at_module_level=True)
        if name.partition(".")[0] in FRAMEWORKS
    ]
    assert offences == []


def test_colossalai_stands_in_its_own_room() -> None:
    """The package's name: prose may say Colossal-AI, code that needs it is in ``frameworks/colossal``."""
    word = re.compile(r"\bcolossalai\b")
    found = [
        module
        for module, path in sources().items()
        if not within(module, "workbench.engine.frameworks.colossal") and word.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_a_room_holds_at_most_twenty_files() -> None:
    files = Counter(room(module) for module, path in sources().items() if path.name != "__init__.py")
    assert {name: count for name, count in files.items() if count > MOST_FILES and name not in ROOMS_OF_MANY} == {}


def test_the_top_of_the_package_is_public_names_errors_and_the_command() -> None:
    loose = {path.name for path in (ROOT / "workbench").glob("*.py")}
    assert loose == {"__init__.py", "__main__.py", "errors.py"}


@pytest.mark.parametrize("module", ["workbench.core.records", "workbench.core.mesh", "workbench.errors"])
def test_the_vocabulary_stands_alone(module: str) -> None:
    """Neither the module, nor what a package of it holds, imports anything of ours from elsewhere."""
    own = [name for name in graph() if within(name, module)]
    assert {other for name in own for other in graph()[name] if not within(other, module)} == set()


def test_no_module_is_imported_by_a_hidden_name() -> None:
    """``importlib`` would draw an arrow that the tests above do not see: where it is used, it is for a plug-in."""
    users = {module for module in sources() if "import_module" in called_names(tree(module))}
    assert users <= PLUGIN_LOADERS


#: what imports modules by name: public names, plug-ins, warm processes, and libraries that may be absent
PLUGIN_LOADERS = {
    "workbench",
    "workbench.cluster.server.warm",
    "workbench.engine.frameworks.colossal.startup.lean_import",
    "workbench.engine.preload",
    "workbench.engine.watch.host.gpu_reader",
    "workbench.export",
    "workbench.plots",
}
