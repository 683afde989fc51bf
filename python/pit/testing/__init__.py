"""Property-based testing of reward models, for anyone's model: strategies, scorers, invariants and `pit check`.

An invariant says what it needs of a scorer; where a scorer has less, the answer is "not applicable", never "held".
Built on hypothesis (`pip install 'pit-jax[testing]'`); see docs/testing.md. The modules are imported one by one,
because pytest loads `pit.testing.plugin` at every start.
"""
