"""The page of the command line, from click's commands: usage, help, arguments and options of each."""

import inspect
import re
from collections.abc import Iterator

import click

from pit.cli.app import cli
from pit.pipeline import JOBS
from site_pages.docstrings import escaped
from site_pages.tables import code, table

JOB = "pit JOB"
"""Heading of the jobs, whose commands differ in one or two options alone."""


def commands_page() -> str:
    """Return every command with its options; the jobs of a run are one table and the options that they share."""
    return "\n\n".join([*_tools("pit", cli), *_jobs()])


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield the full name of every command but the jobs' with it, groups too."""
    yield from _commands("pit", cli)


def _commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for below in sorted(command.commands):
            yield from _commands(f"{name} {below}", command.commands[below])


def _tools(name: str, group: click.Group) -> Iterator[str]:
    for full, command in _commands(name, group):
        yield f"## {full}"
        yield from _command(full, command)


def _command(name: str, command: click.Command) -> Iterator[str]:
    with click.Context(command, info_name=name) as context:
        yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```"
        yield _help(inspect.cleandoc((command.help or "").replace("\b", "")))
        rows = [(code(", ".join(_names(option))), escaped(_meaning(option, context))) for option in _options(command)]
        if rows:
            yield table(("option", "meaning"), rows)


def _help(text: str) -> str:
    """Return a command's help: prose, then indented lines of examples as they stand."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\n+", text.strip()):
        head, *lines = paragraph.splitlines()
        if lines and lines[0].startswith("  "):
            parts += [escaped(head), "\n".join(["```text", *(line.removeprefix("  ") for line in lines), "```"])]
        else:
            parts.append(escaped(" ".join(paragraph.split())))
    return "\n\n".join(parts)


def _options(command: click.Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option) and not option.hidden]


def _names(option: click.Option) -> list[str]:
    names = [*option.opts, *option.secondary_opts]
    value = "" if option.is_flag else f" {option.metavar or option.type.name.upper().removesuffix(' RANGE')}"
    return [*names[:-1], names[-1] + value]


def _meaning(option: click.Option, context: click.Context) -> str:
    """Return help, choices and default of an option."""
    parts = [option.help or ""]
    if isinstance(option.type, click.Choice):
        parts.append(f"One of {', '.join(option.type.choices)}.")
    if option.required:
        parts.append("Required.")
    if option.show_default and isinstance(option.default, str | int | float) and not isinstance(option.default, bool):
        parts.append(f"Default: {option.default}.")
    return " ".join(part for part in parts if part)


def _jobs() -> Iterator[str]:
    yield f"## {JOB}"
    yield (
        "Every job of a run is a command too; `pit run` starts them in this order. A job runs where the jobs that it "
        "needs are finished."
    )
    yield table(("job", "what it does"), [(code(f"pit {job.name}"), escaped(job.title)) for job in JOBS])
    context = click.Context(cli)
    common: dict[tuple[str, str], list[str]] = {}
    for job in JOBS:
        command = cli.get_command(context, job.name)
        assert command is not None, f"{job.name} is a job and no command"
        for option in _options(command):
            row = (code(", ".join(_names(option))), escaped(_meaning(option, context)))
            common.setdefault(row, []).append(job.name)
    every = len(JOBS)
    rows = [(*row, "every job" if len(names) == every else ", ".join(names)) for row, names in common.items()]
    yield table(("option", "meaning", "taken by"), rows)
