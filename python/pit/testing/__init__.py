"""Property-based tests of reward models, anyone's model included: strategies, scorers, invariants and `pit check`.

An invariant names the methods of a scorer that it needs; for a scorer without them it is "not applicable", never
"held". Built on Hypothesis (`pip install 'pit-jax[testing]'`); the guide is docs/testing.md. This package imports none
of its modules, because pytest loads `pit.testing.plugin` at every start.
"""
