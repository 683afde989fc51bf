"""Compiles a program for a TPU that is not attached and keeps the compiler's account of it."""

import atexit
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pit_kernels.microbench.bundles import KernelDump, find_kernels
from pit_kernels.microbench.generations import GENERATIONS, Generation

_LIBTPU_NAMES = {"v7x": "tpu7x"}
"""libtpu's names of generations, where they are not ours."""

_FLAG = "--xla_jf_dump_to="
_FLAGS = "--xla_jf_dump_llo_text=true --xla_jf_emit_annotations=true"


class NoCompilerError(RuntimeError):
    """The TPU compiler is not available; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class Compilation:
    """A compiled program.

    jaxpr: the closed jaxpr that was compiled.
    hlo: text of its scheduled HLO.
    kernels: dumps of its kernels by the name of the instruction; "TLP" is the program itself.
    memory: XLA's account of its memory.
    """

    target: str
    jaxpr: Any
    hlo: str
    kernels: dict[str, KernelDump]
    memory: Any


def unavailable_reason() -> str | None:
    """Return why this machine cannot compile for TPUs, or None when it can."""
    if importlib.util.find_spec("libtpu") is None:
        return 'libtpu is not installed: pip install "jax[tpu]"'
    return None


def without_tpu() -> None:
    """Tell libtpu that no TPU is attached, which works only before it is loaded.

    Without this libtpu asks the metadata server of Google's cloud which machine this is, and only one process of a
    machine may compile at a time.

    Raises:
      NoCompilerError: if libtpu is not installed.
    """
    reason = unavailable_reason()
    if reason is not None:
        raise NoCompilerError(f"no TPU compiler: {reason}")
    for name, value in (
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ):
        os.environ.setdefault(name, value)


def prepare() -> Path:
    """Tell libtpu to dump, which works only before its first compilation, and return the folder of the dumps.

    Raises:
      NoCompilerError: if libtpu is not installed.
    """
    without_tpu()
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    for flag in flags.split():
        if flag.startswith(_FLAG):
            folder = Path(flag.removeprefix(_FLAG))
            break
    else:
        folder = Path(tempfile.mkdtemp(prefix="pit-kernels-dumps-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {_FLAG}{folder} {_FLAGS}".strip()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def devices_of(generation: Generation, slice_name: str) -> tuple[Any, ...]:
    """Return the devices of a slice, as `GENERATIONS` has them; none is attached.

    Args:
      generation: generation of the slice.
      slice_name: name of the generation and sides of the slice, such as "v5e:2x2".

    Raises:
      Exception: whatever libtpu raises for a slice that it does not know.
    """
    name, _, sides = slice_name.partition(":")
    libtpus = f"{_LIBTPU_NAMES.get(name, name)}:{sides}"
    topology = topologies.get_topology_desc(platform="tpu", topology_name=libtpus, **generation.chip_config)
    return tuple(topology.devices)


@contextmanager
def compiled_for(
    function: Callable[..., Any], arguments: Sequence[Any], target: str, keep: Path | None = None
) -> Iterator[Compilation]:
    """Compile `jax.jit(function)(*arguments)` for one device of a TPU; the dumps live as long as the context.

    Args:
      function: traced with a mesh of one device of the target in context.
      arguments: arrays or `jax.ShapeDtypeStruct`s.
      target: a key of GENERATIONS.
      keep: folder that the dumps are moved to in the end; they are deleted when None.

    Raises:
      NoCompilerError: if libtpu is not installed, or compiled something in this process before `prepare`.
      ValueError: if the target is not known.
    """
    if target not in GENERATIONS:
        raise ValueError(f"target is {target!r}; it must be one of {', '.join(GENERATIONS)}")
    folder = prepare()
    _empty(folder)
    generation = GENERATIONS[target]
    mesh = Mesh([devices_of(generation, generation.topology)[0]], ("core",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tuple(arguments))
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    # A program from the persistent cache would not be compiled, and nothing would be dumped.
    with jax.set_mesh(mesh), no_persistent_cache():
        traced = jitted.trace(*shapes)
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    kernels = find_kernels(folder)
    if "TLP" not in kernels:
        raise NoCompilerError(
            "libtpu dumped nothing: it was loaded in this process before its dumps were switched on. Call "
            "pit_kernels.microbench.prepare() before anything else compiles for a TPU, or use a new process"
        )
    try:
        yield Compilation(target, traced.jaxpr, compiled.as_text(), kernels, compiled.memory_analysis())
    finally:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                shutil.move(path, keep / path.name)
        _empty(folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@contextmanager
def no_persistent_cache() -> Iterator[None]:
    """Compile without JAX's persistent cache, which can store a program for an absent TPU but not read it."""
    enabled = bool(jax.config.values["jax_enable_compilation_cache"])
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks once whether there is a cache, and remembers.
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()
