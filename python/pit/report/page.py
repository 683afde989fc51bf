"""Builds the report: reads a run, decides what is said about it, and fills the template.

What a figure means is decided here (which comparison is the headline, whether an interval holds 0, whether the judge
may speak), where it can be tested; the templates only lay it out.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from pit.evaluate import schema
from pit.evaluate.schema import ExampleStep, Results, SensitivityRow
from pit.evaluate.stats import Delta, Interval, judge_verdict_allowed
from pit.report import geometry, palette, words
from pit.report.board import PREFIX, StageBoard, boards
from pit.report.geometry import Axis, Bar, CurvePlot
from pit.report.metrics import Curve, read_metrics
from pit.report.words import Piece

Tone = Literal["better", "worse", "unclear"]

FILE_NAME = "report.html"

MEASURES = {
    "oracle": "an exact oracle, which knows for every prompt how good an answer is",
    "judge": "a judge model that none of the trained models has seen",
}
"""Who judges, in words; any other measure is called by its name."""


TONE_COLOURS: dict[Tone, str] = {"better": "blue", "worse": "orange", "unclear": "grey"}

CURVES = (
    ("Loss", ("loss", "eval/loss")),
    ("Accuracy", ("accuracy", "eval/accuracy")),
    ("Reward", ("objective/reward",)),
    ("KL to the anchor, nats", ("objective/kl",)),
    ("Reward margin", ("rewards/margin",)),
    ("Output length, tokens", ("completions/mean_length",)),
)
"""Title and metrics of the plots that every stage shows first; the rest follow, folded."""

PERFORMANCE = {
    "perf/tokens_per_s": "Tokens per second",
    "perf/fill": "Row fill, share",
    "perf/data_wait_s": "Wait for data, s",
}


@dataclass(frozen=True)
class Comparison:
    """A delta as the page shows it; `delta` is None where the judge has no verdict."""

    title: str
    measure: str
    controlled: bool
    delta: Delta | None
    bar: Bar | None
    tone: Tone


@dataclass(frozen=True)
class Headline:
    """The first thing on the page: a sentence, and the comparison that it is about, if any."""

    sentence: str
    judged_by: str
    comparison: Comparison | None


@dataclass(frozen=True)
class AccuracyBar:
    """A model's accuracy on the shared axis. beats_length: whether its lower end is above the length baseline."""

    name: str
    accuracy: Interval
    bar: Bar
    beats_length: bool


@dataclass(frozen=True)
class StepView:
    """One answer of an example: its figures, and its words against those of the answer that it was written from."""

    index: int
    step: ExampleStep
    pieces: tuple[Piece, ...]

    @property
    def outcome(self) -> str:
        """What became of it: accepted, rejected, the same text again, or "" for the policy's own answer."""
        if self.step.accepted is None:
            return ""
        if self.step.accepted:
            return "accepted"
        return "unchanged" if all(piece.change == "same" for piece in self.pieces) else "rejected"


@dataclass(frozen=True)
class StageCurves:
    """The plots of one stage: those that matter, and the folded rest."""

    name: str
    plots: tuple[CurvePlot, ...]
    more: tuple[CurvePlot, ...]


def render(run_dir: Path, out_html: Path | None = None) -> Path:
    """Writes the report of a run to `out_html`: one file, no script, nothing loaded from anywhere.

    run_dir: holds `results.json`, and `stages/<stage>/metrics.jsonl` for the stages that have curves.
    out_html: where to write; `report.html` in the run's folder if None.
    Returns where it wrote. Raises ResultsError (a missing or bad results file) or MetricsError (a bad metrics line).
    """
    out_html = run_dir / FILE_NAME if out_html is None else out_html
    html = render_html(schema.read_results(run_dir), read_metrics(run_dir))
    out_html.parent.mkdir(parents=True, exist_ok=True)
    out_html.write_text(html, encoding="utf-8", errors="backslashreplace")
    return out_html


