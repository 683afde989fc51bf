"""Every invariant of pit.testing that applies to the model, as a test."""

import my_model
import pytest


@pytest.fixture(scope="session")
def pit_scorer():
    """The model under test."""
    return my_model.gap


def test_reward_model(pit_invariant):
    """One invariant."""
    pit_invariant()
