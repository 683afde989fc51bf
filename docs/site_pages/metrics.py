"""The tables of metrics, from `pit.train.catalogue`, and of the hacking board's limits, from `pit.rl.board`."""

from pit.config import BoardConfig
from pit.rl.board import WATCHES
from pit.train.catalogue import METRICS
from site_pages.tables import code, table


def metrics_page() -> str:
    """Return the table of all metrics."""
    rows = (
        (code(metric.name), metric.stages, metric.unit, metric.meaning + (" (deep)" if metric.deep else ""))
        for metric in METRICS
    )
    return table(("metric", "logged by", "unit", "meaning"), rows)


def limits_page() -> str:
    """Return the table of the limits of a `BoardConfig`, at their defaults."""
    rows = []
    for watch in WATCHES:
        limit = getattr(BoardConfig(), watch.limit).limit
        shown = "none" if limit is None else f"{limit:g}"
        rows.append((code(f"board.{watch.limit}.limit"), shown, watch.side, code(watch.metric), watch.meaning))
    return table(("limit", "default", "side", "metric", "beyond it"), rows)
