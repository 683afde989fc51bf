"""The report of a run: one self-contained HTML file, and plots as PNG files.

`render` reads a run's folder: `results.json` and the `metrics.jsonl` of its stages.
"""

from pit.report.page import render, render_html

__all__ = ["render", "render_html"]
