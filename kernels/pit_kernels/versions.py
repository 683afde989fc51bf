"""Names that moved between the versions of JAX that the package serves: no other module knows of them."""

from collections.abc import Callable
from typing import Any

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

reciprocal: Callable[..., Any] = pltpu.reciprocal if hasattr(pltpu, "reciprocal") else pl.reciprocal
"""Estimate of 1 / x by a TPU: of Pallas in jax 0.10, of its TPU half in later ones."""
