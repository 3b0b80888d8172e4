import pytest

from workbench import errors


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), ([0, 1, 2], "ranks 0-2"), ([5, 0, 1, 7], "ranks 0-1, 5, 7"), ([1, 1], "rank 1")],
)
def test_format_ranks(ranks: list[int], text: str) -> None:
    assert errors.format_ranks(ranks) == text


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {word for line in errors.__doc__.splitlines() for word in line.split() if word.endswith("Error")}
    defined = {name for name, kind in vars(errors).items() if isinstance(kind, type) and name.endswith("Error")}
    assert drawn - {"ValueError)"} == defined


def test_ipython_prints_the_message_without_our_frames() -> None:
    assert errors.ConfigError("tp = 3").__class__._render_traceback_(errors.ConfigError("tp = 3")) == [
        "ConfigError: tp = 3"
    ]
    failure = errors.RunError("run failed", traceback="line of the cell\n")
    assert failure._render_traceback_() == ["line of the cell", "RunError: run failed"]