def render_html(results: Results, metrics: Mapping[str, Mapping[str, Curve]]) -> str:
    """The report as HTML text; `metrics` is what `read_metrics` returns and may be empty."""
    comparisons, delta_axis = compare(results)
    accuracies, accuracy_axis = accuracy_bars(results)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            results=results,
            headline=headline(results, comparisons),
            comparisons=comparisons,
            delta_axis=delta_axis,
            quality=geometry.quality_plot(results.quality),
            accuracies=accuracies,
            accuracy_axis=accuracy_axis,
            sensitivity=sensitivity_table(results.sensitivity),
            examples=[(example.prompt, example_steps(example.steps)) for example in results.examples],
            curves=stage_curves(results, metrics),
            boards=_boards(results, metrics),
            caveats=[*results.notes, *caveats(results, comparisons)],
            config=list(flattened(results.config)),
            sections=_sections(results, metrics),
            series_names=geometry.SERIES_NAMES,
            tones=TONE_COLOURS,
            light=palette.LIGHT,
            dark=palette.DARK,
        )
    )


def compare(results: Results) -> tuple[dict[str, Comparison], Axis | None]:
    """Every delta by name, on one axis that holds 0; the judge's are withheld where it has no verdict."""
    shown = {name: d for name, d in results.delta.items() if not (_measure(name) == schema.JUDGE and withheld(results))}
    on = (
        geometry.axis([0.0, *(e for d in shown.values() for e in (d.low, d.high))], 5, -100.0, 100.0) if shown else None
    )
    made = {}
    for name in results.delta:
        title, _, rest = name.partition("/")
        d = shown.get(name)
        made[name] = Comparison(
            title=words.spaced(title),
            measure=words.spaced(_measure(name)),
            controlled=rest.endswith("length_controlled"),
            delta=d,
            bar=geometry.bar(on, d.low, d.value, d.high) if d and on else None,
            tone=tone(d) if d else "unclear",
        )
    return made, on


def tone(d: Delta) -> Tone:
    """Whether the interval lies above 0, below it, or holds it."""
    return "better" if d.low > 0 else "worse" if d.high < 0 else "unclear"


def withheld(results: Results) -> bool:
    """Whether the judge has no verdict: it was measured, and is not shown to beat the length baseline."""
    known = results.accuracies
    return schema.JUDGE in known and not judge_verdict_allowed(known[schema.JUDGE], known[schema.LENGTH_BASELINE])


def headline(results: Results, comparisons: Mapping[str, Comparison]) -> Headline:
    """The sentence that says whether the run's answers got better."""
    measured = [name for name in schema.HEADLINES if name in comparisons]
    spoken = [name for name in measured if comparisons[name].delta is not None]
    if not spoken:
        if measured:
            return Headline(
                "No verdict: the judge is not shown to do better than preferring the longer answer.", "", None
            )
        return Headline("This run did not compare improved answers with the policy\u2019s own.", "", None)
    chosen = comparisons[spoken[0]]
    d = results.delta[spoken[0]]
    prompts = words.count(d.n)
    win, lose = words.percent(d.win / d.n), words.percent(d.lose / d.n)
    sentence = {
        "better": f"The improved answer beats the policy\u2019s own on {win} of {prompts} prompts, and loses on "
        f"{lose}.",
        "worse": f"The improved answer is worse: it loses to the policy\u2019s own on {lose} of {prompts} prompts, and "
        f"wins on {win}.",
        "unclear": f"No difference shown: the improved answer wins on {win} of {prompts} prompts, and loses on {lose}.",
    }[chosen.tone]
    measure = _measure(spoken[0])
    return Headline(sentence, MEASURES.get(measure, measure), chosen)


def accuracy_bars(results: Results) -> tuple[list[AccuracyBar], Axis | None]:
    """Accuracies, best first, on an axis that holds one half; the length baseline is among them."""
    if not results.accuracies:
        return [], None
    ends = [end for a in results.accuracies.values() for end in (a.low, a.high)]
    on = geometry.axis([0.5, *ends], 5, 0.0, 1.0)
    length = results.accuracies[schema.LENGTH_BASELINE]
    ordered = sorted(results.accuracies.items(), key=lambda item: -item[1].value)
    return [
        AccuracyBar(name, a, geometry.bar(on, a.low, a.value, a.high), judge_verdict_allowed(a, length))
        for name, a in ordered
    ], on


