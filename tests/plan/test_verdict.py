"""Verdicts on accounts that are made up: what fits, what would, and by how much."""

import dataclasses

import pytest

from pit.config import override
from pit.model.sharding import make_mesh
from pit.plan.account import Account, refused
from pit.plan.compiling import Row, StagePlan
from pit.plan.programs import Setting, programs_of
from pit.plan.target import GIB, Target
from pit.plan.traffic import Collective
from pit.plan.verdict import verdict
from pit.recipes.demo import tiny
from pit.stages import reward
from pit_kernels.microbench.generations import GENERATIONS

V5E = GENERATIONS["v5e"]


def stage_plan(config, hbm_gib, **of_gradient):
    """Return the plan of R_PIT with the account of its gradient made up, on chips of some memory."""
    setting = Setting.of(config, make_mesh(config.mesh), None)
    target = Target("v5e:1x2", dataclasses.replace(V5E, hbm_gib=hbm_gib), (None,) * 2)
    rows = [
        Row(placed, Account(code=0, **of_gradient) if placed.program.name == "gradient" else Account())
        for placed in programs_of(reward.GAP, setting)
    ]
    return StagePlan(reward.GAP, rows), setting, target


def test_a_stage_fits_by_its_worst_program_with_code():
    plan, setting, target = stage_plan(tiny(), 4.0, arguments=GIB, outputs=GIB, aliased=GIB // 2, temporaries=GIB)
    assert plan.worst.name == "gradient"
    made = verdict(plan, setting, target)
    assert made.fits
    assert made.remedies == []
    assert made.text(target) == "fits in 4 GiB with 37% to spare" or made.spare == pytest.approx(0.375, abs=0.001)


def test_fewer_rows_help_only_as_far_as_temporaries_go():
    config = override(tiny(), ["reward_gap.packing.rows=8"])
    plan, setting, target = stage_plan(config, 3.0, arguments=GIB, temporaries=4 * GIB)
    made = verdict(plan, setting, target)
    assert not made.fits
    rows = next(each for each in made.remedies if "packing.rows" in each.setting)
    # One GiB stays, and half a GiB per row: three rows, because code and state take a little too.
    assert rows.setting == "reward_gap.packing.rows=3"
    assert rows.fits
    assert "reward_gap.packing.rows=3 (2.5 GiB, at best: if temporaries shrink with the rows)" in made.text(target)
    plan, setting, target = stage_plan(config, 0.5, arguments=GIB, temporaries=4 * GIB)
    assert not any(each.fits for each in verdict(plan, setting, target).remedies if "rows" in each.setting)
    assert "no single setting tried makes it fit; nearest: " in verdict(plan, setting, target).text(target)


def test_a_program_that_the_compiler_refuses_does_not_fit():
    plan, setting, target = stage_plan(tiny(), 4.0, refused=9 * GIB)
    made = verdict(plan, setting, target)
    assert (made.fits, made.spare < -1) == (False, True)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5 * GIB),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (298.21G) "
            "exceeds available HBM (15.75G).",
            298.21 * GIB,
        ),
        ("INTERNAL: Mosaic failed", None),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.", None),
    ],
)
def test_what_the_compiler_asked_for_is_read_from_its_error(text, asked):
    assert refused(RuntimeError(text)) == (None if asked is None else int(asked))


def test_the_least_time_is_the_largest_of_three():
    sent = Collective("all-gather", "bf16[2]", 0, 1e9, 4, trips=3, looped=False, source="")
    made = Account(flops=197e12 * 0.02, hbm_bytes=819e9 * 0.01, collectives=[sent])
    # Three gigabytes over links of 200 GB/s take 15 ms.
    assert made.floor(V5E) == (pytest.approx(0.02), "compute")
    assert dataclasses.replace(made, flops=0.0).floor(V5E) == (pytest.approx(0.015), "network")
    assert made.sent_bytes == 3e9
