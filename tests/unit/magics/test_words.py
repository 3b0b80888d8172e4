"""What is typed after a magic."""

import pytest
from IPython.core.magic_arguments import argument, magic_arguments

from magics.words import parse
from workbench.errors import ConfigError


@magic_arguments()
@argument("-n", "--nproc-per-node", type=int)
@argument("--config")
@argument("--grad-layers")
@argument("names", nargs="*")
def dist_thing(line: str) -> None:
    """A magic."""


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--nproc_per_node 2", "nproc_per_node", 2),
        ("--config 'my spec.toml'", "config", "my spec.toml"),
        ('--config="my spec.toml"', "config", "my spec.toml"),
        (r"--grad-layers layers\.0", "grad_layers", r"layers\.0"),
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
            "%dist_thing: '--confg' is not understood: did you mean --config?; %dist_thing? lists all arguments",
        ),
        (
            "-n two",
            "%dist_thing: argument -n/--nproc-per-node: invalid int value: 'two'; %dist_thing? lists all arguments",
        ),
        ("a 'b", 'a quote is not closed in "a \'b": add the closing quote'),
    ],
)
def test_what_is_wrong_is_one_line_that_says_where_to_look(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(dist_thing, line)
    assert str(caught.value) == said
