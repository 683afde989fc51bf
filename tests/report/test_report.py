"""The report: complete, escaped, self-contained, equal to results.json, and readable with few measurements."""

import dataclasses
import html.parser
import itertools
import json
import re
from pathlib import Path

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pit import report
from pit.cli import main
from pit.evaluate.schema import Example, ExampleStep, Results, ResultsError
from pit.evaluate.stats import Delta, accuracy_interval
from pit.report import formatting, geometry, metrics, page, palette, plots, render, render_html
from pit.report.metrics import StageMetrics
from pit.report.plots import PlotError, quality_png, rl_png, save_png
from pit.stages.graph import STAGES

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


@pytest.fixture(scope="module")
def full(run_dir: Path) -> str:
    """The page of the synthetic run."""
    return render(run_dir, run_dir / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def curves(run_dir: Path) -> StageMetrics:
    """The metrics of the synthetic run."""
    return metrics.read_metrics(run_dir)


def test_the_page_is_whole_and_has_every_section(full: str) -> None:
    parsed = Page(full)
    anchors = {value for _, name, value in parsed.attributes if name == "id"}
    assert anchors == {"method", "quality", "comparisons", "rewards", "examples", "training", "cost", "caveats", "run"}
    links = {value for _, name, value in parsed.attributes if name == "href"}
    assert links <= {f"#{anchor}" for anchor in anchors}
    for stage in ("sft-policy", "reward-gap", "rl-improver-1"):
        assert stage in parsed.text


def test_the_headline_says_who_wins_how_often_and_how_surely(full: str) -> None:
    text = Page(full).text
    assert "The improved answer beats the policy\u2019s own on 60.2% of 1,000 prompts and loses on 18.9%." in text
    assert "decided by an exact oracle" in text
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
        assert (d.value, formatting.signed_number(d.value)) in data
    for accuracy in full_results.accuracies.values():
        assert (accuracy.value, formatting.percent(accuracy.value)) in data
        assert {accuracy.low, accuracy.high} <= exact
    for perplexity in full_results.perplexity.values():
        assert {perplexity.value, perplexity.low, perplexity.high} <= exact
    for members in full_results.quality.values():
        assert {p.mean for p in members} | {p.low for p in members} | {p.high for p in members} <= exact
    for row in full_results.sensitivity:
        assert row.accuracy in exact
    for stage in full_results.stages:
        assert {stage.seconds, stage.tokens} <= exact


def test_the_same_run_gives_the_same_bytes(full: str, run_dir: Path) -> None:
    assert render(run_dir) == run_dir / "report.html"
    assert (run_dir / "report.html").read_bytes() == full.encode()


MEASURED: dict[str, tuple[object, str]] = {
    "dataset": ("", "synthetic instructions"),
    "device": ("", "2 CPU cores"),
    "config": ({}, "All settings"),
    "delta": ({}, "Win rate minus lose rate"),
    "quality": ({}, "Mean quality"),
    "accuracies": ({}, "How often each model prefers"),
    "perplexity": ({}, "Per token, of the better answers"),
    "sensitivity": ((), "missing fact"),
    "stages": ((), "Peak memory"),
    "tokens": ({}, "Tokens sampled"),
    "copy_rate": ({}, "Improving, or copying?"),
    "examples": ((), "Name three animals"),
    "notes": ((), "Models of 2 million parameters"),
}
"""Field of the results to its empty value, and a text that only the full field puts on the page."""


@pytest.mark.parametrize("field", [*MEASURED, "everything"])
def test_what_was_not_measured_is_left_out(full: str, full_results: Results, field: str) -> None:
    fields = list(MEASURED) if field == "everything" else [field]
    empty = dataclasses.replace(full_results, **{name: MEASURED[name][0] for name in fields})
    before, after = Page(full), Page(render_html(empty, {}))
    for name in fields:
        assert MEASURED[name][1] in before.text
        assert MEASURED[name][1] not in after.text
    assert ("section", "id", "training") in before.attributes
    assert ("section", "id", "training") not in after.attributes
    anchors = {f"#{value}" for tag, name, value in after.attributes if (tag, name) == ("section", "id")}
    assert {value for _, name, value in after.attributes if name == "href"} <= anchors
    if field == "everything":
        assert anchors == {"#method", "#caveats", "#run"}


def with_deltas(results: Results, **delta: Delta) -> Results:
    """`results` with only these deltas, "__" standing for the slash."""
    return dataclasses.replace(results, delta={name.replace("__", "/"): d for name, d in delta.items()})


def judged(d: Delta, results: Results) -> str:
    """The page's text where only the judge spoke."""
    return Page(render_html(with_deltas(results, improved_over_policy__judge=d), {})).text


def test_without_an_oracle_the_judge_makes_the_headline(full_results: Results) -> None:
    text = judged(Delta(-20.0, -30.0, -10.0, 100, 30, 50, 20, "m"), full_results)
    assert "The improved answer is worse: it loses to the policy\u2019s own on 50.0% of 100 prompts" in text
    assert "decided by a judge model" in text
    assert "There is no exact oracle for this data" in text
    assert "fewer than 1,000 prompts are coarse; the smallest has 100." in text


def test_an_interval_that_holds_zero_claims_nothing(full_results: Results) -> None:
    text = judged(Delta(0.5, -1.0, 2.0, 2000, 510, 500, 990, "m"), full_results)
    assert "No difference shown: the improved answer wins on 25.5% of 2,000 prompts and loses on 25.0%." in text


def test_the_ruler_is_the_better_rule_of_length(full_results: Results) -> None:
    short = dataclasses.replace(
        full_results, accuracies={"R_P": accuracy_interval(55, 100), "length": accuracy_interval(410, 1000)}
    )
    for results, rule, position in ((full_results, "longer", 0.5875), (short, "shorter", 0.59)):
        bars, axis = page.accuracy_bars(results)
        assert axis is not None
        text = render_html(results, {})
        assert f"the simplest judge, \u201cthe {rule} answer is better\u201d" in text
        assert f"{axis.position(position)}" in text
        assert {bar.name for bar in bars} == set(results.accuracies)


def test_a_judge_that_does_not_beat_length_says_nothing(full_results: Results) -> None:
    weak = dataclasses.replace(
        full_results, accuracies={"judge": accuracy_interval(60, 100), "length": accuracy_interval(590, 1000)}
    )
    text = judged(Delta(77.5, 70.0, 80.0, 1600, 1400, 160, 40, "m"), weak)
    assert "No verdict: the judge is not shown to be more accurate" in text
    assert "verdict does not count: the lower end of its accuracy is not above" in text
    assert "77.5" not in text


def test_the_caveat_about_one_seed_is_for_one_seed_alone(full_results: Results) -> None:
    caveat = "One seed:"
    assert caveat in Page(render_html(full_results, {})).text
    assert caveat not in Page(render_html(dataclasses.replace(full_results, seeds=(0, 1, 2)), {})).text


def test_an_answer_is_compared_with_its_reference(full_results: Results) -> None:
    steps = (
        ExampleStep("one two"),
        ExampleStep("nine", 0.1, False, None, 0),
        ExampleStep("one two three", 0.2, True, None, 0),
    )
    text = render_html(dataclasses.replace(full_results, examples=(Example("p", steps),)), {})
    assert "one two <ins>three</ins></div>" in text
    assert "<del>one two</del><ins>nine</ins></div>" in text
    assert "gap +0.20 over y\u2080" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"results\.json does not exist; run pit evaluate"),
        ("{", r"results\.json is not JSON"),
        ('{"version": 99}', r"results\.json: version = 99 must be 1"),
    ],
)
def test_a_run_without_readable_results_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match=message):
        render(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


any_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("<>&\"' \n"), max_size=40)


