"""How many examples a property gets: 100, or those of a costly one, times what `make properties` asks for."""

import os

TIMES = int(os.environ.get("PIT_EXAMPLES_TIMES", "1"))


def examples(number):
    """Examples of a property whose every one takes a second: `number`, or so many times as many."""
    return number * TIMES
