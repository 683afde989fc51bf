"""Optax raises Python floats to integer counts, which strict promotion refuses: steps of an optimizer run without it."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield
