"""Settings of every test: two CPU devices, strict promotion, run-time shape checks, a Hypothesis profile."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# JAX reads these once, when it is first imported.
_TWO_DEVICES = "--xla_force_host_platform_device_count=2"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_TWO_DEVICES}".strip()
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

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from effort import TIMES, examples  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files with whole runs first, because they take longest: the workers then end at about the same time."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


_OPTIMISED = ("kernels", "plan")
"""Folders whose programs are looked at, or compiled for TPUs; so are those of files that end in _tpu."""

_WHOLE_RUNS = "test_run"
"""File whose runs are compared to the bit with one that is made before its tests."""


@pytest.fixture(scope="module", autouse=True)
def quick_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the fast tests compile without optimising, commands that they start too: they take half as long.

    With the slow tests, in `make test-all`, all programs are those that users have.
    """
    fast, stem = request.config.option.markexpr == "not slow", request.path.stem
    whole = request.path.parent.name in _OPTIMISED or stem.endswith("_tpu") or stem == _WHOLE_RUNS
    quick = fast and not whole
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
