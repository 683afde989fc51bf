"""Every family: the logits of transformers, folders written and read without loss, older configs, refusals by name."""

import dataclasses
import functools
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.config import ModelConfig, RopeScaling
from pit.model.decoder import Decoder
from pit.model.errors import ModelFileError
from pit.model.families import FAMILIES
from pit.model.heads import RewardModel
from pit.model.params import Params, abstract, merge
from pit.model.pretrained import Pretrained, load_pretrained, save_pretrained

GOLDEN = Path(__file__).parent / "golden" / "families"
NAMES = ("llama3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
Kind = type[Decoder] | type[RewardModel]


def logits_of(folder: Path, ids: np.ndarray, length: np.ndarray, **changes: Any) -> np.ndarray:
    """Logits [B, T, V] of right-padded rows; `changes` replaces fields of the config."""
    config, vocab_size, params = load_pretrained(folder)
    graphdef, _ = abstract(Decoder, dataclasses.replace(config, **changes), vocab_size)
    index = np.arange(ids.shape[1])
    position = np.broadcast_to(index, ids.shape).astype(np.int32)
    visible_until = np.where(index < length[:, None], length[:, None], 0).astype(np.int32)

    @twins.jit
    def run(params: Params, *inputs: jax.Array) -> jax.Array:
        model = merge(graphdef, params)
        return model.logits(model(*inputs))

    return np.asarray(run(params, ids, position, visible_until))


def worst(name: str, **changes: Any) -> float:
    """Largest difference of a logit from transformers."""
    golden = np.load(GOLDEN / "logits.npz")
    ids, length, theirs = golden["ids"], golden["length"], golden[name]
    live = np.arange(ids.shape[1]) < length[:, None]
    assert theirs[live].std() > 0.5
    return float(np.abs(logits_of(GOLDEN / name, ids, length, **changes) - theirs)[live].max())


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str) -> None:
    assert worst(name) <= 1e-4


# Each field that the goldens are meant to exercise, at a value that leaves it out.
WITHOUT: list[tuple[str, dict[str, Any]]] = [
    ("llama3", {"rope_scaling": None}),
    ("llama3", {"rope_scaling": RopeScaling(kind="linear", factor=8.0)}),
    ("mistral", {"rope_scaling": None}),
    ("mistral", {"window": 6}),
    ("qwen2", {"window_from": 0}),
    ("gemma2", {"attention_soft_cap": None}),
    ("gemma2", {"final_soft_cap": None}),
    ("gemma2", {"query_scale": None}),
    ("gemma2", {"global_every": 3}),
    ("gemma3", {"local_rope_theta": None}),
    ("gemma3", {"global_every": 0}),
]


@pytest.mark.parametrize(("name", "changes"), WITHOUT, ids=[f"{name} {next(iter(c))}" for name, c in WITHOUT])
def test_the_goldens_depend_on_every_part(name: str, changes: dict[str, Any]) -> None:
    assert worst(name, **changes) > 1e-2


def test_a_window_as_long_as_the_longest_path_costs_nothing() -> None:
    """The program is that of a model without windows, and still has the local layers' rotary base."""
    golden = np.load(GOLDEN / "logits.npz")
    config, vocab_size, params = load_pretrained(GOLDEN / "gemma3")
    ids = golden["ids"]
    whole = np.full_like(ids, ids.shape[1])

    def program(**changes: Any) -> str:
        graphdef, _ = abstract(Decoder, dataclasses.replace(config, **changes), vocab_size)
        run = jax.jit(lambda params, *inputs: merge(graphdef, params)(*inputs))
        return str(run.lower(params, ids, ids, whole).as_text())

    without = program(window=ids.shape[1])
    assert program(window=9, longest_path=9) == without
    assert program(window=9, longest_path=10) != without
    assert program(window=None, global_every=0, local_rope_theta=None) != without


