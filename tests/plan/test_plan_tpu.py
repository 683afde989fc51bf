"""Plans of a small model on a real compiler: what crosses the network, and what must not."""

import jax
import pytest
from tpu_programs import needs_libtpu

from pit.config import override
from pit.plan import tables
from pit.plan.compiling import Lowered, plan
from pit.plan.programs import Setting, programs_of
from pit.plan.target import find_target
from pit.plan.verdict import verdict
from pit.recipes.demo import tiny
from pit.stages import reward, rl
from pit_kernels.microbench.compiler import no_persistent_cache

MODEL = {"width": 256, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 64, "mlp": 512, "compute_dtype": "bfloat16"}
MODEL |= {"remat": "save_attention"}
ROWS, TOKENS = 2, 512
SETTINGS = [
    *(f"{section}.{name}={value}" for section in ("policy", "reward_model") for name, value in MODEL.items()),
    *(f"{section}.packing.rows={ROWS}" for section in ("reward_gap", "rl_policy")),
    *(f"{section}.packing.row_length={TOKENS}" for section in ("reward_gap", "rl_policy")),
    "tokenizer.vocab_size=1024",
    "rl_policy.prompts=16",
]


class Silent:
    def __init__(self):
        self.texts = []

    def update(self, done, total, text):
        self.texts.append(text)

    def note(self, text):
        self.texts.append(text)

    def close(self):
        pass


@pytest.fixture(scope="module", params=[(4, 1), (2, 2)], ids=["fsdp 4", "fsdp 2 x tensor 2"])
def made(request):
    fsdp, tensor = request.param
    config = override(tiny(), [*SETTINGS, f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}"])
    target = find_target("v5e:2x2")
    setting = Setting.of(config, target.mesh(config.mesh), None)
    return setting, target, plan([reward.GAP, rl.POLICY], setting, target, Silent())


def programs(made):
    """Return the programs of both stages by stage and name."""
    return {(each.stage.name, row.name): row for each in made[2] for row in each.rows}


@needs_libtpu
@pytest.mark.slow
def test_no_collective_holds_the_activations_of_all_rows(made):
    setting = made[0]
    for (stage, name), row in programs(made).items():
        rows = ROWS * setting.config.mesh.shards
        for each in row.account.collectives:
            sizes = [int(n) for n in each.shape.partition("[")[2].partition("]")[0].split(",") if n]
            whole = {rows * TOKENS} & set(sizes) or ({rows, TOKENS} <= set(sizes) and max(sizes[2:] or [0]) > 1)
            assert not whole or len(sizes) < 3, (stage, name, each)


@needs_libtpu
@pytest.mark.slow
def test_gradients_of_layers_are_scattered_and_the_optimizer_is_local(made):
    for (_, name), row in programs(made).items():
        totals = row.account.by_kind()
        if name.startswith("gradient"):
            assert "reduce-scatter" in totals
            # All layers: each holds four attention and three MLP matrices.
            assert all(each.trips == 3 for each in row.account.collectives if "while/body" in each.source)
        if name == "optimizer":
            assert set(totals) <= {"all-reduce"}
            assert totals.get("all-reduce", 0) < 1024


@needs_libtpu
@pytest.mark.slow
def test_layers_share_the_code_of_the_optimizer():
    target, code = find_target("v5e:2x2"), []
    for layers in (3, 9):
        deep = [f"{section}.layers={layers}" for section in ("policy", "reward_model")]
        config = override(tiny(), [*SETTINGS, *deep, "mesh.fsdp=4"])
        setting = Setting.of(config, target.mesh(config.mesh), None)
        placed = next(each for each in programs_of(reward.GAP, setting) if each.program.name == "optimizer")
        code.append(Lowered(placed, setting).compile(4).code)
    # It is 1.9 times as large; with a copy of the code per layer, 2.6 times.
    assert code[1] < 2.2 * code[0]


@needs_libtpu
@pytest.mark.slow
def test_the_vocabulary_stays_split_and_decode_never_meets_the_host(made):
    tensor = made[0].config.mesh.tensor
    for (_, name), row in programs(made).items():
        if name in ("gradient, added", "policy and anchor"):
            whole = [each for each in row.account.collectives if each.shape.startswith(("f32[1024,", "bf16[1024,256"))]
            assert tensor == 1 or not [each for each in whole if each.kind == "all-gather"], (name, whole)
    drawn = next(row for (_, name), row in programs(made).items() if name == "decode")
    with no_persistent_cache(), jax.set_mesh(made[0].mesh):
        lowered = drawn.placed.program.trace().lower(lowering_platforms=("tpu",))
        text = lowered.compile().as_text()
    assert not [word for word in (" send(", " recv(", " infeed(", " outfeed(", "S(5)") if word in text]


@needs_libtpu
@pytest.mark.slow
def test_a_plan_is_a_verdict_tables_and_values(made, tmp_path):
    setting, target, plans = made
    verdicts = [verdict(each, setting, target) for each in plans]
    assert all(each.fits and each.spare > 0.9 and not each.remedies for each in verdicts)
    values = tables.as_json(plans, verdicts, setting, target)
    assert [stage["name"] for stage in values["stages"]] == ["reward-gap", "rl-policy"]
    for stage in values["stages"]:
        for program in stage["programs"]:
            assert program["floor_s"] > 0
            assert program["peak"] > 0
            assert (program["flops"] > 0) == (program["name"] != "optimizer")
    picture = tables.plot(tmp_path / "plan.png", plans, target)
    assert picture.read_bytes().startswith(b"\x89PNG")
