"""Number of examples per property: 100, or fewer for a costly one, times the factor of `make properties`."""

import os

TIMES = int(os.environ.get("PIT_EXAMPLES_TIMES", "1"))


def examples(number):
    """The number of examples of a costly property, times the factor of `make properties`."""
    return number * TIMES