TINY = ModelConfig(width=8, layers=3, heads=4, kv_heads=2, head_dim=2, mlp=3, norm_eps=1e-6)
GEMMA = dataclasses.replace(TINY, activation="gelu", norm_offset=True, embed_scale=True)
CAPPED = dataclasses.replace(GEMMA, post_norm=True, window=5, global_every=2)
LLAMA_3 = RopeScaling(kind="llama3", factor=8.0, low=1.5, high=3.0, original_positions=64)
CONFIGS = {
    "Llama": dataclasses.replace(TINY, rope_scaling=LLAMA_3, tied=False),
    "Mistral": dataclasses.replace(TINY, rope_scaling=RopeScaling(factor=2.0), window=7),
    "Qwen2": dataclasses.replace(TINY, qkv_bias=True, window=7, window_from=2, tied=False),
    "Qwen3": dataclasses.replace(TINY, qk_norm=True, head_dim=6),
    "Gemma": dataclasses.replace(GEMMA, rope_theta=123.0),
    "Gemma2": dataclasses.replace(CAPPED, query_scale=7**-0.5, attention_soft_cap=3.0, final_soft_cap=None),
    "Gemma3": dataclasses.replace(CAPPED, qk_norm=True, local_rope_theta=50.0, rope_scaling=RopeScaling(factor=8.0)),
}


@functools.cache
def shapes(kind: Kind, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in abstract(kind, config, 7)[1].items()}


@pytest.mark.parametrize("kind", [Decoder, RewardModel])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_saved_model_is_loaded_bit_for_bit(tmp_path: Path, family: str, kind: Kind) -> None:
    config, rng = CONFIGS[family], np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.integers(0, 2**32, shape, np.uint32).view(np.float32))
        for name, shape in shapes(kind, config).items()
    }
    save_pretrained(tmp_path / "m", config, params, 7, eos_ids=[0], pad_id=1)
    fields = json.loads((tmp_path / "m" / "config.json").read_text())
    (known,) = (f for f in FAMILIES if f.name == family)
    assert fields["architectures"] == [known.architecture(reward=kind is RewardModel)]
    if kind is RewardModel:
        config = dataclasses.replace(config, tied=True)
        params.pop("decoder.output", None)
    loaded_config, _, loaded = load_pretrained(tmp_path / "m")
    assert loaded_config == config
    assert loaded.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(np.asarray(loaded[name]).view(np.uint32), np.asarray(value).view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_is_saved_and_loaded_bit_for_bit(tmp_path: Path, name: str) -> None:
    config, vocab_size, params = load_pretrained(GOLDEN / name)
    save_pretrained(tmp_path / "m", config, params, vocab_size, dtype="bfloat16")
    again, _, loaded = load_pretrained(tmp_path / "m")
    assert again == config
    for key, value in params.items():
        np.testing.assert_array_equal(np.asarray(loaded[key]), np.asarray(value))


@given(window_from=st.integers(0, 4), every=st.integers(0, 5), layers=st.integers(1, 5))
def test_every_pattern_of_local_layers_is_written_and_read(window_from: int, every: int, layers: int) -> None:
    from pit.model.config_json import ConfigJson
    from pit.model.positions_json import layer_types, read_layers

    config = ModelConfig(layers=layers, window=3, window_from=window_from, global_every=every)
    file = ConfigJson(Path("config.json"), {"num_hidden_layers": layers, "layer_types": layer_types(config)})
    read = dataclasses.replace(config, **read_layers(file, 3, lambda _: False))
    assert [read.is_local(i) for i in range(layers)] == [config.is_local(i) for i in range(layers)]


def copied(name: str, tmp_path: Path, **fields: Any) -> Path:
    """A copy of a golden folder with other fields of its config.json; `...` removes one."""
    folder = Path(shutil.copytree(GOLDEN / name, tmp_path / name))
    values = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({n: v for n, v in values.items() if v is not ...}))
    return folder


