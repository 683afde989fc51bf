"""Examples per second of the strategies of `pit.testing`, drawn as a test draws them.

    python bench/strategies.py [--full]

A round draws examples of each strategy through Hypothesis, whose own work is part of the time; strategies alternate,
and the clock is that of this thread.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from _measure import alternate, keep, origin, results_file, size_options, spread
from pit.data.packing import Layout
from pit.data.template import gap
from pit.testing import strategies
from pit.types import Closings

CONTENT = (7, 511)
ROWS = Layout(closings=Closings.roles(1, 2, 3), pad=0, row_length=1536, rows=4, trees=4)

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
    """Return a call that draws so many examples."""

    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def draw(example: Any) -> None:
        pass

    return draw


def main() -> None:
    """Measure and report examples per second of each strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, help="examples per round [50; with --full 1000]")
    parser.add_argument("--rounds", type=int, help="timed rounds [2; with --full 5]")
    size_options(parser, "strategies")
    options = parser.parse_args()
    examples = options.examples or (1000 if options.full else 50)
    rounds = options.rounds or (5 if options.full else 2)
    contenders = {name: drawing(strategy, examples) for name, strategy in STRATEGIES.items()}
    seconds = alternate(contenders, rounds, clock=time.thread_time)
    rates = {name: spread(examples / values) for name, values in seconds.items()}
    row = {**origin(0, rounds), "examples": examples, "examples_per_s": rates}
    least, most = (limit(rate["median"] for rate in rates.values()) for limit in (min, max))
    summary = f"{least:,.0f} to {most:,.0f} examples per second, {len(rates)} strategies"
    keep(results_file(options, "strategies"), {"strategies": row}, summary)


if __name__ == "__main__":
    main()
