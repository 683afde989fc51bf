"""The page: whole, escaped, self-contained, true to results.json, and there when half of it was not measured."""

import dataclasses
import html.parser
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.evaluate.schema import Example, ExampleStep, Results, ResultsError
from pit.evaluate.stats import Delta, accuracy_interval
from pit.report import geometry, metrics, page, palette, render, render_html, words
from pit.report.plots import PlotError, quality_png, rl_png

VOID = {"meta", "br"}


class Page(html.parser.HTMLParser):
    """Tags (checked for balance), attributes, texts and the values of <data> elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.data: list[tuple[float, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "data":
            self.data.append((float(dict(attrs)["value"] or "nan"), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "data":
            self.data[-1] = (self.data[-1][0], data)
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """Everything that is read, white space collapsed."""
        return " ".join("".join(self.texts).split())


@pytest.fixture
def full(run_dir: Path) -> str:
    """The page of the made-up run."""
    return render(run_dir, run_dir / "out" / "report.html").read_text(encoding="utf-8")


def test_the_page_is_whole_and_has_every_section(full: str) -> None:
    parsed = Page(full)
    anchors = {value for _, name, value in parsed.attributes if name == "id"}
    assert anchors == {"method", "quality", "comparisons", "rewards", "examples", "training", "cost", "caveats", "run"}
    links = {value for _, name, value in parsed.attributes if name == "href"}
    assert links <= {f"#{anchor}" for anchor in anchors}
    for stage in ("sft-policy", "reward-gap", "rl-second"):
        assert stage in parsed.text


def test_the_headline_says_who_wins_how_often_and_how_surely(full: str) -> None:
    text = Page(full).text
    assert "The improved answer beats the policy\u2019s own on 60.2% of 1,000 prompts, and loses on 18.9%." in text
    assert "an exact oracle, which knows for every prompt how good an answer is" in text
    assert "+41.3 points, win rate minus lose rate; 95% interval +36.4 to +46.2" in text


def test_the_page_loads_nothing_and_runs_nothing(full: str) -> None:
    parsed = Page(full)
    assert not re.search(r"(?i)(https?:)?//[a-z0-9]|url\(|@import|javascript:", full)
    tags = {tag for tag, _, _ in parsed.attributes}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form"}
    assert "<script" not in full
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on") or name == "src"]


def test_model_text_is_escaped_and_nothing_in_it_is_hidden(full: str) -> None:
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in full
    assert "&lt;script&gt;alert(&#39;config&#39;)&lt;/script&gt;" in full
    assert "\x00" not in full
    assert "\u202e" not in full
    assert "\u2400<U+202E> <b>bold</b>" in Page(full).text


def test_numbers_shown_are_those_of_the_results(full: str, full_results: Results) -> None:
    data = Page(full).data
    exact = {value for value, _ in data}
    for d in full_results.delta.values():
        assert {d.value, d.low, d.high} <= exact
        assert (d.value, words.signed(d.value)) in data
    for accuracy in full_results.accuracies.values():
        assert (accuracy.value, words.percent(accuracy.value)) in data
        assert {accuracy.low, accuracy.high} <= exact
    for members in full_results.quality.values():
        assert {p.mean for p in members} | {p.low for p in members} | {p.high for p in members} <= exact
    for row in full_results.sensitivity:
        assert row.accuracy in exact
    for stage in full_results.stages:
        assert {stage.seconds, stage.tokens} <= exact


def test_the_same_run_gives_the_same_bytes(run_dir: Path) -> None:
    first = render(run_dir).read_bytes()
    assert (run_dir / "report.html").read_bytes() == first
    assert render(run_dir, run_dir / "b.html").read_bytes() == first


EMPTY: dict[str, object] = {
    "dataset": "",
    "device": "",
    "config": {},
    "delta": {},
    "quality": {},
    "accuracies": {},
    "sensitivity": (),
    "stages": (),
    "tokens": {},
    "copy_rate": {},
    "examples": (),
    "notes": (),
}


@pytest.mark.parametrize("field", [*EMPTY, "everything"])
def test_what_was_not_measured_is_left_out(full_results: Results, field: str) -> None:
    gone = EMPTY if field == "everything" else {field: EMPTY[field]}
    parsed = Page(render_html(dataclasses.replace(full_results, **gone), {}))
    assert not any((tag, name, value) == ("section", "id", "training") for tag, name, value in parsed.attributes)
    if "delta" in gone:
        assert "This run did not compare improved answers with the policy\u2019s own." in parsed.text


def with_deltas(results: Results, **delta: Delta) -> Results:
    """`results` with only these deltas, "__" standing for the slash."""
    return dataclasses.replace(results, delta={name.replace("__", "/"): d for name, d in delta.items()})


def judged(d: Delta, results: Results) -> str:
    """The page's text where only the judge spoke."""
    return Page(render_html(with_deltas(results, improved_over_policy__judge=d), {})).text


