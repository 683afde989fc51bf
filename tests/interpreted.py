"""TPU kernels on a CPU, as the tests run them: buffers start as NaN, reads out of bounds raise, races are detected."""

import contextlib

from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu

from pit_kernels.dispatch import Route

QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options of the tests' programs, whose time is mostly compilation. Only an outermost jit takes them."""

INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")


@contextlib.contextmanager
def no_races():
    """Assert that no kernel interpreted inside touched memory that a copy was still reading or writing."""
    # JAX prints a race and keeps it here; it has no public interface.
    interpreter.races = None
    yield
    assert interpreter.races is None or not interpreter.races.races_found, "a race between copies; see the output"


@contextlib.contextmanager
def tpu_kernels_everywhere(monkeypatch):
    """Run the backends that "auto" takes on a TPU on any platform, their kernels interpreted."""

    def run(route, direction, settings, *arrays):
        return getattr(route.on("tpu"), direction)(settings, *arrays)

    with monkeypatch.context() as patch, pltpu.force_tpu_interpret_mode(INTERPRET), no_races():
        patch.setattr(Route, "_run", run)
        yield
