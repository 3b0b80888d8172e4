"""What is typed after a magic."""

import pytest
from IPython.core.magic_arguments import argument, magic_arguments

from magics.words import parse
from workbench.errors import ConfigError


@magic_arguments()
@argument("-n", "--nproc-per-node", type=int, metavar="N")
@argument("--config", metavar="FILE")
@argument("names", nargs="*")
def dist_thing(line: str) -> None:
    """A magic."""


@magic_arguments()
@argument("--grad-layers")
@argument("--expression-of-layers-to-leave-out")
@argument("--expression-of-layers-to-watch-beside-the-others")
@argument("names", nargs="*")
def dist_long(line: str) -> None:
    """A magic whose arguments fill more than a line."""


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--nproc_per_node 2", "nproc_per_node", 2),
        ("--config 'my spec.toml'", "config", "my spec.toml"),
        ('--config="my spec.toml"', "config", "my spec.toml"),
        (r"--config layers\.0", "config", r"layers\.0"),
        ("a 'b c' # and why", "names", ["a", "b c"]),
        ("a#b", "names", ["a#b"]),
    ],
)
def test_words_are_split_as_a_shell_does_but_for_backslashes(line: str, name: str, value: object) -> None:
    assert getattr(parse(dist_thing, line), name) == value


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "--confg x",
            "%dist_thing: '--confg' is not understood: did you mean --config?; "
            "usage: %dist_thing [-n N] [--config FILE] [names ...]",
        ),
        (
            "-n two",
            "%dist_thing: argument -n/--nproc-per-node: 'two' is not a whole number; "
            "usage: %dist_thing [-n N] [--config FILE] [names ...]",
        ),
        ("a 'b", 'a quote is not closed in "a \'b": add the closing quote'),
    ],
)
def test_what_is_wrong_is_one_line_that_says_where_to_look(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(dist_thing, line)
    assert str(caught.value) == said


def test_long_usage_is_not_shown():
    with pytest.raises(ConfigError, match=r"'--layers' is not understood.*; %dist_long\? lists all arguments"):
        parse(dist_long, "--layers 0")