@settings(max_examples=examples(50))
@given(any_text, any_text)
def test_any_model_text_comes_out_as_it_went_in(before: str, after: str) -> None:
    steps = (ExampleStep(before), ExampleStep(after, 0.0, True, None, 0))
    results = Results("r", (0,), "h", {}, {}, examples=(Example(after, steps),))
    parsed = Page(render_html(results, {}))
    assert " ".join(formatting.escape_invisible(after).split()) in parsed.text


@given(any_text, any_text)
def test_word_differences_spell_both_texts(before: str, after: str) -> None:
    pieces = formatting.word_differences(before, after)
    assert "".join(p.text for p in pieces if p.change != "del") == after
    kept = "".join(p.text for p in pieces if p.change != "ins")
    assert kept.split() == before.split()


@given(st.text(max_size=30))
def test_equal_texts_have_no_differences(text: str) -> None:
    assert all(piece.change == "same" for piece in formatting.word_differences(text, text))


def test_numbers_have_signs_and_units() -> None:
    assert [formatting.signed_number(v) for v in (-2.5, 0.04, -0.04)] == ["\u22122.5", "0.0", "0.0"]
    assert [formatting.short_number(v) for v in (0.0, -2.5e6, 9999.0, 1e-5, 3.2e9)] == [
        "0",
        "\u22122.50M",
        "9999",
        "1.0e-05",
        "3.20G",
    ]
    assert [formatting.duration(v) for v in (9.96, 59.6, 120.0, 3599.9, 86400.0)] == [
        "10 s",
        "1 min",
        "2 min",
        "1 h 0 min",
        "24 h 0 min",
    ]
    assert formatting.memory_size(None) == "\u2013"


