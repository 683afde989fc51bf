"""One test per invariant of `pit.testing` that applies to the model."""

import my_model
import pytest


@pytest.fixture(scope="session")
def pit_scorer():
    """Return the scorer under test."""
    return my_model.gap


def test_reward_model(pit_invariant):
    """Check one invariant."""
    pit_invariant()
