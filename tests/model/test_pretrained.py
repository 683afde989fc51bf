"""Pretrained folders: the logits of transformers, no loss in writing and reading, and refusals that name the cause."""

import dataclasses
import functools
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pit.atomic import PlaceError
from pit.config import ModelConfig
from pit.data.tokenizer import Tokenizer
from pit.model import tensor_files
from pit.model.decoder import Decoder
from pit.model.errors import ModelFileError
from pit.model.families import FAMILIES
from pit.model.families.llama import LLAMA
from pit.model.heads import RewardModel
from pit.model.layout import PARAMETERS
from pit.model.params import Params, merge
from pit.model.pretrained import load_pretrained, save_pretrained
from pit.model.tensor_files import INDEX, WEIGHTS

GOLDEN = Path(__file__).parent / "golden"
Kind = type[Decoder] | type[RewardModel]
SMALL = ModelConfig(width=4, layers=1, heads=2, kv_heads=1, head_dim=2, mlp=3)


def skeleton(kind: Kind, config: ModelConfig, vocab_size: int) -> tuple[nnx.GraphDef[Any], nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: kind(config, vocab_size, nnx.Rngs(0))), nnx.Param)


@functools.cache
def parameter_shapes(kind: Kind, config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters, as the model itself names them."""
    flat = nnx.to_flat_state(skeleton(kind, config, vocab_size)[1])
    return {".".join(map(str, path)): variable.get_value().shape for path, variable in flat}


def random_params(kind: Kind, config: ModelConfig, vocab_size: int, seed: int = 0) -> Params:
    """Random bits as float32: NaNs, infinities and zeros of both signs among them."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.integers(0, 2**32, shape, np.uint32).view(np.float32))
        for name, shape in parameter_shapes(kind, config, vocab_size).items()
    }


def bits(params: Params) -> dict[str, list[int]]:
    return {name: np.asarray(value).view(np.uint32).tolist() for name, value in params.items()}