floats = st.floats(-1e9, 1e9).map(lambda v: round(v, 6))


@given(st.lists(floats, min_size=1, max_size=8), st.integers(2, 6))
def test_an_axis_holds_its_values_and_its_ticks_ascend(values: list[float], ticks: int) -> None:
    axis = geometry.make_axis(values, ticks)
    assert all(-1e-3 <= axis.position(v) <= 100.001 for v in values)
    positions = [tick.position for tick in axis.ticks]
    assert positions == sorted(set(positions))
    assert 2 <= len(positions) <= ticks + 3
    assert len({tick.label for tick in axis.ticks}) == len(positions) or max(map(abs, values)) > 1e4


def test_an_axis_stays_within_its_bounds() -> None:
    axis = geometry.make_axis([0.5, 0.99], 5, 0.0, 1.0)
    assert (axis.low, axis.high) == (0.5, 1.0)


def test_a_long_curve_keeps_its_spikes_in_the_band_and_its_bad_values_are_counted() -> None:
    value = [1.0] * 2000
    value[777], value[5] = 50.0, float("nan")
    plot = geometry.curve_plot("Loss", [("loss", metrics.Curve(tuple(range(2000)), tuple(value)))])
    assert plot is not None
    assert plot.dropped == 1
    top = min(float(pair.split()[1]) for pair in re.findall(r"[\d.]+ [\d.]+", plot.lines[0].band))
    assert top == pytest.approx(100 - plot.y.position(50.0), abs=0.01)
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
    ("line", "message"),
    [
        ('{"step": 1, "lo', r"metrics\.jsonl:2 is not JSON .*; .*delete the line"),
        ('{"loss": 1}', r'metrics\.jsonl:2: .* integer "step"; got .*loss'),
        ("[1]", r'integer "step"; got .*1'),
        ('{"step": 1, "loss": "low"}', r"metrics\.jsonl:2: loss = 'low' must be a number"),
        ('{"step": 1, "loss": true}', "loss = True must be a number"),
    ],
)
def test_a_bad_metrics_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0, "loss": 1}\n' + line)
    with pytest.raises(metrics.MetricsError, match=message):
        metrics.read_curves(file)


