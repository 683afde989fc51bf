"""A config survives JSON, takes edits by name, and refuses what cannot work with words that say what to do."""

import dataclasses
import json
import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pit.config import (
    BoardConfig,
    ConfigError,
    DataConfig,
    EvaluateConfig,
    ImproveConfig,
    KlConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    RefreshConfig,
    RlConfig,
    RunConfig,
    TokenizerConfig,
    TrainConfig,
    WindowConfig,
    digest,
    from_dict,
    gemma_like,
    override,
    to_dict,
)
from pit.recipes.demo import demo, tiny

# The default rows are too short for the default windows of the paper.
DEFAULT_PATH = 3 * 512
LONG = PackingConfig(row_length=DEFAULT_PATH)


def valid(**changes):
    train, rl = TrainConfig(packing=LONG), RlConfig(packing=LONG)
    values = {
        "sft_policy": train,
        "sft_improver": train,
        "quality": train,
        "gap": train,
        "judge": train,
        "rl_policy": rl,
        "rl_first": dataclasses.replace(rl, sources=(1, 1, 0)),
        "rl_second": dataclasses.replace(rl, sources=(0, 0, 1)),
    }
    return RunConfig(**(values | changes))


positive = st.integers(1, 500)
models = st.builds(
    lambda kv, group, half, **rest: ModelConfig(kv_heads=kv, heads=kv * group, head_dim=2 * half, **rest),
    kv=st.integers(1, 4),
    group=st.integers(1, 4),
    half=st.integers(1, 64),
    width=positive,
    layers=positive,
    mlp=positive,
    norm_eps=st.floats(1e-9, 1e-3),
    tied=st.booleans(),
    activation=st.sampled_from(["silu", "gelu"]),
    attention_soft_cap=st.none() | st.floats(1, 99),
    compute_dtype=st.sampled_from(["float32", "bfloat16"]),
    matched_heads=st.integers(0, 1),
)
packings = st.builds(PackingConfig, row_length=st.integers(DEFAULT_PATH, 9999), rows=positive, microbatches=positive)
optimizers = st.builds(OptimizerConfig, learning_rate=st.floats(1e-9, 1), end_fraction=st.floats(0, 1))
trains = st.builds(
    TrainConfig,
    steps=st.none() | positive,
    packing=packings,
    optimizer=optimizers,
    init=st.sampled_from(["random", "policy"]),
)
gap_trains = st.builds(dataclasses.replace, trains, ordered_pairs=st.sampled_from(["five", "one"]))
configs = st.builds(
    valid,
    name=st.text(max_size=9),
    seed=st.integers(0, 2**40),
    data=st.builds(DataConfig, path=st.none() | st.text(max_size=9), strict=st.booleans()),
    policy=models,
    reward_model=models | models.map(gemma_like),
    sft_policy=trains.map(lambda config: dataclasses.replace(config, init="random")),
    sft_improver=trains,
    gap=gap_trains,
    rl_first=st.builds(
        RlConfig,
        packing=packings,
        gap=st.sampled_from(["raw", "centred", "symmetric"]),
        sources=st.tuples(positive, st.integers(0, 9), st.integers(0, 9)),
        beta=st.floats(0, 9),
    ),
    improve=st.builds(ImproveConfig, threshold=st.floats(-9, 9)),
)


@given(config=configs)
@example(config=dataclasses.replace(demo(), data=DataConfig(path="none")))
def test_a_config_survives_json(config):
    again = from_dict(RunConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert digest(again) == digest(config)


@given(one=configs, two=configs)
def test_digests_are_equal_exactly_where_configs_are(one, two):
    assert (digest(one) == digest(two)) == (one == two)


@given(config=configs)
def test_every_value_can_be_set_from_the_command_line(config):
    """Each leaf of the config, written out as text, is read back as the same value."""

    def settings_of(values, where):
        for name, value in values.items():
            if isinstance(value, dict):
                yield from settings_of(value, f"{where}{name}.")
            else:
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                yield f"{where}{name}={'none' if value is None else text.lower() if isinstance(value, bool) else text}"

    assert override(config, list(settings_of(to_dict(config), ""))) == config


@pytest.mark.parametrize("recipe", [demo, tiny])
def test_recipes_are_valid_and_survive_json(recipe):
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(recipe())))) == recipe()


