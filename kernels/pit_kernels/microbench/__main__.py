"""`python -m pit_kernels.microbench FILE_OR_MODULE:BUILDER [--target v5e]`: static cycles of what a builder returns."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pit_kernels.microbench.generations import GENERATIONS
from pit_kernels.microbench.static import BLIND_SPOTS, Static, analyse


def load_builder(text: str) -> Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Return the function that `path/to/file.py:name` or `package.module:name` names.

    Raises:
      ValueError: if there is none.
    """
    where, _, name = text.rpartition(":")
    if not where:
        raise ValueError(f"{text!r} names no function; it must look like file.py:name or package.module:name")
    if where.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        if spec is None or spec.loader is None or not Path(where).is_file():
            raise ValueError(f"{where!r} is not a Python file; give the path of an existing .py file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    value = getattr(module, name, None)
    if not callable(value):
        raise ValueError(f"{where} has no function {name!r}")
    builder: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]] = value
    return builder


def lines(static: Static) -> list[str]:
    """Return the cost as plain text, one kernel per line."""
    out = [f"{'kernel':48} {'calls':>7} {'cycles':>12} {'HBM MB':>9} {'hot':>6} {'passes':>8} {'MXU':>5} {'VALU':>5}"]
    for kernel in static.kernels:
        cycles = "unknown" if kernel.cycles is None else f"{kernel.cycles:,}"
        calls = "?" if kernel.calls is None else f"{kernel.calls:g}"
        row = f"{kernel.name[:48]:48} {calls:>7} {cycles:>12} {sum(kernel.hbm_bytes.values()) / 1e6:9.2f}"
        if kernel.hot is not None:
            use = kernel.hot.use
            row += f" {kernel.hot.bundles:6} {kernel.hot.passes:8} {use.get('MXU', 0):5.0%} {use.get('VALU', 0):5.0%}"
        out.append(row)
    sign = "" if static.complete else ">= "
    out.append(
        f"{static.target}: {sign}{static.cycles:,} cycles = {static.compute_us:.1f} us; "
        f"HBM {static.hbm_bytes / 1e6:.2f} MB = {static.memory_us:.1f} us; estimate {sign}{static.us:.1f} us"
    )
    fills, spills = (sum(getattr(kernel, name) for kernel in static.kernels) for name in ("fills", "spills"))
    out.append(
        f"vector registers: {fills:,} fills, {spills:,} spills; VMEM of the largest kernel {static.vmem_bytes:,} bytes"
    )
    out += [f"not known: {note}" for note in static.notes]
    out += [f"blind spot: {spot}" for spot in BLIND_SPOTS]
    return out


def main(arguments: list[str] | None = None) -> None:
    """Run the module's command line."""
    parser = argparse.ArgumentParser(prog="python -m pit_kernels.microbench", description=__doc__)
    parser.add_argument(
        "builder", help="file.py:name or package.module:name; a function that gives (function, arguments)"
    )
    parser.add_argument("--target", choices=GENERATIONS, default="v5e")
    parser.add_argument("--keep-dumps", type=Path, help="folder for the compiler's dumps")
    options = parser.parse_args(arguments)
    function, given = load_builder(options.builder)()
    print("\n".join(lines(analyse(function, given, options.target, keep_dumps=options.keep_dumps))))


if __name__ == "__main__":
    main()
