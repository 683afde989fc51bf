"""Collectives and memory traffic, from texts as the TPU compiler schedules them."""

from pathlib import Path

import pytest

from pit.plan.traffic import collectives, hbm_bytes, nbytes_of
from pit_kernels.microbench.hlo import parse_module

PROGRAM = Path(__file__).with_name("example.hlo").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def module():
    return parse_module(PROGRAM)


def test_trips_are_read_from_the_condition_of_a_loop(module):
    assert module.trips(module.by_name["layers"]) == 6
    assert module.trips(module.by_name["loop"]) is None


def test_each_collective_counts_once_with_its_kind_group_and_trips(module):
    found = {each.kind: each for each in collectives(module, 8)}
    assert len(collectives(module, 8)) == 4
    gather, scatter = found["all-gather"], found["reduce-scatter"]
    assert (gather.group, gather.trips, gather.nbytes, gather.sent_bytes) == (4, 6, 256, 192.0)
    assert (gather.shape, gather.source) == ("bf16[16,8]", "jit(f)/layer/dot_general")
    # Each of four chips sends the three quarters that it does not keep.
    assert (scatter.group, scatter.trips, scatter.nbytes, scatter.sent_bytes) == (4, 1, 512, 384.0)
    swap, moved = found["all-to-all"], found["collective-permute"]
    assert (swap.group, swap.trips, swap.looped, swap.sent_bytes) == (2, 1, True, 8.0)
    assert (moved.nbytes, moved.looped) == (20, False)


def test_memory_counts_slices_and_leaves_out_what_stays_on_the_core(module):
    # Six layers read 16 bytes of the weights and 16 of x, every draw reads 16; then g, once.
    layers, draw, rest = 6 * (16 + 4 + 16), 16 + 16 + 1, 512 + 16 + 32
    assert hbm_bytes(module, loop_steps=5) - hbm_bytes(module, loop_steps=4) == draw
    assert hbm_bytes(module) >= layers + draw + rest


def test_sizes_of_shapes():
    assert nbytes_of("pred[3]{0}") == 3
    assert nbytes_of("(bf16[2,3], /*index=1*/f32[], s4[4])") == 12 + 4 + 2
    assert nbytes_of("f8e4m3fn[16]") == 16