def test_gemma_changes_what_it_lists_and_nothing_else():
    config = ModelConfig(width=96, tied=False)
    changed = {k: v for k, v in to_dict(gemma_like(config)).items() if v != to_dict(config)[k]}
    assert changed == {
        "activation": "gelu",
        "norm_offset": True,
        "embed_scale": True,
        "post_norm": True,
        "tied": True,
        "norm_eps": 1e-6,
    }


OVERRIDES = [
    ("seed=3", lambda c: c.seed, 3),
    ("seed=1_000", lambda c: c.seed, 1000),
    ("name=a=b", lambda c: c.name, "a=b"),
    ("data.path=none", lambda c: c.data.path, None),
    ("data.path=/x", lambda c: c.data.path, "/x"),
    ("data.strict=true", lambda c: c.data.strict, True),
    ("sft_policy.steps=7", lambda c: c.sft_policy.steps, 7),
    ("sft_policy.steps=none", lambda c: c.sft_policy.steps, None),
    ("sft_policy.optimizer.learning_rate=1e-4", lambda c: c.sft_policy.optimizer.learning_rate, 1e-4),
    ("rl_first.sources=2,1,0", lambda c: c.rl_first.sources, (2, 1, 0)),
    ("rl_first.gap=symmetric", lambda c: c.rl_first.gap, "symmetric"),
    ("rl_first.gap=difference", lambda c: c.rl_first.gap, "difference"),
    ("rl_first.kl.estimator=full", lambda c: c.rl_first.kl, KlConfig(estimator="full")),
    ("rl_first.kl.target=2.5", lambda c: c.rl_first.kl.target, 2.5),
    ("policy.final_soft_cap=30", lambda c: c.policy.final_soft_cap, 30.0),
]


@pytest.mark.parametrize(("setting", "read", "expected"), OVERRIDES)
def test_settings(setting, read, expected):
    config = valid()
    value = read(override(config, [setting]))
    assert value == expected
    assert type(value) is type(expected)
    assert config == valid()


def test_later_settings_win():
    assert override(valid(), ["seed=1", "seed=2"]).seed == 2