OLDER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "llama3",
        {
            "rope_parameters": ...,
            "rope_theta": 50,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 1,
                "high_freq_factor": 4,
                "original_max_position_embeddings": 24,
            },
        },
        {},
    ),
    ("mistral", {"rope_parameters": ..., "rope_theta": 70.0, "rope_scaling": {"type": "linear", "factor": 3.0}}, {}),
    ("mistral", {"sliding_window": None}, {"window": None}),
    ("mistral", {"sliding_window": ...}, {"window": 4096}),
    ("qwen2", {"layer_types": ...}, {}),
    ("qwen2", {"layer_types": ..., "max_window_layers": 0}, {"window_from": 0}),
    ("qwen2", {"use_sliding_window": False, "layer_types": ...}, {"window": None, "window_from": 0}),
    ("gemma", {"hidden_act": "gelu"}, {}),
    ("gemma2", {"layer_types": ...}, {}),
    ("gemma2", {"query_pre_attn_scalar": 6}, {"query_scale": None}),
    (
        "gemma2",
        {"attn_logit_softcapping": ..., "final_logit_softcapping": None},
        {"attention_soft_cap": 50.0, "final_soft_cap": None},
    ),
    ("gemma3", {"layer_types": ...}, {"global_every": 0}),
    ("gemma3", {"layer_types": ..., "sliding_window_pattern": 2}, {}),
    (
        "gemma3",
        {"rope_parameters": ..., "rope_theta": 70.0, "rope_local_base_freq": 60.0}
        | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
        {},
    ),
    ("gemma3", {"rope_parameters": ...}, {"rope_theta": 1e6, "local_rope_theta": 1e4, "rope_scaling": None}),
]


@pytest.mark.parametrize(("name", "fields", "changes"), OLDER, ids=[f"{n} {' '.join(f)}"[:60] for n, f, _ in OLDER])
def test_absent_and_older_fields_have_the_meaning_of_transformers(
    tmp_path: Path, name: str, fields: dict[str, Any], changes: dict[str, Any]
) -> None:
    expected = dataclasses.replace(Pretrained.open(GOLDEN / name).config, **changes)
    assert Pretrained.open(copied(name, tmp_path, **fields)).config == expected


