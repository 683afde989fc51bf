"""The report as HTML: reads a run, interprets its figures, and fills the templates.

The interpretation is in this module, where tests reach it: the comparison of the headline, whether an interval holds 0,
whether the judge's verdict counts. The templates only lay out the page.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from pit.atomic import write_file
from pit.evaluate import schema
from pit.evaluate.schema import ExampleStep, Results, SensitivityRow
from pit.evaluate.stats import Delta, Interval, judge_verdict_allowed, length_rule
from pit.report import formatting, geometry, palette
from pit.report.board import METRIC_PREFIX, StageBoard, boards
from pit.report.formatting import Piece
from pit.report.geometry import Axis, Bar, CurvePlot
from pit.report.metrics import StageMetrics, read_metrics, stage_order

Tone = Literal["better", "worse", "unclear"]

FILE_NAME = "report.html"

MEASURES = {
    "oracle": "an exact oracle, which knows the quality of any answer",
    schema.JUDGE: "a judge model, a reward model that takes no part in training",
    schema.LLM_JUDGE: "an LLM judge behind an API, asked in both orders",
}
"""Descriptions of the measures; any other measure has its name."""

TONE_COLOURS: dict[Tone, str] = {"better": "blue", "worse": "orange", "unclear": "grey"}

CURVES = (
    ("Loss", ("loss", "eval/loss")),
    ("Accuracy", ("accuracy", "eval/accuracy")),
    ("Reward", ("objective/reward",)),
    ("KL to the anchor, nats per answer", ("objective/kl",)),
    ("Reward margin", ("rewards/margin",)),
    ("Output length, tokens", ("completions/mean_length",)),
)
"""Title and metrics of the plots that every stage shows first; the other metrics follow, folded."""

PERFORMANCE = {
    "perf/tokens_per_s": "Tokens per second",
    "perf/fill": "Row fill, share",
    "perf/data_wait_s": "Wait for data, s",
}
"""Titles of the folded plots; any other metric has its name."""


@dataclass(frozen=True)
class Comparison:
    """Delta as the page shows it; `delta` and `bar` are None if the judge's verdict does not count."""

    title: str
    measure: str
    controlled: bool
    delta: Delta | None
    bar: Bar | None
    tone: Tone


@dataclass(frozen=True)
class Headline:
    """Sentence at the top of the page, the measure in words, and the comparison behind it, if any."""

    sentence: str
    measure: str
    comparison: Comparison | None


@dataclass(frozen=True)
class AccuracyBar:
    """Accuracy of a model on the shared axis. beats_length: whether its lower end is above what length tells."""

    name: str
    accuracy: Interval
    bar: Bar
    beats_length: bool


@dataclass(frozen=True)
class StepView:
    """One answer of an example: its figures, and its differences from its reference."""

    index: int
    step: ExampleStep
    pieces: tuple[Piece, ...]

    @property
    def outcome(self) -> str:
        """Return "accepted", "rejected", "unchanged" (the same text again), or "" for the policy's own answer."""
        if self.step.accepted is None:
            return ""
        if self.step.accepted:
            return "accepted"
        return "unchanged" if all(piece.change == "same" for piece in self.pieces) else "rejected"


@dataclass(frozen=True)
class StageCurves:
    """Plots of one stage: `plots` are open, `more` are folded."""

    name: str
    plots: tuple[CurvePlot, ...]
    more: tuple[CurvePlot, ...]


def render(run_dir: Path, out_html: Path | None = None) -> Path:
    """Write the report of a run as one HTML file without scripts or external resources; return its path.

    run_dir: folder with `results.json`, and `stages/<stage>/metrics.jsonl` for the stages that have curves.
    out_html: file to write; `report.html` in the run's folder if None.
    Raises ResultsError for a missing or bad results file, and MetricsError for a bad line of metrics.
    """
    out_html = run_dir / FILE_NAME if out_html is None else out_html
    html = render_html(schema.read_results(run_dir), read_metrics(run_dir))
    write_file(out_html, html.encode(errors="backslashreplace"))
    return out_html


