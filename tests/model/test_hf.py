"""Llama checkpoints: computed from as transformers does, written and read without loss, or refused by name."""

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
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pit.config import ModelConfig, gemma_like
from pit.data.tokenizer import Tokenizer
from pit.model import hf
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.hf import load_llama, save_llama
from pit.model.hf_config import ModelFileError
from pit.model.params import Params, merge

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
    """Any bits at all as float32: NaNs, infinities, zeros of both signs."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.integers(0, 2**32, shape, np.uint32).view(np.float32))
        for name, shape in parameter_shapes(kind, config, vocab_size).items()
    }


def bits(params: Params) -> dict[str, list[int]]:
    return {name: np.asarray(value).view(np.uint32).tolist() for name, value in params.items()}


def outputs(kind: Kind, folder: Path, ids: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Logits [B, T, V], or scores [B, 1], of right-padded rows."""
    config, vocab_size, params = load_llama(folder)
    graphdef = skeleton(kind, config, vocab_size)[0]
    row, index = np.arange(len(length)), np.arange(ids.shape[1])
    position = np.broadcast_to(index, ids.shape).astype(np.int32)
    visible_until = np.where(index < length[:, None], length[:, None], 0).astype(np.int32)
    leaf = np.stack([row, length - 1], axis=1)[:, None].astype(np.int32)

    @jax.jit
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


# Few shapes, as it takes a while to ask a model for its parameters; they differ in every way that matters to a layout.
shapes = st.builds(
    lambda per_head, groups, kv_heads, layers, tied: ModelConfig(
        width=per_head * groups * kv_heads,
        layers=layers,
        heads=groups * kv_heads,
        kv_heads=kv_heads,
        head_dim=2,
        mlp=5,
        tied=tied,
    ),
    per_head=st.sampled_from([1, 3]),
    groups=st.sampled_from([1, 2]),
    kv_heads=st.sampled_from([1, 2]),
    layers=st.sampled_from([1, 3]),
    tied=st.booleans(),
)


@given(
    shape=shapes,
    kind=st.sampled_from([Decoder, RewardModel]),
    norm_eps=st.floats(1e-8, 1e-1),
    rope_theta=st.floats(1.0, 1e7),
    activation=st.sampled_from(["silu", "gelu"]),
    seed=st.integers(0, 2**32),
)
def test_what_is_saved_is_loaded_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, shape: ModelConfig, kind: Kind, seed: int, **fields: Any
) -> None:
    folder = tmp_path_factory.mktemp("hf") / "model"
    config, params = dataclasses.replace(shape, **fields), random_params(kind, shape, 7, seed)
    save_llama(folder, config, params, 7, eos_ids=[0], pad_id=1)
    if kind is RewardModel:
        # No score depends on an output table, and Llama has no place for it.
        config = dataclasses.replace(config, tied=True)
        params.pop("decoder.output", None)
    loaded_config, loaded_vocab_size, loaded = load_llama(folder)
    assert (loaded_config, loaded_vocab_size) == (config, 7)
    assert {name: value.shape for name, value in loaded.items()} == {n: v.shape for n, v in params.items()}
    assert bits(loaded) == bits(params)


def test_bfloat16_is_written_rounded_and_read_as_float32(tmp_path: Path) -> None:
    params = {name: jnp.full(shape, 1.003, jnp.float32) for name, shape in parameter_shapes(Decoder, SMALL, 3).items()}
    save_llama(tmp_path / "m", SMALL, params, 3, dtype="bfloat16")
    assert {str(value.dtype) for value in load_file(tmp_path / "m" / hf.WEIGHTS).values()} == {"bfloat16"}
    for value in load_llama(tmp_path / "m")[2].values():
        assert value.dtype == jnp.float32
        assert (np.asarray(value) == 1.0).all()


def test_float16_is_read(tmp_path: Path) -> None:
    folder = copy_golden("tied", tmp_path)
    edit_tensors(folder, lambda tensors: tensors.update({n: t.astype(np.float16) for n, t in tensors.items()}))
    exact, half = load_llama(GOLDEN / "llama_tied")[2], load_llama(folder)[2]
    for name, value in exact.items():
        np.testing.assert_array_equal(np.asarray(half[name]), np.asarray(value).astype(np.float16).astype(np.float32))