def test_without_an_oracle_the_judge_makes_the_headline(full_results: Results) -> None:
    text = judged(Delta(-20.0, -30.0, -10.0, 100, 30, 50, 20, "m"), full_results)
    assert (
        "The improved answer is worse: it loses to the policy\u2019s own on 50.0% of 100 prompts, and wins on" in text
    )
    assert "a judge model that none of the trained models has seen" in text
    assert "There is no exact oracle for this data: who wins is a model\u2019s opinion." in text
    assert "Comparisons of fewer than 1,000 prompts are coarse; the smallest here has 100." in text


def test_an_interval_that_holds_zero_claims_nothing(full_results: Results) -> None:
    text = judged(Delta(0.5, -1.0, 2.0, 2000, 510, 500, 990, "m"), full_results)
    assert "No difference shown: the improved answer wins on 25.5% of 2,000 prompts, and loses on 25.0%." in text


def test_a_judge_that_does_not_beat_length_says_nothing(full_results: Results) -> None:
    weak = dataclasses.replace(
        full_results, accuracies={"judge": accuracy_interval(60, 100), "length": accuracy_interval(590, 1000)}
    )
    text = judged(Delta(77.5, 70.0, 80.0, 1600, 1400, 160, 40, "m"), weak)
    assert "No verdict: the judge is not shown to do better than preferring the longer answer." in text
    assert "The judge has no verdict: the lower end of its accuracy is not above" in text
    assert "77.5" not in text


def test_several_seeds_take_away_the_caveat_about_one(full_results: Results) -> None:
    caveat = "One seed: the intervals cover the choice of prompts, not the luck of training."
    assert caveat in Page(render_html(full_results, {})).text
    assert caveat not in Page(render_html(dataclasses.replace(full_results, seeds=(0, 1, 2)), {})).text


def test_an_answer_is_compared_with_the_one_it_was_written_from(full_results: Results) -> None:
    steps = (
        ExampleStep("one two"),
        ExampleStep("nine", 0.1, False, None, 0),
        ExampleStep("one two three", 0.2, True, None, 0),
    )
    text = render_html(dataclasses.replace(full_results, examples=(Example("p", steps),)), {})
    assert "one two <ins>three</ins></div>" in text
    assert "<del>one two</del><ins>nine</ins></div>" in text
    assert "gap +0.20 over y\u2080" in text


@pytest.mark.parametrize("text", [None, "{", '{"version": 99}'])
def test_a_run_without_readable_results_is_one_clear_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match=r"no results at|is not JSON|has schema version 99, this program reads"):
        render(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


any_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("<>&\"' \n"), max_size=40)


@given(any_text, any_text)
def test_any_model_text_comes_out_as_it_went_in(before: str, after: str) -> None:
    steps = (ExampleStep(before), ExampleStep(after, 0.0, True, None, 0))
    results = Results("r", (0,), "h", {}, {}, examples=(Example(after, steps),))
    parsed = Page(render_html(results, {}))
    assert " ".join(words.visible(after).split()) in parsed.text


@given(any_text, any_text)
def test_word_differences_spell_both_texts(before: str, after: str) -> None:
    pieces = words.word_differences(before, after)
    assert "".join(p.text for p in pieces if p.change != "del") == after
    kept = "".join(p.text for p in pieces if p.change != "ins")
    assert kept.split() == before.split()


@given(st.text(max_size=30))
def test_equal_texts_have_no_differences(text: str) -> None:
    assert all(piece.change == "same" for piece in words.word_differences(text, text))


def test_numbers_wear_their_signs_and_units() -> None:
    assert [words.signed(v) for v in (-2.5, 0.04, -0.04)] == ["\u22122.5", "0.0", "0.0"]
    assert [words.plain(v) for v in (0.0, -2.5e6, 9999.0, 1e-5, 3.2e9)] == [
        "0",
        "\u22122.50M",
        "9999",
        "1.0e-05",
        "3.20G",
    ]
    assert [words.duration(v) for v in (9.96, 59.6, 120.0, 3599.9, 86400.0)] == [
        "10 s",
        "1 min",
        "2 min",
        "1 h 0 min",
        "24 h 0 min",
    ]
    assert words.memory(None) == "\u2013"


floats = st.floats(-1e9, 1e9).map(lambda v: round(v, 6))


@given(st.lists(floats, min_size=1, max_size=8), st.integers(2, 6))
def test_an_axis_holds_its_values_and_its_ticks_ascend(values: list[float], ticks: int) -> None:
    made = geometry.axis(values, ticks)
    assert all(-1e-3 <= made.at(v) <= 100.001 for v in values)
    places = [tick.at for tick in made.ticks]
    assert places == sorted(set(places))
    assert 2 <= len(places) <= ticks + 3
    assert len({tick.label for tick in made.ticks}) == len(places) or max(map(abs, values)) > 1e4