def outputs(kind: Kind, folder: Path, ids: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Logits [B, T, V], or scores [B, 1], of right-padded rows."""
    config, vocab_size, params = load_pretrained(folder)
    graphdef = skeleton(kind, config, vocab_size)[0]
    row, index = np.arange(len(length)), np.arange(ids.shape[1])
    position = np.broadcast_to(index, ids.shape).astype(np.int32)
    visible_until = np.where(index < length[:, None], length[:, None], 0).astype(np.int32)
    leaf = np.stack([row, length - 1], axis=1)[:, None].astype(np.int32)

    @twins.jit
    def run(params: Params, *inputs: jax.Array) -> jax.Array:
        model = merge(graphdef, params)
        return model(*inputs) if isinstance(model, RewardModel) else model.logits(model(*inputs))

    return np.asarray(run(params, ids, position, visible_until, *([leaf] if kind is RewardModel else [])))


@pytest.mark.parametrize(("name", "kind"), [("untied", Decoder), ("tied", Decoder), ("reward", RewardModel)])
def test_outputs_are_those_of_transformers(name: str, kind: Kind) -> None:
    golden = np.load(GOLDEN / "tiny_llama.npz")
    ids, length = golden["ids"], golden["length"]
    ours, theirs = outputs(kind, GOLDEN / f"llama_{name}", ids, length), golden[name]
    assert ours.shape == theirs.shape
    if kind is Decoder:
        live = np.arange(ids.shape[1]) < length[:, None]
        ours, theirs = ours[live], theirs[live]
    assert theirs.std() > 1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


# Few shapes, as it takes a while to ask a model for its parameters: all sizes differ, kv_heads is 1, heads, or between.
SHAPES = [
    ModelConfig(width=12, layers=1, heads=4, kv_heads=2, head_dim=6, mlp=5, tied=False),
    ModelConfig(width=6, layers=3, heads=3, kv_heads=1, head_dim=4, mlp=5, tied=True),
    ModelConfig(width=4, layers=2, heads=2, kv_heads=2, head_dim=2, mlp=3, tied=False),
]


@given(
    shape=st.sampled_from(SHAPES),
    kind=st.sampled_from([Decoder, RewardModel]),
    norm_eps=st.floats(1e-8, 1e-1),
    rope_theta=st.floats(1.0, 1e7),
    activation=st.sampled_from(["silu", "gelu"]),
    seed=st.integers(0, 2**32),
)
def test_a_saved_model_is_loaded_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, shape: ModelConfig, kind: Kind, seed: int, **fields: Any
) -> None:
    folder = tmp_path_factory.mktemp("hf") / "model"
    config, params = dataclasses.replace(shape, **fields), random_params(kind, shape, 7, seed)
    save_pretrained(folder, config, params, 7, eos_ids=[0], pad_id=1)
    if kind is RewardModel:
        # No score depends on an output table, and a reward model's folder has no place for it.
        config = dataclasses.replace(config, tied=True)
        params.pop("decoder.output", None)
    loaded_config, loaded_vocab_size, loaded = load_pretrained(folder)
    assert (loaded_config, loaded_vocab_size) == (config, 7)
    assert {name: value.shape for name, value in loaded.items()} == {n: v.shape for n, v in params.items()}
    assert bits(loaded) == bits(params)


def test_bfloat16_is_written_rounded_and_read_as_float32(tmp_path: Path) -> None:
    params = {name: jnp.full(shape, 1.003, jnp.float32) for name, shape in parameter_shapes(Decoder, SMALL, 3).items()}
    save_pretrained(tmp_path / "m", SMALL, params, 3, dtype="bfloat16")
    assert {str(value.dtype) for value in load_file(tmp_path / "m" / WEIGHTS).values()} == {"bfloat16"}
    for value in load_pretrained(tmp_path / "m")[2].values():
        assert value.dtype == jnp.float32
        assert (np.asarray(value) == 1.0).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_in_files_is_written_again_byte_for_byte(tmp_path: Path, dtype: Any) -> None:
    """In one file and in shards."""
    rng, shapes = np.random.default_rng(0), parameter_shapes(Decoder, SMALL, 7)
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    for limit in (10**9, 200):
        one, two = tmp_path / f"one-{limit}", tmp_path / f"two-{limit}"
        save_pretrained(one, SMALL, params, 7, dtype=dtype, shard_bytes=limit)
        save_pretrained(two, SMALL, load_pretrained(one)[2], 7, dtype=dtype, shard_bytes=limit)
        files = {path.name: path.read_bytes() for path in one.iterdir()}
        assert files == {path.name: path.read_bytes() for path in two.iterdir()}
        assert (len(files) > 3) == (limit == 200)


def test_float16_is_written_rounded_and_a_number_that_it_does_not_hold_is_refused(tmp_path: Path) -> None:
    params = {name: jnp.full(shape, 2.0**-14 + 2.0**-26) for name, shape in parameter_shapes(Decoder, SMALL, 3).items()}
    save_pretrained(tmp_path / "m", SMALL, params, 3, dtype="float16")
    assert {str(value.dtype) for value in load_file(tmp_path / "m" / WEIGHTS).values()} == {"float16"}
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "float16"
    for value in load_pretrained(tmp_path / "m")[2].values():
        assert (np.asarray(value) == 2.0**-14).all()
    params["layers.0.mlp.down"] = params["layers.0.mlp.down"].at[0, 0].set(-70_000.0)
    words = r"a number of 'layers.0.mlp.down' = 70000.0: would be infinite in float16; write the model in bfloat16"
    with pytest.raises(ModelFileError, match=words):
        save_pretrained(tmp_path / "n", SMALL, params, 3, dtype="float16")
    assert not (tmp_path / "n").exists()
    save_pretrained(tmp_path / "n", SMALL, params, 3, dtype="bfloat16")


def test_float16_is_read(tmp_path: Path) -> None:
    folder = copy_golden("tied", tmp_path)
    edit_tensors(folder, lambda tensors: tensors.update({n: t.astype(np.float16) for n, t in tensors.items()}))
    exact, half = load_pretrained(GOLDEN / "llama_tied")[2], load_pretrained(folder)[2]
    for name, value in exact.items():
        np.testing.assert_array_equal(np.asarray(half[name]), np.asarray(value).astype(np.float16).astype(np.float32))


def copy_golden(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / f"llama_{name}", tmp_path / name))


def edit_config(folder: Path, **fields: Any) -> None:
    """Set fields of a config.json; `...` removes one."""
    values = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({n: v for n, v in values.items() if v is not ...}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("edits", "field", "value"),
    [
        ({"rope_parameters": ..., "rope_theta": 123.0}, "rope_theta", 123.0),
        ({"rope_parameters": ...}, "rope_theta", 10_000.0),
        ({"rope_parameters": ..., "rope_theta": 9, "rope_scaling": {"type": "default"}}, "rope_theta", 9.0),
        ({"rms_norm_eps": ...}, "norm_eps", 1e-6),
        ({"hidden_act": ...}, "activation", "silu"),
        ({"hidden_act": "gelu_new"}, "activation", "gelu"),
    ],
)
def test_absent_and_older_fields_have_the_meaning_of_transformers(
    tmp_path: Path, edits: dict[str, Any], field: str, value: object
) -> None:
    folder = copy_golden("tied", tmp_path)
    before = load_pretrained(folder)[0]
    edit_config(folder, **edits)
    assert load_pretrained(folder)[0] == dataclasses.replace(before, **{field: value})


def test_head_sizes_are_derived(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, kv_heads=2)
    save_pretrained(tmp_path / "m", config, random_params(Decoder, config, 3), 3)
    edit_config(tmp_path / "m", head_dim=None, num_key_value_heads=..., tie_word_embeddings=True)
    assert load_pretrained(tmp_path / "m")[0] == config


BAD_CONFIGS = [
    ({"architectures": ["OtherForCausalLM"]}, "architectures = ['OtherForCausalLM']: must be"),
    ({"architectures": ["LlamaForCausalLM"] * 2}, "architectures = ['LlamaForCausalLM', 'LlamaForCausalLM']: must be"),
    ({"architectures": ...}, "architectures = None: must be"),
    ({"attention_bias": True}, "attention_bias = True: only False is supported"),
    ({"mlp_bias": True}, "mlp_bias = True: only False is supported"),
    ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}: only None is supported"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu': must be one of silu, gelu_pytorch_tanh, gelu_new"),
    ({"hidden_size": ...}, "hidden_size is missing"),
    ({"hidden_size": "20"}, "hidden_size = '20': must be a positive integer"),
    ({"num_hidden_layers": True}, "num_hidden_layers = True: must be a positive integer"),
    ({"num_key_value_heads": 3}, "kv_heads = 3: must divide"),
    ({"head_dim": None, "num_attention_heads": 6}, "num_attention_heads = 6: must divide hidden_size = 20"),
    ({"rms_norm_eps": 0}, "rms_norm_eps = 0: must be a positive number"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1: must be true or false"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor is missing: rope_type 'llama3' needs it"),
    (
        {"rope_scaling": {"type": "linear", "factor": 2}},
        "rope_scaling = {'rope_parameters': None, 'rope_scaling': RopeScaling(",
    ),
    ({"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention = {}: is not a field of"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor = 0.5: only 1.0"),
    ({"rope_theta": 7.0}, "rope_theta = {'rope_theta': 7.0, 'rope_parameters.rope_theta': 50.0}: is given twice"),
    ({"rope_parameters": 3}, "rope_parameters = 3: must be null or an object"),
    ({"rope_parameters": {"rope_theta": -1}}, "rope_parameters.rope_theta = -1: must be a positive number"),
    ({"vocab_size": ...}, "vocab_size is missing"),
]


@pytest.mark.parametrize(("edits", "words"), BAD_CONFIGS, ids=[words[:40] for _, words in BAD_CONFIGS])
def test_a_config_that_the_decoder_cannot_compute_is_refused(tmp_path: Path, edits: dict[str, Any], words: str) -> None:
    folder = copy_golden("tied", tmp_path)
    edit_config(folder, **edits)
    with pytest.raises(ModelFileError) as caught:
        load_pretrained(folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"), [("[1]", "holds a JSON list"), ("{", "is not valid JSON"), (None, "no such file")]
)
def test_a_config_that_is_not_an_object_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    folder = copy_golden("tied", tmp_path)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(ModelFileError, match=f"config.json: {words}"):
        load_pretrained(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"gone: no such folder"):
        load_pretrained(tmp_path / "gone")


DOWN = "model.layers.1.mlp.down_proj.weight"
BAD_TENSORS: list[tuple[Callable[[dict[str, np.ndarray]], object], str]] = [
    (lambda t: t.pop(DOWN), f"tensor '{DOWN}' is missing"),
    (
        lambda t: t.update({DOWN: t[DOWN].T.copy()}),
        f"shape of '{DOWN}' = (28, 20): a LlamaForCausalLM of this config.json has (20, 28)",
    ),
    (lambda t: t.update({DOWN: t[DOWN].astype(np.int8)}), f"dtype of '{DOWN}' = 'I8': must be one of F32, BF16, F16"),
    (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(4, np.float32)}),
        "tensor = 'model.layers.0.self_attn.q_proj.bias': a LlamaForCausalLM",
    ),
    (
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + np.float32(1)}),
        "tensor = 'lm_head.weight': config.json ties it to model.embed_tokens.weight",
    ),
]


@pytest.mark.parametrize(("edit", "words"), BAD_TENSORS, ids=["missing", "shape", "dtype", "extra", "untied"])
def test_tensors_of_another_config_are_refused(
    tmp_path: Path, edit: Callable[[dict[str, np.ndarray]], object], words: str
) -> None:
    folder = copy_golden("tied", tmp_path)
    edit_tensors(folder, edit)
    with pytest.raises(ModelFileError) as caught:
        load_pretrained(folder)
    assert words in str(caught.value)


def test_an_untied_model_needs_its_output_table(tmp_path: Path) -> None:
    folder = copy_golden("tied", tmp_path)
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ModelFileError, match=r"'lm_head.weight' is missing: .*set tie_word_embeddings to true"):
        load_pretrained(folder)


def test_a_score_of_several_labels_is_refused(tmp_path: Path) -> None:
    folder = copy_golden("reward", tmp_path)
    edit_tensors(folder, lambda t: t.update({"score.weight": np.zeros((2, 20), np.float32)}))
    with pytest.raises(ModelFileError, match=r"shape of 'score.weight' = \(2, 20\): .* has \(1, 20\)"):
        load_pretrained(folder)


def test_redundant_tensors_are_allowed(tmp_path: Path) -> None:
    folder = copy_golden("tied", tmp_path)
    edit_tensors(
        folder,
        lambda t: t.update(
            {
                "lm_head.weight": t["model.embed_tokens.weight"],
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
            }
        ),
    )
    assert bits(load_pretrained(folder)[2]) == bits(load_pretrained(GOLDEN / "llama_tied")[2])


@given(data=st.data())
def test_every_truncation_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = copy_golden("reward", tmp_path_factory.mktemp("hf"))
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ModelFileError, match=r"model.safetensors: is damaged"):
        load_pretrained(folder)


def set_weight_map(folder: Path, **places: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= places
    (folder / INDEX).write_text(json.dumps(index))


FIRST = "model-00001-of-00002.safetensors"
BAD_SHARDS: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / FIRST).unlink(), f"{FIRST}: no such file; fetch all shards"),
    (lambda f: shutil.copy(f / FIRST, f / WEIGHTS), "both are there"),
    (lambda f: (f / INDEX).unlink(), "neither is there"),
    (lambda f: (f / INDEX).write_text("{}"), "weight_map = None"),
    (lambda f: set_weight_map(f, more=FIRST), "weight_map = 'more'"),
    (lambda f: set_weight_map(f, more="../x"), "weight_map = '../x': must be the name of a file"),
    (lambda f: shutil.copy(f / FIRST, f / FIRST.replace("1-", "2-")), "places it in model-00001-of-00002.safetensors"),
]


@pytest.mark.parametrize(("edit", "words"), BAD_SHARDS, ids=[words[:40] for _, words in BAD_SHARDS])
def test_shards_that_do_not_fit_their_index_are_refused(
    tmp_path: Path, edit: Callable[[Path], object], words: str
) -> None:
    folder = copy_golden("untied", tmp_path)
    edit(folder)
    with pytest.raises(ModelFileError) as caught:
        load_pretrained(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"norm_offset": True}, "model.norm_offset = True: Llama has only False"),
        ({"embed_scale": True}, "model.embed_scale = True: Llama has only False"),
        ({"post_norm": True}, "model.post_norm = True: Llama has only False"),
        ({"attention_soft_cap": 50.0}, "model.attention_soft_cap = 50.0: Llama has only None"),
        ({"final_soft_cap": 30.0}, "model.final_soft_cap = 30.0: Llama has only None"),
        ({"rotary_fraction": 0.0, "qk_norm": True}, "model.rotary_fraction = 0.0: Llama has only 1.0"),
        ({"learned_positions": 9, "qk_norm": True}, "model.learned_positions = 9: Llama has only 0"),
        ({"learned_positions": 9, "activation": "gelu"}, "model.activation = 'gelu': Pit has only 'silu'"),
        ({"query_scale": 0.1}, "model.query_scale = 0.1: Llama has only None, which is head_dim**-0.5 = 0.707"),
    ],
)
def test_a_config_that_no_family_can_express_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    config = dataclasses.replace(SMALL, **fields)
    with pytest.raises(ModelFileError) as caught:
        save_pretrained(tmp_path / "m", config, random_params(Decoder, SMALL, 3), 3)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_query_scale_that_is_the_default_is_written(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, query_scale=SMALL.head_dim**-0.5)
    save_pretrained(tmp_path / "m", config, random_params(Decoder, SMALL, 3), 3)
    assert load_pretrained(tmp_path / "m")[0] == SMALL


def test_a_family_without_a_tensor_for_a_parameter_is_refused() -> None:
    tensors = {name: tensor for name, tensor in LLAMA.tensors.items() if name != "final_norm.scale"}
    with pytest.raises(ModelFileError, match=r"Llama: has no tensor for 'final_norm.scale'"):
        dataclasses.replace(LLAMA, tensors=tensors).weights(SMALL, 3)


def test_families_differ_in_names_and_types() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert len({family.model_type for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("kind", [Decoder, RewardModel])
@pytest.mark.parametrize("config", [twins.LLAMA, twins.GEMMA, twins.LEARNED], ids=["llama", "gemma", "learned"])
def test_the_layout_has_all_parameters_of_the_models(config: ModelConfig, kind: Kind) -> None:
    family = dataclasses.replace(LLAMA, tensors={name: name for name in PARAMETERS})
    weights = family.weights(config, twins.VOCAB, reward=kind is RewardModel)
    shapes = parameter_shapes(kind, config, twins.VOCAB) | {}
    if kind is RewardModel:
        shapes.pop("decoder.output", None)
    assert {weight.name: weight.shape for weight in weights} == shapes


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Decoder, {"eos_ids": [0, 3]}, r"eos_ids\[1\] = 3: .* 3 rows"),
        (Decoder, {"pad_id": -1}, "pad_id = -1: .* 3 rows"),
        (Decoder, {"max_positions": 0}, "max_positions = 0: must be positive"),
        (Decoder, {"tokenizer": "{}"}, "tokenizer: not the text of a tokenizer.json"),
        (RewardModel, {"eos_ids": [0]}, "pad_id = None: LlamaForSequenceClassification"),
        (RewardModel, {"eos_ids": [0], "pad_id": 0}, r"pad_id = 0: .* eos_ids = \[0\]"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path: Path, kind: Kind, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        save_pretrained(tmp_path / "m", SMALL, random_params(kind, SMALL, 3), 3, **options)
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_model_are_refused(tmp_path: Path) -> None:
    params = random_params(Decoder, SMALL, 3)
    with pytest.raises(ModelFileError, match=r"shape of 'embedding' = \(3, 4\): .* \(4, 4\)"):
        save_pretrained(tmp_path / "m", SMALL, params, 4)
    with pytest.raises(ModelFileError, match="params: 'output' is missing"):
        save_pretrained(tmp_path / "m", dataclasses.replace(SMALL, tied=False), params, 3)
    with pytest.raises(ModelFileError, match="params: name = 'bias'"):
        save_pretrained(tmp_path / "m", SMALL, params | {"bias": jnp.zeros(1)}, 3)


def test_a_taken_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(PlaceError, match="already exists"):
        save_pretrained(tmp_path, SMALL, random_params(Decoder, SMALL, 3), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(("limit", "files"), [(1, 11), (100, 6), (10**6, 1)])
def test_large_weights_are_split_over_files(tmp_path: Path, limit: int, files: int) -> None:
    """A file holds the tensors that fit, and one that is larger than a file may be has its own."""
    params = random_params(Decoder, SMALL, 3)
    save_pretrained(tmp_path / "m", SMALL, params, 3, shard_bytes=limit)
    names = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert len(names) == files
    if files > 1:
        assert names[0] == f"model-00001-of-{files:05d}.safetensors"
        index = json.loads((tmp_path / "m" / INDEX).read_text())
        assert index["metadata"] == {"total_size": 4 * sum(value.size for value in params.values())}
        assert set(index["weight_map"].values()) == set(names)
        sizes = [sum(v.nbytes for v in load_file(tmp_path / "m" / name).values()) for name in names]
        assert all(
            size <= limit or len(load_file(tmp_path / "m" / name)) == 1 for size, name in zip(sizes, names, strict=True)
        )
    assert bits(load_pretrained(tmp_path / "m")[2]) == bits(params)


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_pretrained(tmp_path / "m", SMALL, random_params(Decoder, SMALL, 3), 3)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_goes_along(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_bpe(["a red lamp"], 270)
    params = random_params(Decoder, SMALL, tokenizer.vocab_size)
    ids = {"eos_ids": [tokenizer.role_ids["output"]], "pad_id": tokenizer.role_ids["pad"]}
    save_pretrained(tmp_path / "m", SMALL, params, tokenizer.vocab_size, tokenizer=tokenizer.to_json(), **ids)
    assert Tokenizer.load(tmp_path / "m" / "tokenizer.json").hash == tokenizer.hash
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert (settings["eos_token"], settings["pad_token"]) == ("<|output|>", "<|pad|>")
    assert settings["add_prefix_space"] is True
    with pytest.raises(ModelFileError, match=r"tokenizer: largest id \+ 1 = \d+: .* 3 rows"):
        save_pretrained(tmp_path / "n", SMALL, random_params(Decoder, SMALL, 3), 3, tokenizer=tokenizer.to_json())


needs_transformers = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))), reason="needs torch and transformers"
)


@pytest.mark.slow
@needs_transformers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [Decoder, RewardModel])
def test_transformers_computes_the_same_from_a_saved_model(tmp_path: Path, kind: Kind, tied: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = Tokenizer.train_bpe(["a red lamp and a blue lamp"], 280)
    eos, pad, vocab_size = tokenizer.role_ids["output"], tokenizer.role_ids["pad"], tokenizer.vocab_size
    config = ModelConfig(
        width=24, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=20, rope_theta=50.0, norm_eps=1e-2, tied=tied
    )
    params = {
        name: 0.4 * jax.random.normal(jax.random.key(i), shape)
        for i, (name, shape) in enumerate(parameter_shapes(kind, config, vocab_size).items())
    }
    text = {"tokenizer": tokenizer.to_json(), "eos_ids": [eos], "pad_id": pad}
    save_pretrained(tmp_path / "m", config, params, vocab_size, **text)

    prompt = tokenizer.encode("a red lamp")
    assert AutoTokenizer.from_pretrained(tmp_path / "m")("a red lamp").input_ids == prompt
    ids, length = np.full((2, len(prompt) + 1), pad, np.int32), np.array([len(prompt) + 1, 3], np.int32)
    ids[0], ids[1, :3] = [*prompt, eos], [*prompt[:2], eos]
    auto = AutoModelForCausalLM if kind is Decoder else AutoModelForSequenceClassification
    theirs_model, loading = auto.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(loading.values())
    assert theirs_model.config.bos_token_id is None
    with torch.no_grad():
        mask = torch.from_numpy(ids != pad)
        theirs = theirs_model(torch.from_numpy(ids).long(), attention_mask=mask).logits.numpy()
    ours = outputs(kind, tmp_path / "m", ids, length)
    live = (ids != pad) if kind is Decoder else np.ones(2, bool)
    np.testing.assert_allclose(ours[live], theirs[live], rtol=0, atol=1e-4)