BAD: list[tuple[str, dict[str, Any], str]] = [
    (
        "llama3",
        {"rope_parameters": {"rope_type": "yarn"}},
        "rope_parameters.rope_type = 'yarn': must be one of default, linear, llama3",
    ),
    ("llama3", {"rope_parameters": {"rope_type": {}}}, "rope_parameters.rope_type = {}: must be one of"),
    (
        "llama3",
        {"rope_parameters": {"rope_type": "linear", "type": "llama3"}},
        "rope_parameters.type = 'llama3': must be one of",
    ),
    ("llama3", {"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "rope_parameters.low_freq_factor is missing"),
    (
        "llama3",
        {"rope_parameters": {"rope_type": "linear", "factor": 0}},
        "rope_parameters.factor = 0: must be a positive number",
    ),
    (
        "llama3",
        {"rope_parameters": {"rope_type": "linear", "factor": 2, "mscale": 1}},
        "rope_parameters.mscale = 1: is not a field of rope_type 'linear'",
    ),
    ("llama3", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling = {'rope_parameters': RopeScaling("),
    ("llama3", {"original_max_position_embeddings": 8}, "original_max_position_embeddings = 8: only None"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types = ['full_attention'"),
    ("mistral", {"sliding_window": 0}, "sliding_window = 0: must be a positive integer"),
    ("mistral", {"num_key_value_heads": ...}, "num_key_value_heads is missing"),
    (
        "qwen2",
        {"layer_types": ["full_attention"]},
        "must name sliding_attention or full_attention for each of 3 layers",
    ),
    ("qwen2", {"layer_types": ["sliding_attention", "sliding_attention", "chunked_attention"]}, "for each of 3 layers"),
    ("qwen3", {"attention_bias": True}, "attention_bias = True: only False is supported"),
    ("qwen3", {"head_dim": ...}, "head_dim is missing"),
    ("gemma", {"hidden_act": "silu"}, "hidden_act = 'silu': must be one of gelu_pytorch_tanh, gelu"),
    ("gemma", {"tie_word_embeddings": False}, "tie_word_embeddings = False: only True is supported"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True: must be false or null"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation = 'gelu': must be one of gelu_pytorch_tanh"),
    (
        "gemma3",
        {"rope_parameters": {"rope_theta": 3.0}},
        "rope_parameters = {'rope_theta': 3.0}: must have an object for",
    ),
    (
        "gemma3",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "only unscaled rotary positions are supported in local layers",
    ),
]


@pytest.mark.parametrize(("name", "fields", "words"), BAD, ids=[f"{name} {words[:40]}" for name, _, words in BAD])
def test_a_config_that_the_decoder_cannot_compute_is_refused(
    tmp_path: Path, name: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelFileError) as caught:
        Pretrained.open(copied(name, tmp_path, **fields))
    assert words in str(caught.value)


def test_a_pattern_of_layers_that_no_field_makes_is_refused(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention", "full_attention"]
    with pytest.raises(ModelFileError, match="must have local layers from some layer on, except every N-th"):
        Pretrained.open(copied("qwen2", tmp_path, layer_types=types))


UNWRITABLE = [
    ({"window": 3, "global_every": 2}, "model.global_every = 2: Mistral has only 0"),
    ({**vars(CAPPED), "query_scale": 0.3}, "must be the inverse root of a whole number"),
    ({**vars(CAPPED), "width": 9}, "model.heads = 4 must divide the width of a Gemma 2 or 3"),
]


@pytest.mark.parametrize(("changes", "words"), UNWRITABLE)
def test_a_config_that_no_family_has_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    config = dataclasses.replace(TINY, **changes)
    params = {name: jnp.zeros(shape) for name, shape in shapes(Decoder, config).items()}
    with pytest.raises(ModelFileError, match="no family can express the model: .*" + words):
        save_pretrained(tmp_path / "m", config, params, 7)


def test_a_model_is_written_as_the_first_family_that_can_express_it(tmp_path: Path) -> None:
    """No Llama has a width that its heads do not divide; a Mistral may."""
    for width, architecture in ((8, "LlamaForCausalLM"), (9, "MistralForCausalLM")):
        config, folder = dataclasses.replace(TINY, width=width), tmp_path / str(width)
        params = {name: jnp.zeros(shape) for name, shape in shapes(Decoder, config).items()}
        save_pretrained(folder, config, params, 7)
        assert json.loads((folder / "config.json").read_text())["architectures"] == [architecture]
        assert load_pretrained(folder)[0] == config


needs_transformers = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))), reason="needs torch and transformers"
)


@pytest.mark.slow
@needs_transformers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", [Decoder, RewardModel])
@pytest.mark.parametrize("family", CONFIGS)
def test_transformers_computes_the_same_from_a_saved_model(tmp_path: Path, family: str, kind: Kind) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = CONFIGS[family]
    params = {
        name: 0.5 * jax.random.normal(jax.random.key(i), shape)
        for i, (name, shape) in enumerate(shapes(kind, config).items())
    }
    save_pretrained(tmp_path / "m", config, params, 7, eos_ids=[1], pad_id=6, max_positions=128)
    auto = AutoModelForCausalLM if kind is Decoder else AutoModelForSequenceClassification
    options: dict[str, Any] = {"attn_implementation": "eager", "output_loading_info": True}
    theirs_model, loading = auto.from_pretrained(tmp_path / "m", **options)
    assert not any(loading.values())
    ids = np.random.default_rng(1).integers(0, 6, (1, 20)).astype(np.int32)
    with torch.no_grad():
        theirs = theirs_model(torch.from_numpy(ids).long()).logits.numpy()
    graphdef, _ = abstract(kind, config, 7)
    rows = [jnp.asarray(x, jnp.int32) for x in (ids, np.arange(20)[None], np.full_like(ids, 20))]

    @twins.jit
    def run(params: Params, *rows: jax.Array) -> jax.Array:
        model = merge(graphdef, params)
        if isinstance(model, RewardModel):
            return model(*rows, jnp.array([[[0, 19]]], jnp.int32))
        return model.logits(model(*rows))

    np.testing.assert_allclose(run(params, *rows), theirs, rtol=0, atol=1e-4)