def test_an_axis_stays_within_its_bounds() -> None:
    made = geometry.axis([0.5, 0.99], 5, 0.0, 1.0)
    assert (made.low, made.high) == (0.5, 1.0)


def test_a_long_curve_keeps_its_spikes_in_the_band_and_its_bad_values_are_counted() -> None:
    value = [1.0] * 2000
    value[777], value[5] = 50.0, float("nan")
    plot = geometry.curve_plot("Loss", [("loss", metrics.Curve(tuple(range(2000)), tuple(value)))])
    assert plot is not None
    assert plot.dropped == 1
    top = min(float(pair.split()[1]) for pair in re.findall(r"[\d.]+ [\d.]+", plot.lines[0].band))
    assert top == pytest.approx(100 - plot.y.at(50.0), abs=0.01)
    assert plot.lines[0].path.count("L") == geometry.BUCKETS - 1


def test_a_curve_with_nothing_finite_is_not_drawn() -> None:
    assert geometry.curve_plot("Loss", [("loss", metrics.Curve((0,), (float("inf"),)))]) is None


def test_metrics_keep_the_later_line_of_a_step(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0, "kl": 1},
        {"step": 2, "loss": 2.5},
        {"step": 0, "loss": 4},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert metrics.read_curves(file) == {
        "loss": metrics.Curve((0, 1, 2), (4.0, 3.0, 2.5)),
        "kl": metrics.Curve((2,), (1.0,)),
    }


@pytest.mark.parametrize(
    ("line", "words_"),
    [
        ('{"step": 1, "lo', r"metrics\.jsonl:2: not JSON .*; a stopped run may have cut it, delete the line"),
        ('{"loss": 1}', r'metrics\.jsonl:2: need an object with a whole "step"; got'),
        ("[1]", r'need an object with a whole "step"'),
        ('{"step": 1, "loss": "low"}', r"metrics\.jsonl:2: loss must be a number; got 'low'"),
        ('{"step": 1, "loss": true}', "loss must be a number; got True"),
    ],
)
def test_a_bad_metrics_line_is_named(tmp_path: Path, line: str, words_: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0, "loss": 1}\n' + line)
    with pytest.raises(metrics.MetricsError, match=words_):
        metrics.read_curves(file)


def test_stages_come_in_the_order_in_which_they_ran(run_dir: Path, full_results: Results) -> None:
    read = metrics.read_metrics(run_dir)
    reverse = dataclasses.replace(full_results, stages=full_results.stages[::-1][:3])
    names = [stage.name for stage in page.stage_curves(reverse, read)]
    assert names[:3] == ["rl-second", "rl-first", "rl-policy"]
    assert names[3:] == sorted(set(read) - set(names[:3]))


def test_other_metrics_are_folded_and_held_out_ones_join_theirs(full_results: Results) -> None:
    curve = metrics.Curve((0, 1), (1.0, 2.0))
    read = {"s": {"loss": curve, "eval/loss": curve, "my_metric": curve, "eval/my_metric": curve, "eval/only": curve}}
    (stage,) = page.stage_curves(full_results, read)
    assert [(p.title, [line.name for line in p.lines]) for p in stage.plots] == [("Loss", ["loss", "eval/loss"])]
    assert [(p.title, [line.name for line in p.lines]) for p in stage.more] == [
        ("my metric", ["my_metric", "eval/my_metric"]),
        ("only", ["eval/only"]),
    ]


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("shades", [palette.LIGHT, palette.DARK])
@pytest.mark.parametrize("ink", ["ink", "muted", "blue", "orange", "teal", "grey"])
def test_text_can_be_read_on_its_paper(shades: dict[str, str], ink: str) -> None:
    papers = ["paper", *(["panel", "blue_tint", "orange_tint"] if ink in ("ink", "muted") else [])]
    for paper in papers:
        low, high = sorted((luminance(shades[ink]), luminance(shades[paper])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, paper


def test_the_quality_plot_is_a_png_and_repeats_itself(full_results: Results, tmp_path: Path) -> None:
    first = quality_png(full_results, tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert quality_png(full_results, tmp_path / "b.png").read_bytes() == first


def test_a_plot_of_nothing_is_refused(full_results: Results, tmp_path: Path) -> None:
    with pytest.raises(PlotError, match="the results hold no quality by iteration; evaluate the run first"):
        quality_png(dataclasses.replace(full_results, quality={}), tmp_path / "a.png")


def test_the_plot_of_rl_has_every_stage_that_ran(run_dir: Path, tmp_path: Path) -> None:
    curves = metrics.read_metrics(run_dir)
    first = rl_png(curves, tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert rl_png(curves, tmp_path / "b.png").read_bytes() == first
    fewer = {name: each for name, each in curves.items() if name != "rl-second"}
    assert rl_png(fewer, tmp_path / "c.png").read_bytes() != first
    with pytest.raises(PlotError, match="no stage of RL has metrics; run one first"):
        rl_png({"sft-policy": curves["sft-policy"]}, tmp_path / "d.png")
