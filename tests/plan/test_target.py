"""Slices by name, and errors that name the remedy."""

import pytest
from tpu_programs import needs_libtpu

from pit.config import ConfigError, MeshConfig
from pit.plan import target
from pit.plan.target import NoTpuCompilerError, Target, find_target, parse
from pit_kernels.microbench.generations import GENERATIONS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e", "must be GENERATION:SIDES with one of v4, v5e, v5p, v6e, v7x"),
        ("v9:2x2", "must be GENERATION:SIDES with one of v4, v5e, v5p, v6e, v7x"),
        ("v5e:2x", "must be GENERATION:SIDES"),
        ("v5e:2x2x2", "a slice of v5e has 2 sides; for example --target v5e:4x4"),
        ("v4:4x4", "a slice of v4 has 3 sides; for example --target v4:4x4x4"),
        ("v5e:0x4", "a slice of v5e has 2 sides"),
    ],
)
def test_names_that_are_no_slice_are_refused(name, words):
    with pytest.raises(ConfigError) as caught:
        parse(name)
    assert str(caught.value).startswith(f"--target = {name!r}: ")
    assert words in str(caught.value)


def test_a_mesh_must_have_as_many_devices_as_the_slice_has_chips():
    four = Target("v5e:2x2", GENERATIONS["v5e"], (None,) * 4)
    with pytest.raises(ConfigError) as caught:
        four.mesh(MeshConfig(data=1, fsdp=8, tensor=4))
    assert str(caught.value) == (
        "mesh = 1 x 8 x 4: takes 32 devices, and v5e:2x2 has 4; set mesh.data, mesh.fsdp and mesh.tensor to a product "
        "of 4, for example --set mesh.data=1 --set mesh.fsdp=4 --set mesh.tensor=1"
    )


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("pit_kernels.microbench.compiler.unavailable_reason", lambda: "libtpu is not installed")
    with pytest.raises(
        NoTpuCompilerError, match=r'is not installed; install it .* pip install "pit-jax\[tpu\]"'
    ) as caught:
        find_target("v5e:2x2")
    assert "\n" not in str(caught.value)


@needs_libtpu
@pytest.mark.slow
def test_slices_have_their_chips_and_others_are_refused():
    assert len(find_target("v5e:4x4").devices) == 16
    megacore = find_target("v4:2x2x4")
    assert len(megacore.devices) == 16
    mesh = megacore.mesh(MeshConfig(data=1, fsdp=8, tensor=2))
    assert mesh.shape == {"data": 1, "fsdp": 8, "tensor": 2}
    # No axis of 8 is a product of sides of a cube of 4.
    cube = find_target("v5p:4x4x4").mesh(MeshConfig(data=2, fsdp=8, tensor=4))
    assert cube.shape == {"data": 2, "fsdp": 8, "tensor": 4}
    assert len({device.id for device in cube.devices.flat}) == 64
    with pytest.raises(ConfigError, match="libtpu makes no such slice"):
        find_target("v5e:3x5")
    assert megacore.hbm_bytes < 32 * target.GIB