def render_html(results: Results, metrics: StageMetrics) -> str:
    """Return the report as HTML text; `metrics` are those of `read_metrics` and may be empty."""
    comparisons, delta_axis = compare(results)
    accuracies, accuracy_axis = accuracy_bars(results)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            results=results,
            schema=schema,
            headline=headline(results, comparisons),
            comparisons=comparisons,
            delta_axis=delta_axis,
            quality=geometry.quality_plot(results.quality),
            accuracies=accuracies,
            accuracy_axis=accuracy_axis,
            length_rule=length_rule,
            sensitivity=sensitivity_table(results.sensitivity),
            examples=[(example.prompt, example_steps(example.steps)) for example in results.examples],
            curves=stage_curves(results, metrics),
            boards=_boards(results, metrics),
            caveats=[*results.notes, *caveats(results, comparisons)],
            config=list(flatten(results.config)),
            sections=_sections(results, metrics),
            series_titles=geometry.SERIES_TITLES,
            tones=TONE_COLOURS,
            light=palette.LIGHT,
            dark=palette.DARK,
        )
    )


def compare(results: Results) -> tuple[dict[str, Comparison], Axis | None]:
    """Return every delta by name, on one axis that holds 0; figures of a judge that is withheld are left out."""
    withheld = judge_is_withheld(results)
    shown = {name: d for name, d in results.delta.items() if not (withheld and _measure(name) == schema.JUDGE)}
    ends = [end for d in shown.values() for end in (d.low, d.high)]
    axis = geometry.make_axis([0.0, *ends], 5, -100.0, 100.0) if shown else None
    result = {}
    for name in results.delta:
        title, _, rest = name.partition("/")
        d = shown.get(name)
        result[name] = Comparison(
            title=formatting.label(title),
            measure=formatting.label(_measure(name)),
            controlled=rest.endswith("length_controlled"),
            delta=d,
            bar=geometry.make_bar(axis, d.low, d.value, d.high) if d and axis else None,
            tone=tone(d) if d else "unclear",
        )
    return result, axis


def tone(d: Delta) -> Tone:
    """Return "better" if the interval is above 0, "worse" if it is below, and "unclear" if it holds 0."""
    return "better" if d.low > 0 else "worse" if d.high < 0 else "unclear"


def judge_is_withheld(results: Results) -> bool:
    """Return whether the judge's verdict does not count: its measured accuracy does not beat the length baseline."""
    accuracies = results.accuracies
    if schema.JUDGE not in accuracies:
        return False
    return not judge_verdict_allowed(accuracies[schema.JUDGE], accuracies[schema.LENGTH_BASELINE])


def headline(results: Results, comparisons: Mapping[str, Comparison]) -> Headline:
    """Return the sentence that says whether improved answers are better than the policy's own."""
    measured = [name for name in schema.HEADLINES if name in comparisons]
    valid = [name for name in measured if comparisons[name].delta is not None]
    if not valid:
        if measured:
            return Headline(
                "No verdict: the judge is not shown to be more accurate than a rule of length alone.", "", None
            )
        return Headline("This run did not compare improved answers with the policy\u2019s own.", "", None)
    comparison, d, measure = comparisons[valid[0]], results.delta[valid[0]], _measure(valid[0])
    prompts = formatting.integer(d.n)
    win, lose = formatting.percent(d.win / d.n), formatting.percent(d.lose / d.n)
    sentence = {
        "better": f"The improved answer beats the policy\u2019s own on {win} of {prompts} prompts and loses on {lose}.",
        "worse": f"The improved answer is worse: it loses to the policy\u2019s own on {lose} of {prompts} prompts and "
        f"wins on {win}.",
        "unclear": f"No difference shown: the improved answer wins on {win} of {prompts} prompts and loses on {lose}.",
    }[comparison.tone]
    return Headline(sentence, MEASURES.get(measure, measure), comparison)


def accuracy_bars(results: Results) -> tuple[list[AccuracyBar], Axis | None]:
    """Return the accuracies with the length baseline, best first, and an axis that holds one half."""
    if not results.accuracies:
        return [], None
    length = results.accuracies[schema.LENGTH_BASELINE]
    ends = [end for a in results.accuracies.values() for end in (a.low, a.high)]
    axis = geometry.make_axis([0.5, length_rule(length).accuracy, *ends], 5, 0.0, 1.0)
    ordered = sorted(results.accuracies.items(), key=lambda item: -item[1].value)
    return [
        AccuracyBar(name, a, geometry.make_bar(axis, a.low, a.value, a.high), judge_verdict_allowed(a, length))
        for name, a in ordered
    ], axis