def copy_golden(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / f"llama_{name}", tmp_path / name))


def edit_config(folder: Path, **fields: Any) -> None:
    """Set fields of a config.json; `...` removes one."""
    values = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({n: v for n, v in values.items() if v is not ...}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / hf.WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / hf.WEIGHTS)


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
def test_absent_and_older_fields_mean_what_they_mean_to_transformers(
    tmp_path: Path, edits: dict[str, Any], field: str, value: object
) -> None:
    folder = copy_golden("tied", tmp_path)
    before = load_llama(folder)[0]
    edit_config(folder, **edits)
    assert load_llama(folder)[0] == dataclasses.replace(before, **{field: value})


def test_head_sizes_are_derived(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, kv_heads=2)
    save_llama(tmp_path / "m", config, random_params(Decoder, config, 3), 3)
    edit_config(tmp_path / "m", head_dim=None, num_key_value_heads=..., tie_word_embeddings=True)
    assert load_llama(tmp_path / "m")[0] == config


BAD_CONFIGS = [
    ({"architectures": ["MistralForCausalLM"]}, "architectures = ['MistralForCausalLM']: must be ['LlamaForCausalLM']"),
    ({"architectures": ...}, "architectures = None: must be"),
    ({"attention_bias": True}, "attention_bias = True: only False is supported"),
    ({"mlp_bias": True}, "mlp_bias = True: only False is supported"),
    ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}: only None is supported"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu': must be one of silu, gelu_pytorch_tanh, gelu_new"),
    ({"hidden_size": ...}, "hidden_size is missing: it fixes the shape of the model; add it"),
    ({"hidden_size": "20"}, "hidden_size = '20': must be a positive integer"),
    ({"num_hidden_layers": True}, "num_hidden_layers = True: must be a positive integer"),
    ({"num_key_value_heads": 3}, "model.kv_heads = 3: must divide model.heads = 4"),
    ({"head_dim": None, "num_attention_heads": 6}, "num_attention_heads = 6: must divide hidden_size = 20"),
    ({"rms_norm_eps": 0}, "rms_norm_eps = 0: must be a positive number"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1: must be true or false"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.rope_type = 'llama3': only unscaled rotary positions"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type = 'linear': only unscaled rotary positions"),
    ({"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention = {}: only unscaled"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor = 0.5: only unscaled"),
    ({"rope_theta": 7.0}, "is given twice and differs; keep the right one"),
    ({"rope_parameters": 3}, "rope_parameters = 3: must be null or an object"),
]


@pytest.mark.parametrize(("edits", "words"), BAD_CONFIGS, ids=[words[:40] for _, words in BAD_CONFIGS])
def test_a_config_that_the_decoder_cannot_compute_is_refused(tmp_path: Path, edits: dict[str, Any], words: str) -> None:
    folder = copy_golden("tied", tmp_path)
    edit_config(folder, **edits)
    with pytest.raises(ModelFileError) as caught:
        load_llama(folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"), [("[1]", "holds a JSON list"), ("{", "is no JSON"), (None, "no such file")]
)
def test_a_config_that_is_no_config_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    folder = copy_golden("tied", tmp_path)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(ModelFileError, match=f"config.json: {words}"):
        load_llama(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"gone: no such folder; name one with config.json and model.safetensors$"):
        load_llama(tmp_path / "gone")


DOWN = "model.layers.1.mlp.down_proj.weight"
BAD_TENSORS: list[tuple[Callable[[dict[str, np.ndarray]], object], str]] = [
    (lambda t: t.pop(DOWN), f"tensor '{DOWN}' is missing: a LlamaForCausalLM of this config.json has it"),
    (
        lambda t: t.update({DOWN: t[DOWN].T.copy()}),
        f"shape of '{DOWN}' = (28, 20): a LlamaForCausalLM of this config.json has (20, 28)",
    ),
    (lambda t: t.update({DOWN: t[DOWN].astype(np.int8)}), f"dtype of '{DOWN}' = 'I8': must be one of F32, BF16, F16"),
    (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(4, np.float32)}),
        "tensor = 'model.layers.0.self_attn.q_proj.bias': a LlamaForCausalLM of this config.json has none of this name",
    ),
    (
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + np.float32(1)}),
        "tensor = 'lm_head.weight': config.json ties it to model.embed_tokens.weight, from which it differs",
    ),
]


