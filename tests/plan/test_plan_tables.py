"""Tables of a plan: sizes and times as a reader wants them."""

import pytest

from pit.plan.tables import _bytes, _seconds


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (100, "100 B"), (2**20, "1 MiB"), (2**28, "0.25 GiB"), (1536 * 2**20, "1.50 GiB")]
)
def test_sizes(size, text):
    assert _bytes(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(12.34, "12.3 s"), (0.5, "500 ms"), (2e-6, "2 us")])
def test_times(seconds, text):
    assert _seconds(seconds) == text
