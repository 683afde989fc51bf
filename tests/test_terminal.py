"""Control characters of data, models and users are shown on a terminal, and never obeyed."""

import ast
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pit import terminal
from pit.cli import main
from pit.cli.app import cli
from pit.config import RunConfig, read_config
from pit.data.check import draw_tree
from pit.terminal import Terminal, json_line, printable, say, styled
from pit.types import Message, Preference

HOSTILE = "a\x1b[2J\x1b]52;c;eA==\x07\r\x9b31m\x7f\u202e[bold]:smile:\u2028\x00\ud800z"
"""Clear the screen, write to the clipboard, return the carriage, turn the text around, look like markup."""

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_an_escape_says_which_character_it_stands_for() -> None:
    assert printable(HOSTILE) == (r"a\x1b[2J\x1b]52;c;eA==\x07\x0d\x9b31m\x7f\u202e[bold]:smile:\u2028\x00\ud800z")


def test_text_of_every_language_stays_as_it_is() -> None:
    text = "naïve 日本\u3000語 \N{ZERO WIDTH JOINER} שלום \N{FAMILY}\t|\n\\x1b"
    assert printable(text) == text


@given(st.text(alphabet=st.characters()))
def test_nothing_printable_is_obeyed(text: str) -> None:
    assert not OBEYED.search(printable(text))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(alphabet=st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet=st.characters()), inner),
    max_leaves=8,
)


@given(VALUES)
def test_a_line_of_json_is_one_line_of_the_same_value_without_control_characters(value: Any) -> None:
    line = json_line(value)
    assert json.loads(line) == value
    assert "\n" not in line
    assert not OBEYED.search(line)
    line.encode()


def printed(*renderables: Any, width: int = 40) -> str:
    console = Terminal(width=width)
    console.file = io.StringIO()
    for renderable in renderables:
        console.print(renderable)
    return console.file.getvalue()


@given(st.text(alphabet=st.characters(), max_size=30))
def test_no_part_of_a_table_a_tree_or_a_panel_is_obeyed(text: str) -> None:
    table = Table("a", "b", title=Text(text))
    table.add_row(Text(text), Text.assemble((text, "bold"), "rest"))
    tree = Tree(Text(text))
    tree.add(Group(Text(text), Text(f"  {text}", style="dim")))
    assert not OBEYED.search(
        printed(Text(text), table, tree, Panel(Text(text), title="t"), styled((text, "red"), text))
    )


def test_styles_stay_on_the_words_that_had_them() -> None:
    """`shown` grows, and the spans move along."""
    text = Text.assemble("\x1b\x1b", ("bold\x1b", "bold"), " plain ", ("dim", "dim"))
    console = Terminal(width=80)
    segments = [s for s in console.render(text) if s.text.strip()]
    assert [(s.text, s.style.bold if s.style else None, s.style.dim if s.style else None) for s in segments] == [
        (r"\x1b\x1b", None, None),
        (r"bold\x1b", True, None),
        (" plain ", None, None),
        ("dim", None, True),
    ]


def test_cells_with_escapes_stay_in_their_columns() -> None:
    table = Table("name", "value")
    table.add_row(Text("\x1b\x1b\x1b"), Text("1"))
    table.add_row(Text("plain"), Text("2"))
    lines = [line for line in printed(table).splitlines() if line]
    assert len({len(line) for line in lines}) == 1


def test_what_looks_like_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(styled("[/nothing] ", ("[red]:smile:", "bold"))) == "[/nothing] [red]:smile:\n"
    say("[red]\x1b")
    say("[red]\x07", error=True)
    assert capsys.readouterr() == ("[red]\\x1b\n", "[red]\\x07\n")


def test_the_tree_of_an_example_shows_control_characters() -> None:
    row = Preference((Message("user", f"Why? {HOSTILE}"),), f"one {HOSTILE}", "two\x07\r")
    shown = printed(draw_tree(row), width=160)
    assert not OBEYED.search(shown)
    assert r"Why? a\x1b[2J\x1b]52;c;eA==\x07" in shown
    assert r"two\x07" in shown


def test_a_report_on_data_shows_control_characters_of_rows_and_file_names(tmp_path: Path) -> None:
    row = {"prompt": f"Why? {HOSTILE[:-2]}", "chosen": "A\x1b[31m", "rejected": "B\x9b31m"}
    (tmp_path / "x\x1b[2Jy.jsonl").write_text(f"{json.dumps(row)}\nnot json\n")
    shown = CliRunner().invoke(cli, ["data", "check", str(tmp_path)])
    assert shown.exit_code == 0
    assert not OBEYED.search(shown.output)
    assert r"\x1b[31m" in shown.output
    assert r"x\x1b[2Jy.jsonl" in shown.output.replace("\n", "").replace(" ", "") or "x\\x1b" in shown.output


@pytest.mark.parametrize("words", [["run", HOSTILE[:-2]], ["run", "tiny", "--set", f"{HOSTILE[:-2]}=3"]])
def test_an_error_shows_the_control_characters_of_what_it_names(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word.replace("\x00", "") for word in words])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("pit: error: ")
    assert not OBEYED.search(said)


def test_nothing_prints_but_through_the_terminal_module() -> None:
    """Output that programs read, as JSON or YAML, has escapes of its own, which `say` leaves."""
    root = Path(terminal.__file__).parent
    found = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("print", "click.echo", "click.secho", "Console", "sys.stderr.write", "sys.stdout.write"):
                found.add((file.relative_to(root).as_posix(), name))
    assert found == {
        ("terminal.py", "print"),
        # Lines of progress and notes to a parent, which shows them.
        ("train/log.py", "sys.stdout.write"),
    }


def test_the_printed_config_obeys_nothing_and_means_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = HOSTILE.replace("\ud800", "").replace("\x00", "")
    for more in ([], ["--json"]):
        main(["config", "demo", "--set", f"template.request={hostile}", *more])
        text = capsys.readouterr().out
        assert not OBEYED.search(text)
        file = tmp_path / "config"
        file.write_text(text)
        assert read_config(file, RunConfig()).template.request == hostile


def test_words_that_click_repeats_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([HOSTILE], ["config", "demo", HOSTILE], ["config", f"--{HOSTILE}"], ["report", "--run", HOSTILE]):
        with pytest.raises(SystemExit):
            main(words)
        assert not OBEYED.search("".join(capsys.readouterr()))
