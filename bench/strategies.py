"""Examples a second of the strategies of `pit.testing`, drawn as a test draws them.

Run: `python bench/strategies.py`. A round draws so many examples of each strategy through Hypothesis, whose own work is
part of it; the time is that of this thread, as the strategies take turns.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from _measure import alternate, merge_rows, origin, spread
from pit.data.packing import Layout
from pit.data.template import gap
from pit.testing import strategies

OUT = Path(__file__).parent / "results" / "strategies.json"
CONTENT = (7, 511)
ROWS = Layout(closings=(1, 2, 3), pad=0, row_length=1536, rows=4, trees=4)

STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "token_sequences of up to 512": strategies.token_sequences(CONTENT, 512),
    "texts": strategies.texts(),
    "conversations": strategies.conversations(),
    "preferences": strategies.preferences(),
    "gap forests of short segments": strategies.forests(gap(), CONTENT, 6),
    "gap forests of up to 511": strategies.forests(gap(), CONTENT, 511),
    "packed gap rows of up to 511": strategies.packed_rows(gap(), CONTENT, 511, ROWS),
    "curricula": strategies.curricula(),
}


def drawing(strategy: st.SearchStrategy[Any], examples: int) -> Callable[[], None]:
    """A call that draws so many examples."""

    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def draw(example: Any) -> None:
        pass

    return draw


def main() -> None:
    """Measure, print, and write bench/results/strategies.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    contenders = {name: drawing(each, arguments.examples) for name, each in STRATEGIES.items()}
    seconds = alternate(contenders, arguments.rounds, clock=time.thread_time)
    rates = {name: spread(arguments.examples / each) for name, each in seconds.items()}
    row = {**origin(0, arguments.rounds), "examples": arguments.examples, "examples_per_s": rates}
    merge_rows(arguments.out, {"strategies": row})
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
