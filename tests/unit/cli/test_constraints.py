"""The script that writes the tested versions into pyproject.toml."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / ".ci" / "constraints.py"
TEXT = """[project]
name = "x"

[tool.uv]
compile-bytecode = true
list = [
    "a[b]",
]

[tool.ruff]
line-length = 120
"""


@pytest.fixture(scope="module")
def script():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("constraints", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_and_versions_only(script) -> None:  # type: ignore[no-untyped-def]
    found = [("Torch", "2.13.0+cu130"), ("typing_extensions", "4.1"), ("dist-workbench", "0.1"), ("pip", "24")]
    assert script.constraints(found) == ["torch==2.13.0", "typing-extensions==4.1"]


def test_the_list_is_written_and_written_over(script) -> None:  # type: ignore[no-untyped-def]
    once = script.rewrite(TEXT, ["a==1", "b==2"])
    assert tomllib.loads(once)["tool"]["uv"]["constraint-dependencies"] == ["a==1", "b==2"]
    assert once.index("constraint-dependencies") < once.index("[tool.ruff]")
    twice = script.rewrite(once, ["c==3"])
    assert tomllib.loads(twice)["tool"]["uv"]["constraint-dependencies"] == ["c==3"]
    assert script.rewrite(twice, ["a==1", "b==2"]) == once and once.count(script.COMMENT) == 1


def test_without_the_table_it_says_so(script) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"no table \[tool.uv\]"):
        script.rewrite('[project]\nname = "x"\n', ["a==1"])