def test_stages_come_in_the_order_in_which_they_ran(curves: StageMetrics, full_results: Results) -> None:
    reverse = dataclasses.replace(full_results, stages=full_results.stages[::-1][:3])
    names = [stage.name for stage in page.stage_curves(reverse, curves)]
    assert names[:3] == ["rl-improver-1", "rl-improver-0", "rl-policy"]
    assert names[3:] == sorted(set(curves) - set(names[:3]))


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
    with pytest.raises(PlotError, match="no quality by iteration"):
        quality_png(dataclasses.replace(full_results, quality={}), tmp_path / "a.png")


def drawn_panels(curves: StageMetrics, titles: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The panels of the plot of RL, as a figure before it is a file."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save_png", lambda figure, path: figures.append(figure) or path)
    assert rl_png(curves, Path("a.png"), titles) == Path("a.png")
    return figures[0].axes


def test_the_plot_of_rl_has_every_stage_with_metrics_of_rl(
    curves: StageMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages come in the order of the titles; one without a title follows under its own name."""
    policy = curves["rl-policy"]
    curves = {**curves, "a-new-stage": {**policy, "eval/objective/kl": metrics.Curve((10,), (0.5,))}}
    titles = {"rl-improver-0": "RL,0", "sft-policy": "SFT", "absent": "?", "rl-policy": "M_P"}
    panels = drawn_panels(curves, titles, monkeypatch)
    assert [panel.get_title() for panel in panels] == [title for title, _ in plots.RL_PANELS]
    for panel, (_, metric) in zip(panels, plots.RL_PANELS, strict=True):
        *note, first, second, third, fourth = (text.get_text() for text in panel.texts)
        assert note == ([] if metric in policy else ["not measured"])
        assert [first, second, third, fourth] == ["RL,0", "M_P", "a-new-stage", "rl-improver-1"]
    kl = panels[[metric for _, metric in plots.RL_PANELS].index("objective/kl")]
    # Four curves, the held-out point of one stage, and a line between two stages each.
    curve_0, curve_1, curve_2, held_out, curve_3, *between = kl.lines
    lengths = [118, 118, 118, 898]
    for k, line in enumerate((curve_0, curve_1, curve_2, curve_3)):
        assert (line.get_xdata()[0], line.get_xdata()[-1]) == (sum(lengths[:k]), sum(lengths[: k + 1]))
    assert (held_out.get_xdata(), held_out.get_ydata()) == ([2 * 118 + 10], [0.5])
    assert [line.get_xdata()[0] for line in between] == [118, 236, 354]


def test_the_command_labels_all_stages_of_rl_and_no_label_covers_another(
    curves: StageMetrics, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [stage.name for stage in STAGES if stage.name.startswith("rl-")]
    monkeypatch.setattr(report, "render", lambda folder: folder / "report.html")
    monkeypatch.setattr(metrics, "read_metrics", lambda folder: dict.fromkeys(names, curves["rl-policy"]))
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save_png", lambda figure, path: figures.append(figure) or path)
    main(["report", "--run", str(tmp_path), "--rl-plot", str(tmp_path / "rl.png")])
    figures[0].draw_without_rendering()
    for panel in figures[0].axes:
        labels = [text for text in panel.texts if text.get_text() != "not measured"]
        assert [label.get_text() for label in labels] == [name.removeprefix("rl-") for name in names]
        places = [label.get_window_extent() for label in labels]
        assert all(one.x1 < next_one.x0 for one, next_one in itertools.pairwise(places))


def test_the_plot_of_rl_is_a_png(curves: StageMetrics, tmp_path: Path) -> None:
    assert rl_png(curves, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(PlotError, match="metrics of RL"):
        rl_png({"sft-policy": curves["sft-policy"]}, tmp_path / "d.png")


def test_a_plot_replaces_a_link_and_not_what_it_names(tmp_path):
    kept, link = tmp_path / "results.json", tmp_path / "q.png"
    kept.write_text("{}")
    link.symlink_to(kept)
    save_png(Figure(), link)
    assert kept.read_text() == "{}"
    assert link.read_bytes().startswith(b"\x89PNG")
