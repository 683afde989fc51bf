"""The findings of a check in sentences, the worst first: what a person should know before looking at tables."""

from pit.testing.report import Report, Result, Status, format_interval

_LISTED = 5
"""Biases that are named."""

_NOTHING = "no exact invariant was checked"


def findings_of(report: Report) -> list[str]:
    """Return the findings: violations, figures at or below those of knowing nothing, rulers, biases, cut texts."""
    held = len(report.of_status(Status.HELD))
    findings = [f"violated: {result.name}: {result.detail}" for result in report.violations]
    if not findings:
        findings.append(f"all {held} exact invariants that could be checked hold" if held else _NOTHING)
    findings += [f"{_figure(result)} lies below {result.floor:.4g}" for result in report.results if result.below_floor]
    by_name = {result.name: result for result in report.results if result.interval is not None}
    if (accuracy := by_name.get("accuracy")) is not None and not accuracy.below_floor:
        findings.append(f"{_figure(accuracy)} is {accuracy.detail}")
    if (rulers := by_name.get("above_rulers")) is not None:
        findings.append(f"{rulers.detail.partition('; ')[2]}: {_figure(rulers)}")
    findings += _biases(list(by_name.values()))
    end = by_name.get("reads_the_end")
    if end is not None and end.interval is not None and end.interval.high < 1:
        parts = ", ".join(f"{interval.value:.2f} at {label}" for label, interval in end.table)
        findings.append(f"the end of long answers is not always read: {parts}")
    return findings


def _biases(results: list[Result]) -> list[str]:
    """Return a sentence for what is clearly biased: accuracy that falls, and figures whose ideal is 0 and are not."""
    losses = [each for each in results if each.kind in ("bias", "invariance") and _high(each) < 0]
    losses.sort(key=lambda result: result.interval.value if result.interval is not None else 0.0)
    sentences = []
    if losses:
        named = ", ".join(f"{each.name} {each.interval.value:+.3f}" for each in losses[:_LISTED] if each.interval)
        rest = f", and {len(losses) - _LISTED} more" if len(losses) > _LISTED else ""
        sentences.append(f"accuracy falls on {len(losses)} axes of matched pairs: {named}{rest}")
    # The ideal of the calibration is 0 as well, but only a scorer trained with a logistic loss claims it.
    signed = [each for each in results if each.name in ("length_bias", "order_bias") and each.interval is not None]
    return sentences + [
        f"{_figure(each)}: {each.statement}, ideally 0"
        for each in signed
        if each.interval is not None and not each.interval.low <= 0 <= each.interval.high
    ]


def _high(result: Result) -> float:
    return 1.0 if result.interval is None else result.interval.high


def _figure(result: Result) -> str:
    return result.name if result.interval is None else f"{result.name} = {format_interval(result.interval)}"
