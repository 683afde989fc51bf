"""The report of a run: one HTML file that a stranger can read, offline, and the plot of the README.

`render` reads a run's folder; everything that it shows comes from `results.json` and the stages' `metrics.jsonl`.
"""

from pit.report.page import render, render_html

__all__ = ["render", "render_html"]