@pytest.mark.parametrize(("edit", "words"), BAD_TENSORS, ids=["missing", "shape", "dtype", "extra", "untied"])
def test_tensors_that_are_not_the_configs_are_refused(
    tmp_path: Path, edit: Callable[[dict[str, np.ndarray]], object], words: str
) -> None:
    folder = copy_golden("tied", tmp_path)
    edit_tensors(folder, edit)
    with pytest.raises(ModelFileError) as caught:
        load_llama(folder)
    assert words in str(caught.value)


def test_an_untied_model_needs_its_output_table(tmp_path: Path) -> None:
    folder = copy_golden("tied", tmp_path)
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ModelFileError, match=r"'lm_head.weight' is missing: .*set tie_word_embeddings to true"):
        load_llama(folder)


def test_a_score_of_several_labels_is_refused(tmp_path: Path) -> None:
    folder = copy_golden("reward", tmp_path)
    edit_tensors(folder, lambda t: t.update({"score.weight": np.zeros((2, 20), np.float32)}))
    with pytest.raises(ModelFileError, match=r"shape of 'score.weight' = \(2, 20\): .* has \(1, 20\)"):
        load_llama(folder)


def test_copies_that_say_nothing_new_are_allowed(tmp_path: Path) -> None:
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
    assert bits(load_llama(folder)[2]) == bits(load_llama(GOLDEN / "llama_tied")[2])


@given(data=st.data())
def test_every_truncation_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = copy_golden("reward", tmp_path_factory.mktemp("hf"))
    whole = (folder / hf.WEIGHTS).read_bytes()
    (folder / hf.WEIGHTS).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ModelFileError, match=r"model.safetensors: is damaged or no safetensors file .*fetch it again"):
        load_llama(folder)


def set_weight_map(folder: Path, **places: str) -> None:
    index = json.loads((folder / hf.INDEX).read_text())
    index["weight_map"] |= places
    (folder / hf.INDEX).write_text(json.dumps(index))


FIRST = "model-00001-of-00002.safetensors"
BAD_SHARDS: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / FIRST).unlink(), f"{FIRST}: no such file; fetch all shards that {hf.INDEX} names"),
    (lambda f: shutil.copy(f / FIRST, f / hf.WEIGHTS), "both are there, and they may differ; remove the stale one"),
    (lambda f: (f / hf.INDEX).unlink(), "neither is there; save the model as safetensors"),
    (lambda f: (f / hf.INDEX).write_text("{}"), "weight_map = None: must name the file of every tensor"),
    (lambda f: set_weight_map(f, more=FIRST), "weight_map = 'more': its file lacks this tensor"),
    (lambda f: set_weight_map(f, more="../x"), "weight_map = '../x': must be the name of a file beside the index"),
    (lambda f: shutil.copy(f / FIRST, f / FIRST.replace("1-", "2-")), "places it in model-00001-of-00002.safetensors"),
]


