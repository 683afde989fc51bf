"""The slice that a plan is for: its chips, which need not be attached, and the mesh of a run over them.

Figures per chip are those of `pit_kernels.microbench.generations`, with their sources.
"""

import re
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from pit.compiler import share_code
from pit.config import ConfigError, MeshConfig
from pit.errors import PitError
from pit.model.sharding import make_mesh
from pit_kernels.microbench.compiler import NoCompilerError, devices_of, without_tpu
from pit_kernels.microbench.generations import GENERATIONS, Generation

GIB = 2**30


class NoTpuCompilerError(PitError):
    """The TPU compiler is not installed."""


@dataclass(frozen=True)
class Target:
    """A slice of TPU chips.

    name: as given, for example v5e:16x16.
    generation: figures of a chip.
    devices: its chips.
    """

    name: str
    generation: Generation
    devices: tuple[Any, ...]

    @property
    def hbm_bytes(self) -> float:
        """Memory of a chip that programs may use."""
        return self.generation.hbm_gib * GIB

    def mesh(self, config: MeshConfig) -> Mesh:
        """Return the mesh of a run over the slice.

        Raises:
            ConfigError: the mesh has another number of devices than the slice has chips.
        """
        needed, chips = config.shards * config.tensor, len(self.devices)
        if needed != chips:
            raise ConfigError(
                f"mesh = {config.data} x {config.fsdp} x {config.tensor}: takes {needed} devices, and {self.name} has "
                f"{chips}; set mesh.data, mesh.fsdp and mesh.tensor to a product of {chips}, for example --set "
                f"mesh.data=1 --set mesh.fsdp={chips} --set mesh.tensor=1"
            )
        return make_mesh(config, self.devices)


def parse(name: str) -> tuple[Generation, tuple[int, ...]]:
    """Return the generation and the sides of a slice.

    Raises:
        ConfigError: the name is not one of a slice.

    Example:
        >>> generation, sides = parse("v5e:4x8")
        >>> generation.name, sides
        ('v5e', (4, 8))
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if match is None or match.group(1) not in GENERATIONS:
        raise ConfigError(
            f"--target = {name!r}: must be GENERATION:SIDES with one of {', '.join(GENERATIONS)}; for example "
            "--target v5e:4x4 or --target v4:2x2x4"
        )
    generation, sides = GENERATIONS[match.group(1)], tuple(map(int, match.group(2).split("x")))
    axes = generation.topology.count("x") + 1
    if len(sides) != axes or 0 in sides:
        example = f"{generation.name}:{'x'.join('4' * axes)}"
        raise ConfigError(
            f"--target = {name!r}: a slice of {generation.name} has {axes} sides; for example --target {example}"
        )
    return generation, sides


def find_target(name: str) -> Target:
    """Return the slice of a name.

    Raises:
        ConfigError: the name is not one of a slice, or libtpu knows no such slice.
        NoTpuCompilerError: libtpu is not installed.
    """
    generation, _ = parse(name)
    # As the commands that train do.
    share_code()
    try:
        without_tpu()
    except NoCompilerError as error:
        raise NoTpuCompilerError(
            "pit plan: libtpu, whose compiler it uses, is not installed; install it (Linux on x86) with pip install "
            '"pit-jax[tpu]"'
        ) from error
    try:
        devices = devices_of(generation, name)
    except Exception as error:  # Whatever the plugin raises for a shape that it does not know.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"--target = {name!r}: libtpu makes no such slice ({reason}); give one of those that Google's page on "
            f"{generation.name} lists, for example --target {generation.topology}"
        ) from error
    return Target(name, generation, devices)
