"""Settings of every test: two CPU devices, strict promotion, run-time shape checks, a Hypothesis profile."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import compiling

# JAX reads these once, when it is first imported.
os.environ["XLA_FLAGS"] = compiling.with_devices(os.environ.get("XLA_FLAGS", ""), 2)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Much of the tests' time is compilation, and many processes compile the same programs: they share a cache for this run
# of the tests. Workers and the commands that tests start inherit the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="pit-programs-of-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax
import jaxtyping
import pytest
from effort import TIMES, examples
from hypothesis import HealthCheck, settings

# Shapes and types of annotated functions are checked on every call; the hook must precede the packages' first import.
jaxtyping.install_import_hook(["pit", "pit_kernels"], "beartype.beartype")

settings.register_profile(
    "pit",
    max_examples=examples(100),
    deadline=None,
    derandomize=TIMES == 1,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("pit")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the compiler before the first program is compiled."""
    if _is_fast(config):
        os.environ["XLA_FLAGS"] += f" {compiling.QUICK}"


def _is_fast(config: pytest.Config) -> bool:
    """Return whether only the fast tests run."""
    return bool(config.option.markexpr == "not slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files with whole runs first, because they take longest: the workers then end at about the same time."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish() -> None:
    """Let the collector pass over what was imported, and come less often: traces make many objects and few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


_OPTIMISED = ("kernels", "plan")
"""Folders whose programs are looked at, or compiled for TPUs; so are those of files that end in _tpu."""


@pytest.fixture(scope="module", autouse=True)
def quick_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the fast tests compile without optimising, commands that they start too: they take half as long.

    With the slow tests, in `make test-all`, all programs are those that users have.
    """
    whole = request.path.parent.name in _OPTIMISED or request.path.stem.endswith("_tpu")
    quick = _is_fast(request.config) and not whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quick)))
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", quick)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def fresh_stages() -> Iterator[None]:
    """Let finished stages be fresh weights."""
    from pit.run.stage import Stage
    from pit.train.log import PROGRESS_VARIABLE

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "load", Stage.fresh)
        patch.setenv(PROGRESS_VARIABLE, "json")
        yield