def refused(make, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make()


SETTING_ERRORS = [
    ("seed", "--set seed: must have the form section.field=value; write it so"),
    ("=3", "--set =3: must have the form section.field=value; write it so"),
    (
        "sft_policy.optimzer.b1=0",
        "--set sft_policy.optimzer.b1=0: 'optimzer' is no config section; known: steps, packing, optimizer, "
        "evaluate_every, evaluate_trees, checkpoint_every, keep, init, ordered_pairs",
    ),
    ("sede=3", "sede: no such config field; did you mean seed?"),
    ("rl_first.bta=3", "rl_first.bta: no such config field; did you mean rl_first.beta?"),
    ("mesh.zzz=3", "mesh.zzz: no such config field; known: data, fsdp, tensor"),
    ("sft_policy=3", "sft_policy = '3': is a section; set one of its fields, sft_policy.FIELD=VALUE"),
    ("seed=three", "seed = 'three': must be of type int; give such a value"),
    ("seed=1.5", "seed = '1.5': must be of type int; give such a value"),
    ("seed=", "seed = '': must be of type int; give such a value"),
    ("seed=--3", "seed = '--3': must be of type int; give such a value"),
    ("seed=²", "seed = '²': must be of type int; give such a value"),
    ("seed=3_", "seed = '3_': must be of type int; give such a value"),
    ("rl_first.beta=much", "rl_first.beta = 'much': must be of type float; give such a value"),
    ("data.strict=yes", "data.strict = 'yes': must be of type bool; give such a value"),
    (
        "rl_first.gap=centered",
        "rl_first.gap = 'centered': must be one of raw, centred, symmetric, difference; choose one",
    ),
    ("gap.ordered_pairs=two", "gap.ordered_pairs = 'two': must be one of five, one; choose one"),
    ("rl_first.sources=1,1", "rl_first.sources = '1,1': needs 3 values; separate them by commas"),
    ("rl_first.sources=1,1,x", "rl_first.sources = 'x': must be of type int; give such a value"),
]


@pytest.mark.parametrize(("setting", "message"), SETTING_ERRORS)
def test_settings_that_are_refused(setting, message):
    refused(lambda: override(valid(), [setting]), message)


def message_of(setting, default):
    """What the setting is refused with, or the default where it is accepted; other errors pass through."""
    try:
        override(valid(), [setting])
    except ConfigError as error:
        return str(error)
    return default


@given(text=st.text(max_size=6))
def test_any_text_is_a_value_or_a_config_error(text):
    for name in (
        "seed",
        "rl_first.beta",
        "data.strict",
        "data.path",
        "sft_policy.steps",
        "rl_first.sources",
        "sft_policy.init",
    ):
        assert name.split(".")[-1] in message_of(f"{name}={text}", default=name)


PLAIN_ERRORS = [
    ({"seed": None}, "seed = None: must be of type int; give such a value"),
    ({"seed": True}, "seed = True: must be of type int; give such a value"),
    ({"seed": 1.0}, "seed = 1.0: must be of type int; give such a value"),
    ({"data": {"strict": []}}, "data.strict = []: must be of type bool; give such a value"),
    ({"data": {"strict": 1}}, "data.strict = 1: must be of type bool; give such a value"),
    ({"rl_first": {"sources": 1}}, "rl_first.sources = 1: needs 3 values; separate them by commas"),
]


@pytest.mark.parametrize(("values", "message"), PLAIN_ERRORS)
def test_plain_values_of_a_wrong_type(values, message):
    refused(lambda: from_dict(RunConfig, values), message)


RANGES = [
    (lambda: DataConfig(synthetic_rows=99), "data.synthetic_rows = 99", "must be >= 100"),
    (lambda: ModelConfig(layers=0), "model.layers = 0", "must be >= 1"),
    (lambda: OptimizerConfig(end_fraction=1.1), "optimizer.end_fraction = 1.1", "must be in [0, 1]"),
    (lambda: PackingConfig(rows=0), "packing.rows = 0", "must be >= 1"),
    (lambda: TrainConfig(steps=0), "steps = 0", "must be >= 1"),
    (lambda: TrainConfig(keep=0), "keep = 0", "must be >= 1"),
    (lambda: RlConfig(beta=-0.1), "rl.beta = -0.1", "must be >= 0"),
    (lambda: RlConfig(temperature=0.0), "rl.temperature = 0.0", "must be > 0"),
    (lambda: ImproveConfig(iterations=0), "improve.iterations = 0", "must be >= 1"),
    (lambda: EvaluateConfig(prompts=1), "evaluate.prompts = 1", "must be >= 2"),
    (lambda: MeshConfig(fsdp=0), "mesh.fsdp = 0", "must be >= 1"),
    (lambda: OptimizerConfig(learning_rate=0.0), "optimizer.learning_rate = 0.0", "must be > 0"),
    (lambda: OptimizerConfig(learning_rate=math.nan), "optimizer.learning_rate = nan", "must be > 0 and finite"),
    (lambda: OptimizerConfig(warmup_steps=-1), "optimizer.warmup_steps = -1", "must be >= 0"),
    (lambda: ImproveConfig(temperature=-1.0), "improve.temperature = -1.0", "must be >= 0"),
    (lambda: BoardConfig(smoothing=1.0), "board.smoothing = 1.0", "must be in [0, 1)"),
    (lambda: RefreshConfig(data_share=1.5), "refresh.data_share = 1.5", "must be in [0, 1]"),
    (lambda: EvaluateConfig(sensitivity_floor=1.1), "evaluate.sensitivity_floor = 1.1", "must be in [0, 1]"),
    (lambda: OptimizerConfig(learning_rate=math.inf), "optimizer.learning_rate = inf", "must be > 0 and finite"),
    (lambda: OptimizerConfig(clip_norm=-1.0), "optimizer.clip_norm = -1.0", "must be > 0"),
    (lambda: OptimizerConfig(b1=1.0), "optimizer.b1 = 1.0", "must be in [0, 1)"),
    (lambda: ModelConfig(norm_eps=0.0), "model.norm_eps = 0.0", "must be > 0"),
    (lambda: ModelConfig(final_soft_cap=0.0), "model.final_soft_cap = 0.0", "must be > 0"),
    (lambda: WindowConfig(input=2), "windows.input = 2", "must be >= 3"),
    (lambda: RlConfig(keep=0), "rl.keep = 0", "must be >= 1"),
    (lambda: RlConfig(temperature=math.inf), "rl.temperature = inf", "must be > 0 and finite"),
    (lambda: TrainConfig(checkpoint_every=-1), "checkpoint_every = -1", "must be >= 0"),
    (lambda: EvaluateConfig(resamples=0), "evaluate.resamples = 0", "must be >= 1"),
    (lambda: ImproveConfig(threshold=math.nan), "improve.threshold = nan", "must be finite"),
]


@pytest.mark.parametrize(("make", "given", "rule"), RANGES)
def test_values_out_of_range(make, given, rule):
    refused(make, f"{given}: {rule}; choose such a value")


WHOLE_ERRORS = [
    (
        lambda: valid(quality=TrainConfig(packing=LONG, ordered_pairs="one")),
        "quality.ordered_pairs = 'one': only R_PIT ranks the orders of a pair; set gap.ordered_pairs",
    ),
    (
        lambda: RefreshConfig(ordered_pairs="one"),
        "refresh.ordered_pairs = 'one': a refreshed R_PIT keeps the loss of the one that it refreshes; set "
        "gap.ordered_pairs",
    ),
    (
        lambda: valid(rl_first=RlConfig(packing=LONG, sources=(0, 0, 1), passes=(0, 1))),
        "rl_first.passes = (0, 1): the improver before it is the fine-tuned one, which no RL has seen; use 0,0; "
        "rl_second and rl_third can have passes",
    ),
    (
        lambda: valid(references="own", rl_third=RlConfig(packing=LONG)),
        "rl_third.sources = (0, 0, 0): an improver needs references; give a weight",
    ),
    (
        lambda: valid(references="own"),
        f"rl_third.packing.row_length = 512: must hold the longest path of {DEFAULT_PATH} tokens that windows allow; "
        "raise row_length or lower the windows",
    ),
    (
        lambda: valid(references="data", refresh=RefreshConfig(prompts=1, packing=LONG)),
        "refresh.prompts = 1: no stage comes after RL,0 that would use the refreshed reward models; use 0, or "
        "references=policy or own",
    ),
    (
        lambda: valid(refresh=RefreshConfig(prompts=1)),
        f"refresh.packing.row_length = 512: must hold the longest path of {DEFAULT_PATH} tokens that windows allow; "
        "raise row_length or lower the windows",
    ),
    (
        lambda: DataConfig(fold_fractions=(0.5, 0.5, 0.0, 0.0, 0.0)),
        "data.fold_fractions = (0.5, 0.5, 0.0, 0.0, 0.0): must "
        "be five positive shares that sum to 1; set sft,reward,rl,judge,eval",
    ),
    (
        lambda: DataConfig(fold_fractions=(0.2, 0.2, 0.2, 0.2, 0.3)),
        "data.fold_fractions = (0.2, 0.2, 0.2, 0.2, 0.3): must "
        "be five positive shares that sum to 1; set sft,reward,rl,judge,eval",
    ),
    (
        lambda: TokenizerConfig(vocab_size=263),
        "tokenizer.vocab_size = 263: must hold 256 bytes and the role tokens; use at least 264",
    ),
    (
        lambda: WindowConfig(reference=9),
        "windows.reference = 9: must equal windows.output = 512: an output becomes the "
        "next reference; set both to the same value",
    ),
    (lambda: ModelConfig(heads=3, kv_heads=2), "model.kv_heads = 2: must divide model.heads = 3; choose a divisor"),
    (lambda: ModelConfig(head_dim=7), "model.head_dim = 7: must be even (rotary pairs); add or take one"),
    (lambda: ModelConfig(matched_heads=3), "model.matched_heads = 3: must be at most kv_heads = 2; lower it"),
    (
        lambda: ModelConfig(rotary_fraction=1.5),
        "model.rotary_fraction = 1.5: must be in [0, 1] and rotate an even part of "
        "head_dim = 32; choose such a fraction",
    ),
    (lambda: RlConfig(samples=1), "rl.samples = 1: leave-one-out needs at least 2; raise it"),
    (lambda: RlConfig(sources=(1, -1, 0)), "rl.sources = (1, -1, 0): weights must be >= 0; fix the weights"),
    (
        lambda: KlConfig(estimator="k2", target=1.0),
        "kl.target = 1.0: needs an estimate of the KL, and the expectation of k2 is another one; use k1, k3 or full, "
        "or none",
    ),
    (
        lambda: RlConfig(beta=0.0, kl=KlConfig(target=1.0)),
        "rl.beta = 0.0: must be > 0 with kl.target, as the coefficient is adapted by factors; raise it, or set "
        "kl.target to none",
    ),
]


@pytest.mark.parametrize(("make", "message"), WHOLE_ERRORS)
def test_values_that_cannot_work(make, message):
    refused(make, message)


CONTRADICTIONS = [
    (["seed=-1"], "seed = -1: must be >= 0; choose such a value"),
    (["workers=0"], "workers = 0: must be >= 1; choose such a value"),
    (
        ["gap.packing.row_length=1535"],
        "gap.packing.row_length = 1535: must hold the longest path of 1536 tokens that "
        "windows allow; raise row_length or lower the windows",
    ),
    (
        ["quality.packing.row_length=1023"],
        "quality.packing.row_length = 1023: must hold the longest path of 1024 tokens "
        "that windows allow; raise row_length or lower the windows",
    ),
    (["rl_first.sources=0,0,0"], "rl_first.sources = (0, 0, 0): an improver needs references; give a weight"),
    (["rl_policy.sources=0,1,0"], "rl_policy.sources = (0, 1, 0): the policy sees no reference; use 0,0,0"),
    (
        ["rl_first.curriculum.strategy=staged"],
        "curriculum.sources_after = (0, 0, 0): must have a positive weight with strategy staged, and be 0,0,0 with "
        "others (here staged); set both together",
    ),
    (
        ["rl_first.curriculum.strategy=learnability", "rl_first.gap=raw"],
        "rl.gap = 'raw': has no zero if raw, and curriculum.strategy = learnability asks which samples beat their "
        "reference; use centred, symmetric or difference",
    ),
    (
        ["rl_first.curriculum.prefetch=1", "rl_first.curriculum.strategy=gap_band", "rl_first.gap=centred"],
        "curriculum.prefetch = 1: must be at most curriculum.lag - 1 = 0, as what a step draws waits for feedback; "
        "lower it or raise the lag",
    ),
    (
        ["rl_first.curriculum.difficulty=edit"],
        "curriculum.difficulty = 'edit': changes nothing with strategy uniform; use learnability or gap_band, or none",
    ),
    (
        [
            "rl_first.gap=centred",
            "rl_first.curriculum.strategy=gap_band",
            "rl_first.curriculum.difficulty=column",
        ],
        "rl_first.curriculum.difficulty = 'column': needs data.difficulty_column; name the column of the data that "
        "holds it",
    ),
    (
        ["rl_first.curriculum.band=0.5,1.5"],
        "curriculum.band = (0.5, 1.5): must be ranks in [0, 1]; choose such ranks",
    ),
    (
        ["rl_policy.curriculum.strategy=learnability", "rl_policy.gap=centred"],
        "rl_policy.curriculum.strategy = 'learnability': the policy has no reference, so neither gaps nor sources to "
        "choose by; use uniform",
    ),
    (
        ["checkpoints=s3://bucket/x"],
        "checkpoints = 's3://bucket/x': must be an absolute path or gs://bucket/folder; write it so, or leave it out "
        "to keep checkpoints in the run's folder",
    ),
    (["mesh.tensor=3"], "mesh.tensor = 3: must divide the policy's heads = 2 and kv_heads = 2; lower it"),
]


@pytest.mark.parametrize(("settings", "message"), CONTRADICTIONS)
def test_values_that_contradict_each_other(settings, message):
    refused(lambda: override(valid(), settings), message)


def test_a_row_that_just_holds_the_longest_path_is_taken():
    assert override(valid(), ["quality.packing.row_length=1024"]).quality.packing.row_length == 1024