def sensitivity_table(
    rows: tuple[SensitivityRow, ...],
) -> tuple[list[str], list[tuple[str, list[SensitivityRow | None]]]]:
    """Return the model names, and each aspect with one row per model; None for a model that was not measured on it."""
    models = list(dict.fromkeys(row.model for row in rows))
    cells = {(row.aspect, row.model): row for row in rows}
    aspects = dict.fromkeys(row.aspect for row in rows)
    return models, [(aspect, [cells.get((aspect, model)) for model in models]) for aspect in aspects]


def example_steps(steps: tuple[ExampleStep, ...]) -> list[StepView]:
    """Return the answers of an example with their differences from their references."""
    return [
        StepView(
            k,
            step,
            (Piece("same", step.text),)
            if step.reference is None
            else tuple(formatting.word_differences(steps[step.reference].text, step.text)),
        )
        for k, step in enumerate(steps)
    ]


def stage_curves(results: Results, metrics: StageMetrics) -> list[StageCurves]:
    """Return the plots of every stage with metrics, in the order in which the stages ran."""
    first = {metric for _, group in CURVES for metric in group}
    result = []
    for name in stage_order(metrics, (stage.name for stage in results.stages)):
        curves = metrics[name]
        others = (metric for metric in curves if metric not in first and not metric.startswith(METRIC_PREFIX))
        rest = dict.fromkeys(metric.removeprefix("eval/") for metric in others)
        groups = [(PERFORMANCE.get(metric, formatting.label(metric)), (metric, f"eval/{metric}")) for metric in rest]
        plots, more = (
            [geometry.curve_plot(title, [(m, curves[m]) for m in group if m in curves]) for title, group in titled]
            for titled in (CURVES, groups)
        )
        result.append(StageCurves(name, tuple(filter(None, plots)), tuple(filter(None, more))))
    return [stage for stage in result if stage.plots or stage.more]


def _boards(results: Results, metrics: StageMetrics) -> list[StageBoard]:
    return boards(results.config, metrics, (stage.name for stage in results.stages))


def caveats(results: Results, comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    """Yield the caveats that follow from the figures themselves."""
    if len(results.seeds) == 1:
        yield "One seed: the intervals cover the choice of prompts, not the variation between trainings."
    if judge_is_withheld(results):
        yield (
            "The judge\u2019s verdict does not count: the lower end of its accuracy is not above what length alone "
            "tells, the better of \u201clonger is better\u201d and \u201cshorter is better\u201d."
        )
    if "improved_over_policy/oracle" not in results.delta and results.delta:
        yield "There is no exact oracle for this data: a model decides which answer wins."
    small = sorted({c.delta.n for c in comparisons.values() if c.delta and c.delta.n < 1000})
    if small:
        yield f"Comparisons over fewer than 1,000 prompts are coarse; the smallest has {formatting.integer(small[0])}."


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the value of each setting of a nested configuration."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sections(results: Results, metrics: StageMetrics) -> list[tuple[str, str]]:
    """Return the anchors and titles of the sections on the page."""
    sections = (
        ("method", "Method", True),
        ("quality", "Quality", any(results.quality.values())),
        ("comparisons", "Head to head", results.delta),
        ("rewards", "Reward models", results.accuracies or results.perplexity or results.sensitivity),
        ("examples", "Examples", results.examples),
        ("training", "Training", stage_curves(results, metrics)),
        ("board", "Hacking board", _boards(results, metrics)),
        ("cost", "Cost", results.stages or results.tokens),
        ("caveats", "Caveats", True),
    )
    return [(anchor, title) for anchor, title, shown in sections if shown]


def _measure(name: str) -> str:
    """Return the measure in the name of a delta."""
    return name.split("/")[1] if "/" in name else ""


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pit.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: formatting.escape_invisible(value) if isinstance(value, str) else value,
    )
    for function in (
        formatting.signed_number,
        formatting.percent,
        formatting.short_number,
        formatting.integer,
        formatting.duration,
        formatting.memory_size,
        formatting.label,
        formatting.line_label,
        formatting.answer_symbol,
    ):
        environment.filters[function.__name__] = function
    return environment
