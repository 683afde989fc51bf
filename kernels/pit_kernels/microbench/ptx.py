"""Compiles the Triton kernels of a call for a GPU that is not attached, and reads what the assembler says of them.

`triton.compile` gives PTX; NVIDIA's ptxas, which comes with Triton, gives registers, spills and shared memory. Nothing
here says how fast a kernel is.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from pit_kernels import gpu, triton_call
from pit_kernels.triton_call import Launch

INSTRUCTIONS = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma": "mma.sync"}
"""Matrix instructions of PTX, the newest first."""


class AssemblerError(RuntimeError):
    """ptxas refused a kernel; the message is its own."""


@dataclass(frozen=True)
class Machine:
    """Resources of one compiled kernel.

    registers: registers of a thread, at most 255.
    spill_bytes: bytes that a thread writes to memory for lack of registers.
    shared_bytes: shared memory of a program.
    matrix: kind of matrix instruction, or "none".
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    matrix: str

    def figures(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def launches(function: Callable[..., Any], arguments: Sequence[Any], architecture: str) -> list[Launch]:
    """Return the launches that a function makes on a GPU of an architecture; nothing runs.

    Args:
      function: calls kernels with `triton_call.call`.
      arguments: arrays or `jax.ShapeDtypeStruct`s.
      architecture: one of `gpu.ARCHITECTURES`.
    """
    with jax.sharding.use_abstract_mesh(gpu.mesh_of(architecture)), triton_call.recorded() as launched:
        # A fresh function: JAX traces one that it knows only once.
        jax.eval_shape(lambda *arrays: function(*arrays), *arguments)
    return launched


def compiled(launch: Launch, architecture: str) -> Machine:
    """Return what ptxas says of a launch's kernel.

    Raises:
      AssemblerError: if ptxas refuses the kernel.
    """
    triton = triton_call.compiler()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = launch.signature
    pointers = len(launch.inputs) + len(launch.outputs)
    source = ASTSource(
        fn=launch.function,
        signature=signature,
        constexprs=dict(launch.constants),
        # JAX aligns every array.
        attrs={(number,): [["tt.divisibility", 16]] for number in range(pointers)},
    )
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
    kernel = triton.compile(source, target=GPUTarget("cuda", _number(architecture), 32), options=options)
    text = kernel.asm["ptx"]
    matrix = next((name for name, instruction in INSTRUCTIONS.items() if instruction in text), "none")
    registers, spills = _assembled(text, architecture)
    return Machine(registers, spills, int(kernel.metadata.shared), matrix)


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))


def _assembled(text: str, architecture: str) -> tuple[int, int]:
    """Return registers and spilled bytes of PTX."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = Path(get_ptxas(_number(architecture)).path)
    target = re.search(r"^\.target (\w+)", text, re.MULTILINE)
    assert target is not None, "PTX names its target"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(text, encoding="utf-8")
        words = [str(tool), "-v", f"--gpu-name={target[1]}", str(path), "-o", str(path.with_suffix(".cubin"))]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssemblerError(f"{tool.name} refused a kernel for {target[1]}: {done.stderr.strip()}")
    registers = re.findall(r"Used (\d+) registers", done.stderr)
    spills = re.findall(r"(\d+) bytes spill stores", done.stderr)
    return max(map(int, registers)), sum(map(int, spills))