def sensitivity_table(
    rows: tuple[SensitivityRow, ...],
) -> tuple[list[str], list[tuple[str, list[SensitivityRow | None]]]]:
    """Model names, and for every aspect its rows in their order; None where a model was not asked."""
    models = list(dict.fromkeys(row.model for row in rows))
    cells = {(row.aspect, row.model): row for row in rows}
    aspects = dict.fromkeys(row.aspect for row in rows)
    return models, [(aspect, [cells.get((aspect, model)) for model in models]) for aspect in aspects]


def example_steps(steps: tuple[ExampleStep, ...]) -> list[StepView]:
    """The answers of an example with the words that changed."""
    return [
        StepView(
            k,
            step,
            (Piece("same", step.text),)
            if step.reference is None
            else tuple(words.word_differences(steps[step.reference].text, step.text)),
        )
        for k, step in enumerate(steps)
    ]


def stage_curves(results: Results, metrics: Mapping[str, Mapping[str, Curve]]) -> list[StageCurves]:
    """The plots of every stage with metrics, in the order in which the stages ran."""
    ran = [stage.name for stage in results.stages]
    names = [name for name in ran if name in metrics] + sorted(set(metrics) - set(ran))
    first = {metric for _, group in CURVES for metric in group}
    made = []
    for name in names:
        curves = metrics[name]
        others = (metric for metric in curves if metric not in first and not metric.startswith(PREFIX))
        rest = dict.fromkeys(metric.removeprefix("eval/") for metric in others)
        groups = [(PERFORMANCE.get(metric, words.spaced(metric)), (metric, f"eval/{metric}")) for metric in rest]
        plots, more = (
            [geometry.curve_plot(title, [(m, curves[m]) for m in group if m in curves]) for title, group in wanted]
            for wanted in (CURVES, groups)
        )
        made.append(StageCurves(name, tuple(filter(None, plots)), tuple(filter(None, more))))
    return [stage for stage in made if stage.plots or stage.more]


def _boards(results: Results, metrics: Mapping[str, Mapping[str, Curve]]) -> list[StageBoard]:
    return boards(results.config, metrics, [stage.name for stage in results.stages])


def caveats(results: Results, comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    """What the figures themselves say against reading too much into them."""
    if len(results.seeds) == 1:
        yield "One seed: the intervals cover the choice of prompts, not the luck of training."
    if withheld(results):
        yield (
            "The judge has no verdict: the lower end of its accuracy is not above that of \u201clonger is better\u201d."
        )
    if "improved_over_policy/oracle" not in results.delta and results.delta:
        yield "There is no exact oracle for this data: who wins is a model\u2019s opinion."
    small = sorted({c.delta.n for c in comparisons.values() if c.delta and c.delta.n < 1000})
    if small:
        yield f"Comparisons of fewer than 1,000 prompts are coarse; the smallest here has {words.count(small[0])}."


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a nested configuration."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sections(results: Results, metrics: Mapping[str, Mapping[str, Curve]]) -> list[tuple[str, str]]:
    """Anchors and names of the sections that the page has."""
    known = (
        ("method", "Method", True),
        ("quality", "Quality", any(results.quality.values())),
        ("comparisons", "Head to head", results.delta),
        ("rewards", "Reward models", results.accuracies or results.sensitivity),
        ("examples", "Examples", results.examples),
        ("training", "Training", stage_curves(results, metrics)),
        ("board", "Hacking board", _boards(results, metrics)),
        ("cost", "Cost", results.stages or results.tokens),
        ("caveats", "Caveats", True),
    )
    return [(anchor, title) for anchor, title, shown in known if shown]


def _measure(name: str) -> str:
    return name.split("/")[1] if "/" in name else ""


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pit.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: words.visible(value) if isinstance(value, str) else value,
    )
    for function in (
        words.signed,
        words.percent,
        words.plain,
        words.count,
        words.duration,
        words.memory,
        words.spaced,
        words.line_label,
        words.answer,
    ):
        environment.filters[function.__name__] = function
    return environment
