"""A config survives JSON and YAML, takes edits by path, and refuses what cannot work with the path that was set."""

import dataclasses
import json
import math
import re
import types
import typing

import pytest
import yaml
from effort import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pit.config import (
    BoardConfig,
    ConfigError,
    CurriculumConfig,
    DataConfig,
    EvaluateConfig,
    FieldError,
    FoldFractions,
    GapConfig,
    ImproveConfig,
    ImproverRlConfig,
    ImproverSftConfig,
    KlConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    Passes,
    PolicyRlConfig,
    RefreshConfig,
    RewardConfig,
    RewrittenRlConfig,
    RunConfig,
    SftConfig,
    SourceWeights,
    TemplateConfig,
    TokenizerConfig,
    WindowConfig,
    digest,
    from_dict,
    gemma_like,
    override,
    read_config,
    to_dict,
    to_yaml,
)
from pit.config.rules import Range
from pit.recipes import RECIPES
from pit.recipes.demo import demo, tiny

LONGEST_PATH = 3 * 512
"""Tokens of the longest path under the default windows."""

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
supervised = {
    "steps": st.none() | positive,
    "packing": st.builds(
        PackingConfig, row_length=st.integers(LONGEST_PATH, 9999), rows=positive, microbatches=positive
    ),
    "optimizer": st.builds(OptimizerConfig, learning_rate=st.floats(1e-9, 1), end_fraction=st.floats(0, 1)),
}
configs = st.builds(
    RunConfig,
    name=st.text(max_size=9),
    seed=st.integers(0, 2**40),
    data=st.builds(
        DataConfig,
        path=st.none() | st.text(max_size=9),
        task=st.sampled_from([None, "describe", "relay", "instruct"]),
        strict=st.booleans(),
    ),
    policy=models,
    reward_model=models | models.map(gemma_like),
    sft_policy=st.builds(SftConfig, **supervised),
    sft_improver=st.builds(ImproverSftConfig, **supervised, init=st.sampled_from(["base", "policy"])),
    reward_gap=st.builds(
        GapConfig,
        **supervised,
        init=st.sampled_from(["base", "policy", "quality"]),
        ordered_pairs=st.sampled_from(["five", "one"]),
    ),
    rl_improver_0=st.builds(
        ImproverRlConfig,
        gap=st.sampled_from(["raw", "centred", "symmetric", "difference"]),
        sources=st.builds(SourceWeights, worse=positive, better=st.integers(0, 9), policy=st.integers(0, 9)),
        beta=st.floats(0, 9),
    ),
    rl_improver_2=st.builds(RewrittenRlConfig, passes=st.builds(Passes, least=st.just(0), most=st.integers(0, 9))),
    improve=st.builds(
        ImproveConfig,
        threshold=st.floats(-9, 9),
        iterations=positive,
        draws=positive,
        chains=st.sampled_from(["best", "each"]),
        restart=st.none() | st.integers(0, 3),
    ),
)