@pytest.mark.parametrize(("edit", "words"), BAD_SHARDS, ids=[words[:40] for _, words in BAD_SHARDS])
def test_shards_that_do_not_fit_their_index_are_refused(
    tmp_path: Path, edit: Callable[[Path], object], words: str
) -> None:
    folder = copy_golden("untied", tmp_path)
    edit(folder)
    with pytest.raises(ModelFileError) as caught:
        load_llama(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"norm_offset": True}, "model.norm_offset = True: Llama has only False; train with"),
        ({"embed_scale": True}, "model.embed_scale = True: Llama has only False"),
        ({"post_norm": True}, "model.post_norm = True: Llama has only False"),
        ({"attention_soft_cap": 50.0}, "model.attention_soft_cap = 50.0: Llama has only None"),
        ({"final_soft_cap": 30.0}, "model.final_soft_cap = 30.0: Llama has only None"),
        ({"query_scale": 0.1}, "model.query_scale = 0.1: Llama scales queries by head_dim"),
        ({"width": 5}, "model.width = 5: model.heads = 2 must divide the width of a Llama"),
    ],
)
def test_a_config_that_llama_cannot_express_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    config = dataclasses.replace(SMALL, **fields)
    with pytest.raises(ModelFileError) as caught:
        save_llama(tmp_path / "m", config, random_params(Decoder, config, 3), 3)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_gemma_is_refused(tmp_path: Path) -> None:
    config = gemma_like(SMALL)
    with pytest.raises(ModelFileError, match=r"model\.norm_offset = True: Llama has only False"):
        save_llama(tmp_path / "m", config, random_params(Decoder, config, 3), 3)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Decoder, {"eos_ids": [0, 3]}, r"eos_ids\[1\] = 3: must be within the vocabulary of 3 rows"),
        (Decoder, {"pad_id": -1}, "pad_id = -1: must be within the vocabulary of 3 rows"),
        (Decoder, {"max_positions": 0}, "max_positions = 0: must be positive"),
        (Decoder, {"tokenizer": "{}"}, "tokenizer: not the text of a tokenizer.json"),
        (RewardModel, {"eos_ids": [0]}, "pad_id = None: LlamaForSequenceClassification scores the last token that is"),
        (RewardModel, {"eos_ids": [0], "pad_id": 0}, r"pad_id = 0: .*; give an id outside eos_ids = \[0\]"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path: Path, kind: Kind, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        save_llama(tmp_path / "m", SMALL, random_params(kind, SMALL, 3), 3, **options)
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_model_are_refused(tmp_path: Path) -> None:
    params = random_params(Decoder, SMALL, 3)
    with pytest.raises(ModelFileError, match=r"shape of 'embedding' = \(3, 4\): its config and vocab_size = 4 make it"):
        save_llama(tmp_path / "m", SMALL, params, 4)
    with pytest.raises(ModelFileError, match="params: 'output' is missing"):
        save_llama(tmp_path / "m", dataclasses.replace(SMALL, tied=False), params, 3)
    with pytest.raises(ModelFileError, match="params: name = 'bias': its config has none such"):
        save_llama(tmp_path / "m", SMALL, params | {"bias": jnp.zeros(1)}, 3)


def test_a_taken_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(ModelFileError, match="already exists and is not an empty folder; remove it or name another"):
        save_llama(tmp_path, SMALL, random_params(Decoder, SMALL, 3), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(hf, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_llama(tmp_path / "m", SMALL, random_params(Decoder, SMALL, 3), 3)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_goes_along(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_bpe(["a red lamp"], 270)
    params = random_params(Decoder, SMALL, tokenizer.vocab_size)
    ids = {"eos_ids": [tokenizer.role_ids["output"]], "pad_id": tokenizer.role_ids["pad"]}
    save_llama(tmp_path / "m", SMALL, params, tokenizer.vocab_size, tokenizer=tokenizer.to_json(), **ids)
    assert Tokenizer.load(tmp_path / "m" / "tokenizer.json").hash == tokenizer.hash
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert (settings["eos_token"], settings["pad_token"]) == ("<|output|>", "<|pad|>")
    assert settings["add_prefix_space"] is True
    with pytest.raises(
        ModelFileError, match=r"tokenizer: largest id \+ 1 = \d+: must fit into the embedding of 3 rows"
    ):
        save_llama(tmp_path / "n", SMALL, random_params(Decoder, SMALL, 3), 3, tokenizer=tokenizer.to_json())


needs_transformers = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))), reason="needs torch and transformers"
)


@pytest.mark.slow
@needs_transformers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [Decoder, RewardModel])
def test_transformers_computes_the_same_from_what_is_saved(tmp_path: Path, kind: Kind, tied: bool) -> None:
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
    save_llama(tmp_path / "m", config, params, vocab_size, **text)

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
