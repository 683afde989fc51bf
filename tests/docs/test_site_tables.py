"""Generated tables hold what the code holds: config fields, metrics, commands, fields of results.json."""

import dataclasses
import re

import click
import pytest

from pit.config import RunConfig, override, to_dict
from pit.evaluate import schema
from pit.rl.board import WATCHES
from pit.train.catalogue import METRICS
from site_pages import commands, config_fields, marks, metrics, results


def leaves(values, path=""):
    """Return the paths of a config's plain values."""
    if not isinstance(values, dict):
        return {path}
    return {leaf for name, value in values.items() for leaf in leaves(value, f"{path}.{name}".lstrip("."))}


def test_config_fields_are_those_of_a_run():
    sections = config_fields.sections()
    shown = {
        f"{place}.{setting.name}".lstrip(".")
        for section in sections
        for place in config_fields.paths(section) or [""]
        for setting in config_fields.settings(section)
    }
    # A section that may be absent is one value in a config without it, and a section in the table.
    assert leaves(to_dict(RunConfig())) <= shown
    assert len({setting.name for section in sections for setting in config_fields.settings(section)}) > 100


@pytest.mark.parametrize("section", config_fields.sections(), ids=lambda section: section.__name__)
def test_every_config_field_is_explained(section):
    unexplained = [s.name for s in config_fields.settings(section) if not s.meaning and s.section is None]
    assert unexplained == []


def test_a_default_can_be_set_as_it_is_shown():
    config = RunConfig()
    for setting in config_fields.settings(type(config.rl_policy)):
        if setting.section is None:
            assert override(config, [f"rl_policy.{setting.name}={setting.default.strip('`')}"]) is not None


def test_ranges_are_shown():
    shown = {setting.name: setting.kind for setting in config_fields.settings(RunConfig)}
    assert shown["seed"] == "whole number >= 0"
    assert shown["references"] == "`data`, `policy`, `own`"
    assert shown["board"] == "section [BoardConfig](#boardconfig)"


def test_metrics_are_named_once_and_shown():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    page = metrics.metrics_page()
    assert [metric.name for metric in METRICS] == re.findall(r"^\| `([^`]+)` \|", page, re.M)


def test_limits_are_those_of_the_board():
    page = metrics.limits_page()
    assert re.findall(r"`board\.(\w+)\.limit`", page) == [watch.limit for watch in WATCHES]
    assert "| `board.copy_rate.limit` | 0.8 | above | `rollout/copy_rate` |" in page


def test_every_command_and_option_is_shown():
    page = commands.commands_page()
    shown = re.findall(r"^## (.+)$", page, re.M)
    assert shown == [*(name for name, _ in commands.commands()), commands.JOB]
    for name, command in commands.commands():
        text = page.split(f"\n## {name}\n")[-1] if f"\n## {name}\n" in page else page
        text = text.split("\n## ")[0]
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert all(word in text for word in option.opts), (name, option.opts)


@pytest.mark.parametrize("record", results.records(), ids=lambda record: record.__name__)
def test_every_field_of_results_is_explained(record):
    fields = results.fields_of(record)
    assert [name for name, (_, _, meaning) in fields.items() if not meaning] == []
    assert set(fields) - {"unit"} == set(schema._fields(record))
    assert {name: required for name, (_, required, _) in fields.items() if name != "unit"} == {
        name: required for name, (_, required) in schema._fields(record).items()
    }


def test_the_records_are_all_that_a_file_holds():
    held = {field.name for field in dataclasses.fields(schema.Results)}
    assert set(results.fields_of(results.records()[0])) == held
    assert len(results.records()) == len(set(results.records())) == 11


def test_every_table_is_made():
    for name, make in marks.TABLES.items():
        assert make().count("\n|") > 3, name