@settings(max_examples=examples(25))
@given(config=configs)
@example(config=dataclasses.replace(demo(), data=DataConfig(path="none")))
def test_a_config_survives_json(config):
    again = from_dict(RunConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert digest(again) == digest(config)


@settings(max_examples=examples(25))
@given(one=configs, two=configs)
def test_digests_are_equal_exactly_where_configs_are(one, two):
    assert (digest(one) == digest(two)) == (one == two)


def leaves(values, where=""):
    """Path and value of every field of a nested config."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def as_text(value):
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@settings(max_examples=examples(25))
@given(config=configs)
def test_every_value_can_be_set_from_the_command_line(config):
    """Each leaf of the config, written out as text, is read back as the same value."""
    assert override(config, [f"{path}={as_text(value)}" for path, value in leaves(to_dict(config))]) == config


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
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
    ("name=none", lambda c: c.name, "none"),
    ("data.path=none", lambda c: c.data.path, None),
    ("data.path=/x", lambda c: c.data.path, "/x"),
    ("data.strict=true", lambda c: c.data.strict, True),
    ("sft_policy.steps=7", lambda c: c.sft_policy.steps, 7),
    ("sft_policy.steps=none", lambda c: c.sft_policy.steps, None),
    ("sft_policy.optimizer.learning_rate=1e-4", lambda c: c.sft_policy.optimizer.learning_rate, 1e-4),
    ("rl_improver_0.sources.worse=2", lambda c: c.rl_improver_0.sources, SourceWeights(worse=2, better=1)),
    ("rl_improver_1.passes.most=2", lambda c: c.rl_improver_1.passes, Passes(0, 2)),
    ("rl_improver_0.gap=symmetric", lambda c: c.rl_improver_0.gap, "symmetric"),
    ("rl_improver_0.gap=difference", lambda c: c.rl_improver_0.gap, "difference"),
    ("rl_improver_0.kl.estimator=full", lambda c: c.rl_improver_0.kl, KlConfig(estimator="full")),
    ("rl_improver_0.kl.target=2.5", lambda c: c.rl_improver_0.kl.target, 2.5),
    ("policy.final_soft_cap=30", lambda c: c.policy.final_soft_cap, 30.0),
]


@pytest.mark.parametrize(("setting", "read", "expected"), OVERRIDES)
def test_settings(setting, read, expected):
    config = RunConfig()
    value = read(override(config, [setting]))
    assert value == expected
    assert type(value) is type(expected)
    assert config == RunConfig()


def test_later_settings_win():
    assert override(RunConfig(), ["seed=1", "seed=2"]).seed == 2


def test_fold_shares_are_set_together():
    folds = {"sft": 0.5, "reward": 0.2, "rl": 0.1, "judge": 0.1, "eval": 0.1}
    config = override(RunConfig(), [f"data.folds.{name}={share}" for name, share in folds.items()])
    assert config.data.folds == FoldFractions(**folds)


def refused(make, path, value, rule):
    """Require that `make` refuses a value, in the words of a rule, under the path."""
    with pytest.raises(FieldError) as caught:
        make()
    error = caught.value
    shown = f"{error.section}.{error.path}" if error.section else error.path
    assert shown == path
    assert error.value == value or (math.isnan(value) and math.isnan(error.value))
    assert rule in error.rule
    assert "{path}" not in str(error)
    assert str(error).startswith(f"{path} = {value!r}: ")


SENTENCES = [
    (["seed"], "--set seed: must have the form section.field=value, for example --set seed=3"),
    (["=3"], "--set =3: must have the form section.field=value, for example --set seed=3"),
    (
        ["mesh.fdsp.x=0"],
        "--set mesh.fdsp.x=0: 'fdsp' is not a config section; known: data, fsdp, tensor",
    ),
    (["sede=3"], "sede: is not a config field; did you mean seed?"),
    (["rl_improver_0.bta=3"], "rl_improver_0.bta: is not a config field; did you mean rl_improver_0.beta?"),
    (["mesh.zzz=3"], "mesh.zzz: is not a config field; known: data, fsdp, tensor"),
    (
        ["rl_improver_0.beta=-1"],
        "rl_improver_0.beta = -1.0: must be >= 0; set rl_improver_0.beta to a value in that range, for example its "
        "default, 0.4",
    ),
    (
        ["reward_quality.packing.row_length=1023"],
        "reward_quality.packing.row_length = 1023: must hold the longest path of 1024 tokens that windows allow; set "
        "it to 1024 or more, or lower the windows",
    ),
]


@pytest.mark.parametrize(("given_settings", "sentence"), SENTENCES)
def test_sentences_of_refused_settings(given_settings, sentence):
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        override(RunConfig(), given_settings)


WRONG_TEXTS = [
    ("sft_policy=3", "is a section"),
    ("rl_improver_0.sources=1,1,0", "is a section"),
    ("seed=three", "must be of type int"),
    ("seed=1.5", "must be of type int"),
    ("seed=", "must be of type int"),
    ("seed=--3", "must be of type int"),
    ("seed=²", "must be of type int"),
    ("seed=3_", "must be of type int"),
    ("rl_improver_0.sources.worse=x", "must be of type int"),
    ("rl_improver_0.beta=much", "must be of type float"),
    ("data.strict=yes", "must be of type bool"),
    ("rl_improver_0.gap=centered", "must be one of raw, centred, symmetric, difference"),
    ("reward_gap.ordered_pairs=two", "must be one of five, one"),
    # Choices and fields that only other stages have.
    ("sft_improver.init=quality", "must be one of base, policy"),
    ("reward_quality.init=quality", "must be one of base, policy"),
]


@pytest.mark.parametrize(("setting", "rule"), WRONG_TEXTS)
def test_texts_of_a_wrong_type(setting, rule):
    path, _, text = setting.partition("=")
    refused(lambda: override(RunConfig(), [setting]), path, text, rule)


@pytest.mark.parametrize(
    "path",
    [
        "sft_policy.init",
        "reward_quality.ordered_pairs",
        "refresh.ordered_pairs",
        "refresh.init",
        "rl_policy.sources.worse",
        "rl_policy.gap",
        "rl_policy.curriculum.strategy",
        "rl_improver_0.passes.most",
    ],
)
def test_a_section_has_no_field_that_means_nothing_there(path):
    with pytest.raises(ConfigError, match=r"is not a config (field|section)"):
        override(RunConfig(), [f"{path}=1"])


@settings(max_examples=examples(15))
@given(text=st.text(max_size=6))
def test_any_text_is_a_value_or_a_config_error(text):
    for path in (
        "seed",
        "rl_improver_0.beta",
        "data.strict",
        "data.path",
        "sft_policy.steps",
        "rl_improver_0.sources.policy",
        "sft_improver.init",
    ):
        refused_path = None
        try:
            override(RunConfig(), [f"{path}={text}"])
        except FieldError as error:
            refused_path = error.path
        assert refused_path in (None, path)


PLAIN_ERRORS = [
    ({"seed": None}, "seed", None, "must be of type int"),
    ({"seed": True}, "seed", True, "must be of type int"),
    ({"seed": 1.0}, "seed", 1.0, "must be of type int"),
    ({"data": {"strict": []}}, "data.strict", [], "must be of type bool"),
    ({"data": {"strict": 1}}, "data.strict", 1, "must be of type bool"),
    ({"data": None}, "data", None, "is a section"),
    ({"rl_improver_0": {"sources": [1, 1, 0]}}, "rl_improver_0.sources", [1, 1, 0], "is a section"),
]


@pytest.mark.parametrize(("values", "path", "value", "rule"), PLAIN_ERRORS)
def test_plain_values_of_a_wrong_type(values, path, value, rule):
    refused(lambda: from_dict(RunConfig, values), path, value, rule)


RANGES = [
    (lambda: DataConfig(synthetic_rows=99), "DataConfig.synthetic_rows", 99, "must be >= 100"),
    (lambda: ModelConfig(layers=0), "ModelConfig.layers", 0, "must be >= 1"),
    (lambda: ModelConfig(norm_eps=0.0), "ModelConfig.norm_eps", 0.0, "must be > 0"),
    (lambda: ModelConfig(final_soft_cap=0.0), "ModelConfig.final_soft_cap", 0.0, "must be > 0"),
    (lambda: OptimizerConfig(end_fraction=1.1), "OptimizerConfig.end_fraction", 1.1, "must be in [0, 1]"),
    (lambda: OptimizerConfig(b1=1.0), "OptimizerConfig.b1", 1.0, "must be in [0, 1)"),
    (lambda: OptimizerConfig(learning_rate=0.0), "OptimizerConfig.learning_rate", 0.0, "must be > 0"),
    (lambda: OptimizerConfig(learning_rate=math.nan), "OptimizerConfig.learning_rate", math.nan, "must be > 0 and f"),
    (lambda: OptimizerConfig(learning_rate=math.inf), "OptimizerConfig.learning_rate", math.inf, "must be > 0 and f"),
    (lambda: OptimizerConfig(warmup_steps=-1), "OptimizerConfig.warmup_steps", -1, "must be >= 0"),
    (lambda: CurriculumConfig(band_width=0.0), "CurriculumConfig.band_width", 0.0, "must be in (0, 1]"),
    (lambda: PolicyRlConfig(samples=1), "PolicyRlConfig.samples", 1, "must be >= 2"),
    (lambda: SourceWeights(better=-1), "SourceWeights.better", -1, "must be >= 0"),
    (lambda: FoldFractions(rl=0.0), "FoldFractions.rl", 0.0, "must be > 0"),
    (lambda: BoardConfig(smoothing=1.0), "BoardConfig.smoothing", 1.0, "must be in [0, 1)"),
    (lambda: ImproveConfig(threshold=math.nan), "ImproveConfig.threshold", math.nan, "must be finite"),
]


@pytest.mark.parametrize(("make", "path", "value", "rule"), RANGES)
def test_a_section_alone_names_its_class(make, path, value, rule):
    refused(make, path, value, rule)


def ranged_fields(section, where=""):
    """Path, type and range of every field of a config that has a range."""
    hints = typing.get_type_hints(section, include_extras=True)
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from ranged_fields(hint, f"{where}{field.name}.")
        for rule in getattr(hint, "__metadata__", ()):
            yield f"{where}{field.name}", number_type(hint.__origin__), rule


def number_type(hint):
    """The type of numbers that a hint allows, beside None."""
    return next(t for t in typing.get_args(hint) if t is not type(None)) if isinstance(hint, types.UnionType) else hint


RANGED = list(ranged_fields(RunConfig))


def bad_numbers(kind, rule):
    """Numbers outside of a range."""
    below = [rule.low if rule.open_low else rule.low - 1] if math.isfinite(rule.low) else []
    above = [rule.high if rule.open_high else rule.high + 1] if math.isfinite(rule.high) else []
    if kind is int:
        return [int(value) for value in (*below, *above)]
    return [*below, *above, math.nan, math.inf, -math.inf]


def test_a_bad_number_is_refused_under_the_path_that_was_set():
    """Every field of every section, at each end of its range."""
    assert len(RANGED) > 150
    assert {path.split(".")[0] for path, _, _ in RANGED} > {"rl_improver_2", "refresh", "board", "mesh", "seed"}
    for path, kind, rule in RANGED:
        assert isinstance(rule, Range)
        for number in bad_numbers(kind, rule):
            values = number
            for name in reversed(path.split(".")):
                values = {name: values}
            refused(lambda values=values: from_dict(RunConfig, values), path, number, rule.rule(number))


@settings(max_examples=examples(30))
@given(ranged=st.sampled_from(RANGED), data=st.data())
def test_a_bad_number_from_the_command_line_too(ranged, data):
    path, kind, rule = ranged
    number = data.draw(st.sampled_from(bad_numbers(kind, rule)))
    refused(lambda: override(RunConfig(), [f"{path}={number}"]), path, kind(number), rule.rule(number))


CONTRADICTIONS = [
    (["improve.iterations=0"], "improve.iterations", 0, "leaves the answer as it is with draws = 1"),
    (["evaluate.search_answers=2,x"], "evaluate.search_answers", "2,x", "must be whole numbers from 2 to 999"),
    (["evaluate.search_answers=1"], "evaluate.search_answers", "1", "must be whole numbers from 2 to 999"),
    (["rl_improver_1.passes.least=3"], "rl_improver_1.passes.least", 3, "must be at most `most` = 0"),
    (["rl_improver_2.packing.row_length=1535", "references=own"], "rl_improver_2.packing.row_length", 1535, "1536"),
    (["refresh.prompts=1", "references=data"], "refresh.prompts", 1, "no later stage uses"),
    (
        ["refresh.prompts=1", "refresh.packing.row_length=512"],
        "refresh.packing.row_length",
        512,
        "must hold the longest path of 1536 tokens",
    ),
    (["reward_gap.packing.row_length=1535"], "reward_gap.packing.row_length", 1535, "longest path of 1536 tokens"),
    (["data.folds.eval=0.2"], "data.folds.sft", 0.28, "must sum to 1"),
    (["tokenizer.vocab_size=263"], "tokenizer.vocab_size", 263, "must hold 256 bytes"),
    (["windows.reference=9"], "windows.reference", 9, "must equal the output window, 512"),
    (["policy.heads=3"], "policy.kv_heads", 2, "must divide heads = 3"),
    (["reward_model.head_dim=7"], "reward_model.head_dim", 7, "must be even"),
    (["policy.matched_heads=3"], "policy.matched_heads", 3, "must be at most kv_heads = 2"),
    (["policy.rotary_fraction=1.5"], "policy.rotary_fraction", 1.5, "must be in [0, 1]"),
    (["policy.learned_positions=9"], "policy.learned_positions", 9, "cover the longest path of 1536 tokens"),
    (["policy.longest_path=9"], "policy.longest_path", 9, "cover the longest path of 1536 tokens"),
    (["rl_policy.kl.estimator=k2", "rl_policy.kl.target=1"], "rl_policy.kl.target", 1.0, "k2 is another quantity"),
    (["rl_policy.beta=0", "rl_policy.kl.target=1"], "rl_policy.beta", 0.0, "must be > 0 with kl.target"),
    (
        ["rl_improver_0.sources.worse=0", "rl_improver_0.sources.better=0"],
        "rl_improver_0.sources",
        SourceWeights(),
        "must have a positive weight",
    ),
    (["rl_improver_0.reference_temperature=0"], "rl_improver_0.reference_temperature", 0.0, "none are drawn"),
    (
        ["rl_improver_1.sources.policy=0", "rl_improver_1.sources.worse=1", "rl_improver_1.passes.most=2"],
        "rl_improver_1.passes",
        Passes(0, 2),
        "none are drawn",
    ),
    (
        ["rl_improver_0.curriculum.strategy=staged"],
        "rl_improver_0.curriculum.strategy",
        "staged",
        "needs a positive weight in sources_after",
    ),
    (
        ["rl_improver_0.curriculum.strategy=learnability"],
        "rl_improver_0.gap",
        "raw",
        "must not be raw with strategy learnability",
    ),
    (
        [
            "rl_improver_0.curriculum.prefetch=1",
            "rl_improver_0.curriculum.strategy=gap_band",
            "rl_improver_0.gap=centred",
        ],
        "rl_improver_0.curriculum.prefetch",
        1,
        "must be at most lag - 1 = 0",
    ),
    (
        ["rl_improver_0.curriculum.difficulty=edit"],
        "rl_improver_0.curriculum.difficulty",
        "edit",
        "has no effect with strategy uniform",
    ),
    (
        [
            "rl_improver_0.gap=centred",
            "rl_improver_0.curriculum.strategy=gap_band",
            "rl_improver_0.curriculum.difficulty=column",
        ],
        "rl_improver_0.curriculum.difficulty",
        "column",
        "needs data.difficulty_column",
    ),
    (["improve.gap=raw"], "improve.gap", "raw", "a raw gap has no zero"),
    (["checkpoints=s3://bucket/x"], "checkpoints", "s3://bucket/x", "must be an absolute path or gs://"),
    (["mesh.tensor=3"], "mesh.tensor", 3, "must divide the policy's heads = 2 and kv_heads = 2"),
]


@pytest.mark.parametrize(("given_settings", "path", "value", "rule"), CONTRADICTIONS)
def test_values_that_contradict_each_other(given_settings, path, value, rule):
    refused(lambda: override(RunConfig(), given_settings), path, value, rule)


def test_a_row_that_just_holds_the_longest_path_is_taken():
    assert override(RunConfig(), ["reward_quality.packing.row_length=1024"]).reward_quality.packing.row_length == 1024
    # A stage that the run leaves out need not fit.
    assert override(RunConfig(), ["rl_improver_2.packing.row_length=512"]).references == "policy"


def test_settings_of_a_default_recipe_are_checked_against_it_alone():
    assert EvaluateConfig() == RunConfig().evaluate
    assert (MeshConfig(), RefreshConfig(), RewardConfig()) == (
        RunConfig().mesh,
        RunConfig().refresh,
        RunConfig().reward_quality,
    )
    assert (TokenizerConfig(), WindowConfig()) == (RunConfig().tokenizer, RunConfig().windows)
    assert TemplateConfig() == RunConfig().template


# Files of a config.


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs)
@example(config=dataclasses.replace(tiny(), name="\N{GRINNING FACE}", data=DataConfig(path="none", task=None)))
@example(config=dataclasses.replace(tiny(), name="null\r\n\x85\t'"))
def test_files_give_the_config_that_was_written(config, tmp_path):
    """As YAML, as the JSON of RUN/config.json and as JSON that another program wrote; over any other config."""
    texts = to_yaml(config), json.dumps(to_dict(config), indent=2), json.dumps(to_dict(config), indent="\t")
    for number, text in enumerate(texts):
        path = tmp_path / f"config-{number}"
        path.write_bytes(text.encode())
        assert read_config(path, demo()) == config


@pytest.mark.parametrize(
    "text", ["seed: 3\nrl_policy: {kl: {target: 1e-2}}\n", '{"seed": 3, "rl_policy": {"kl": {"target": 0.01}}}']
)
def test_a_partial_file_changes_what_it_names_and_nothing_else(text, tmp_path):
    path = tmp_path / "mine"
    path.write_text(text)
    assert read_config(path, tiny()) == override(tiny(), ["seed=3", "rl_policy.kl.target=0.01"])


def test_an_empty_section_of_a_file_changes_nothing(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rl_policy: {}\n")
    assert read_config(path, tiny()) == tiny()


BAD_FILES = {
    "unknown field": ("rl_policy:\n  bta: 3\n", "rl_policy.bta: is not a config field; did you mean rl_policy.beta?"),
    "a number as field": ("7: 3\n", "7: is not a config field"),
    "bad value": ("rl_policy: {beta: -1}", "rl_policy.beta = -1.0: must be >= 0; set rl_policy.beta"),
    "no value": ("data:\n", "data = None: is a section"),
    "contradiction": ("windows: {reference: 9}", "windows.reference = 9: must equal the output window"),
    "not YAML": ("a: [1\n", "is neither YAML nor JSON ("),
    "not UTF-8": (b"name: \xff\n", "is neither YAML nor JSON ("),
    "a list": ("- seed\n", "must be a mapping of config fields"),
    "nothing": ("", "must be a mapping of config fields"),
    "YAML field twice": ("rl_policy:\n  beta: 1\n  beta: 2\n", "beta: is given twice"),
    "JSON field twice": ('{"seed": 1, "seed": 1}', "seed: is given twice"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_refused(case, tmp_path):
    content, message = BAD_FILES[case]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_config(path, tiny())
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read \(No such file or directory\); give --config"):
        read_config(tmp_path / "absent.yaml", tiny())


def test_yaml_keeps_the_order_of_the_fields():
    assert list(yaml.safe_load(to_yaml(tiny()))) == [field.name for field in dataclasses.fields(RunConfig)]
