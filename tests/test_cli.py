"""What `--help` shows, command by command."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from pit.cli import cli


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*words, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


@pytest.mark.parametrize("words", list(commands(cli)), ids=" ".join)
def test_help_says_what_a_command_does_and_keeps_the_lines_of_its_examples(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*words, "--help"]).output
    assert "\\b" not in shown
    assert "\\\\" not in shown
    what = shown.split("\n\n")[1].strip()
    assert len(what) > 10
    after = shown.partition("Example")[2]
    if after:
        assert after.split("\n")[1].startswith("    "), "an example stands in a line of its own"
