"""Reports: their JSON, comparison with a baseline, terminal tables, page and badge."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from pit.evaluate.stats import Interval
from pit.testing.baseline import Direction, compare, direction
from pit.testing.errors import CheckError
from pit.testing.findings import findings_of
from pit.testing.page import badge_text, bar_of, write_badge, write_page
from pit.testing.report import SCHEMA, Report, Result, Status
from pit.testing.tables import is_matched, ruler_rows, tables_of

HELD = Result("batch_size", "exact", "g(q | in a batch) = g(q | alone)", "source", Status.HELD, examples=30)
BROKEN = dataclasses.replace(HELD, status=Status.VIOLATED, detail="violated: 2 instead of 1", counterexample="<b>&")
ACCURACY = Result(
    "accuracy", "learned", "r(w,l) > r(l,w)", "source", Status.MEASURED, interval=Interval(0.7, 0.6, 0.8, 90), floor=0.5
)
BIAS = dataclasses.replace(ACCURACY, name="length_bias", interval=Interval(-0.1, -0.2, 0.05, 90), floor=None, ideal=0.0)
PAIR = dataclasses.replace(
    ACCURACY,
    name="resists_flattery",
    kind="bias",
    interval=Interval(-0.2, -0.3, -0.1, 90),
    floor=None,
    table=(("accuracy before", Interval(0.8, 0.7, 0.9, 90)), ("accuracy after", Interval(0.6, 0.5, 0.7, 90))),
)
RULED = dataclasses.replace(
    ACCURACY,
    name="above_rulers",
    interval=Interval(0.1, -0.1, 0.3, 9),
    floor=0.0,
    table=(
        ("all: model", Interval(0.7, 0.5, 0.8, 9)),
        ("all: longer", Interval(0.6, 0.4, 0.8, 9)),
        ("all: shorter", Interval(0.4, 0.2, 0.6, 9)),
        ("all: longer prompt overlap", Interval(0.5, 0.3, 0.7, 9)),
        ("all: model - longer", Interval(0.1, -0.1, 0.3, 9)),
    ),
)
ABSENT = dataclasses.replace(ACCURACY, name="best_of_n", status=Status.NOT_APPLICABLE, interval=None, detail="no case")
REPORT = Report("m:f", "d.jsonl", 3, (HELD, ACCURACY, BIAS, PAIR, RULED, ABSENT), 1.5, 90, "abc", ("a note",))


def of(*results, digest="abc"):
    return dataclasses.replace(REPORT, results=results, digest=digest)


def moved(result, value, low, high):
    return dataclasses.replace(result, interval=Interval(value, low, high, 90))


def test_json_comes_back_the_same(tmp_path):
    REPORT.write_json(tmp_path / "a.json")
    assert Report.read_json(tmp_path / "a.json") == REPORT


def test_the_schema_is_stable():
    """Fields may be added; a change of these needs another `SCHEMA`, and the table of docs/testing.md."""
    values = json.loads(json.dumps(REPORT.to_dict()))
    assert values["schema"] == SCHEMA == "pit-check/1"
    assert list(values) == ["schema", "model", "data", "seed", "results", "seconds", "rows", "digest", "notes"]
    fields = (
        "name kind statement source status detail examples interval floor ideal table counterexample replay seconds"
    )
    assert list(values["results"][1]) == fields.split()
    assert values["results"][1]["interval"] == {"value": 0.7, "low": 0.6, "high": 0.8, "n": 90}
    assert values["results"][3]["table"][0] == {
        "label": "accuracy before",
        "value": 0.8,
        "low": 0.7,
        "high": 0.9,
        "n": 90,
    }
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
    for field in (*values, *values["results"][0]):
        assert f"`{field}`" in page


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"schema": "pit-check/2"}', r"its schema is 'pit-check/2', not 'pit-check/1'"),
        ('{"schema": "pit-check/1", "results": [{}]}', "KeyError: 'interval'"),
        ('{"schema": "pit-check/1", "results": []}', "TypeError: missing"),
    ],
)
def test_other_files_are_refused(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(CheckError, match=rf"a.json: does not hold a report of `pit check --json` .*{reason}.*; write"):
        Report.read_json(path)


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        (HELD, HELD, "same"),
        (HELD, BROKEN, "worse"),
        (BROKEN, BROKEN, "same"),
        (BROKEN, HELD, "better"),
        (HELD, dataclasses.replace(HELD, status=Status.NOT_CHECKED), "worse"),
        (ABSENT, ACCURACY, "better"),
        (ACCURACY, ABSENT, "worse"),
        (ACCURACY, moved(ACCURACY, 0.65, 0.55, 0.75), "same"),
        (ACCURACY, moved(ACCURACY, 0.5, 0.4, 0.59), "worse"),
        (ACCURACY, moved(ACCURACY, 0.9, 0.81, 0.95), "better"),
        (BIAS, moved(BIAS, 0.3, 0.21, 0.4), "worse"),
        (BIAS, moved(BIAS, -0.3, -0.4, -0.21), "worse"),
        (BIAS, moved(BIAS, 0.1, 0.0, 0.2), "same"),
        (moved(BIAS, 0.3, 0.21, 0.4), BIAS, "better"),
        (PAIR, moved(PAIR, -0.5, -0.6, -0.4), "worse"),
    ],
)
def test_a_change_has_a_direction(was, now, expected):
    assert direction(was, now) == Direction(expected)


def test_reports_of_other_rows_are_not_compared():
    with pytest.raises(CheckError, match=r"--baseline b.json: was measured on other rows \(90 of d.jsonl, here 90 of"):
        compare(REPORT, of(HELD, digest="def"), Path("b.json"))


def test_only_invariants_of_both_reports_are_compared():
    changes = compare(of(BROKEN, ACCURACY), of(HELD, BIAS), Path("b.json"))
    assert [(change.name, change.direction, change.was, change.now) for change in changes] == [
        ("batch_size", "worse", "held", "violated")
    ]


def test_tables_show_pairs_apart_from_figures():
    changes = compare(of(BROKEN, moved(ACCURACY, 0.9, 0.81, 0.95)), REPORT, Path("b.json"))
    titles = [table.title for table in tables_of(REPORT, changes)]
    assert [title.partition(":")[0] for title in titles] == [
        "Exact",
        "Matched pairs",
        "Figures over the data",
        "Rulers",
        "Since the baseline",
    ]
    assert [result.name for result in REPORT.results if is_matched(result)] == ["resists_flattery"]
    assert ruler_rows(RULED) == [("all (9)", ["0.700", "0.600", "0.400", "0.500", "0.100 [-0.100, 0.300] (longer)"])]


def test_the_page_stands_alone_and_escapes(tmp_path):
    changes = compare(of(BROKEN), of(HELD), Path("b.json"))
    write_page(tmp_path / "a.html", dataclasses.replace(REPORT, results=(BROKEN, *REPORT.results[1:])), changes)
    page = (tmp_path / "a.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert "&lt;b&gt;&amp;" in page
    for text in (
        "violated: batch_size: violated: 2 instead of 1",
        "Since the baseline",
        "Rulers",
        "Matched pairs",
        "a note",
        "no case",
    ):
        assert text in page
    assert re.search(r'<td class="number">0.800</td><td class="number">0.600</td>\s*<td class="number lost">', page)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ((HELD,), ["all 1 exact invariants that could be checked hold"]),
        ((BROKEN,), ["violated: batch_size: violated: 2 instead of 1"]),
        ((), ["no exact invariant was checked"]),
        ((HELD, moved(ACCURACY, 0.3, 0.2, 0.4)), [..., "accuracy = 0.300 [0.200, 0.400] lies below 0.5"]),
        (
            (HELD, dataclasses.replace(ACCURACY, detail="above 0.5")),
            [..., "accuracy = 0.700 [0.600, 0.800] is above 0.5"],
        ),
        (
            (HELD, dataclasses.replace(RULED, detail="above 0; better than every ruler")),
            [..., "better than every ruler: above_rulers = 0.100 [-0.100, 0.300]"],
        ),
        (
            (HELD, PAIR, dataclasses.replace(PAIR, name="other", interval=Interval(-0.3, -0.4, -0.2, 9))),
            [..., "accuracy falls on 2 axes of matched pairs: other -0.300, resists_flattery -0.200"],
        ),
        ((HELD, moved(PAIR, 0.1, -0.1, 0.2), BIAS), [...]),
        ((HELD, moved(BIAS, 0.2, 0.1, 0.3)), [..., "length_bias = 0.200 [0.100, 0.300]: r(w,l) > r(l,w), ideally 0"]),
    ],
)
def test_findings_name_what_is_wrong(results, expected):
    found = findings_of(of(*results))
    assert [text if text is ... else line for line, text in zip(found, expected, strict=True)] == expected


def test_bars_stay_on_the_axis():
    assert bar_of(Interval(0.0, -1.5, 0.5, 9), None, -1.0) == (0.0, 75.0, 50.0, None)


def test_the_badge_says_what_the_report_says(tmp_path):
    assert badge_text(of(HELD, BROKEN)) == "1 violated"
    assert badge_text(of(HELD)) == "1 held"
    line = write_badge(tmp_path / "badge.svg", of(HELD, ACCURACY))
    assert line == f"![pit check: 1 held, accuracy 0.70]({(tmp_path / 'badge.svg').as_posix()})"
    assert "<title>pit check: 1 held, accuracy 0.70</title>" in (tmp_path / "badge.svg").read_text()
