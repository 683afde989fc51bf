"""What is said before a run: where this processor makes a setting slow, and by which settings it is quick."""

import shlex

import pytest

from pit.config import override
from pit.plan.advice import advice, processor_flags
from pit.recipes.demo import tiny

BFLOAT16 = ("policy.compute_dtype=bfloat16", "reward_model.compute_dtype=bfloat16", "base.dtype=bfloat16")


@pytest.fixture(autouse=True)
def on_cpus(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.mark.parametrize("asked", [BFLOAT16, BFLOAT16[:1], BFLOAT16[1:2]], ids=["all", "policy", "reward models"])
def test_settings_that_the_advice_gives_need_no_advice(asked):
    config = override(tiny(), asked)
    (line,) = advice(config, {"avx2"})
    given = [word for word in shlex.split(line) if "=" in word]
    assert len(given) == len(asked)
    assert advice(override(config, given), {"avx2"}) == []


@pytest.mark.parametrize("flags", [{"avx2", "amx_bf16"}, {"avx512_bf16"}, set()], ids=["AMX", "AVX-512", "not known"])
def test_nothing_is_said_where_bfloat16_is_quick_or_nobody_knows(flags):
    assert advice(override(tiny(), BFLOAT16), flags) == []


def test_nothing_is_said_of_other_devices(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    assert advice(override(tiny(), BFLOAT16), {"avx2"}) == []


def test_flags_are_those_of_the_system(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nmodel name\t: flags of x\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: avx2 amx_bf16\n"
    )
    assert processor_flags(file) == {"fpu", "avx2", "amx_bf16"}
    assert processor_flags(tmp_path / "none") == set()
