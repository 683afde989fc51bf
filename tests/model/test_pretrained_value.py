"""`Pretrained`: weights on their shards, in either dtype; the facts about tokens; a digest of what is read."""

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
from safetensors.numpy import load_file, save_file

from pit.config import ConfigError, MeshConfig, ModelConfig
from pit.data.tokenizer import Tokenizer
from pit.model.decoder import Decoder
from pit.model.errors import ModelFileError
from pit.model.params import Params, abstract, merge
from pit.model.pretrained import Pretrained, load_pretrained, save_pretrained
from pit.model.sharding import make_mesh, spec_of
from pit.model.tensor_files import WEIGHTS

GOLDEN = Path(__file__).parent / "golden"
ONE = MeshConfig()
SMALL = ModelConfig(width=4, layers=1, heads=2, kv_heads=1, head_dim=2, mlp=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a tokenizer, as this project writes it."""
    tokenizer = Tokenizer.train_bpe(["a red lamp"], 270)
    rng, shapes = np.random.default_rng(3), abstract(Decoder, SMALL, tokenizer.vocab_size)[1]
    params = {name: jnp.asarray(rng.normal(size=value.shape), jnp.float32) for name, value in shapes.items()}
    ids = {"eos_ids": [tokenizer.role_ids["output"]], "pad_id": tokenizer.role_ids["pad"]}
    path = tmp_path / "model"
    save_pretrained(path, SMALL, params, tokenizer.vocab_size, tokenizer=tokenizer.to_json(), **ids)
    return path


def edit(path: Path, **fields: Any) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | fields))


@pytest.mark.parametrize("name", ["untied", "tied"])
@pytest.mark.parametrize("mesh", [ONE, MeshConfig(fsdp=2), MeshConfig(tensor=2)], ids=["one", "fsdp", "tensor"])
def test_weights_lie_on_their_shards(name: str, mesh: MeshConfig) -> None:
    pretrained = Pretrained.open(GOLDEN / f"llama_{name}")
    model = pretrained.load(make_mesh(mesh))
    config, vocab_size, params = load_pretrained(GOLDEN / f"llama_{name}")
    assert (pretrained.config, pretrained.vocab_size) == (config, vocab_size)
    assert list(model.params) == list(abstract(Decoder, config, vocab_size)[1])
    for key, value in params.items():
        placed = model.params[key]
        assert placed.sharding.spec == spec_of(key)
        np.testing.assert_array_equal(np.asarray(placed), np.asarray(value))
        for shard in placed.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(value)[shard.index])


def test_no_device_is_given_a_whole_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(*_: object, **__: object) -> None:
        raise AssertionError("a whole array was put on a device")

    monkeypatch.setattr(jax, "device_put", whole)
    monkeypatch.setattr(jnp, "asarray", whole)
    model = Pretrained.open(GOLDEN / "llama_tied").load(make_mesh(MeshConfig(fsdp=2)))
    q = model.params["layers.0.attention.q"]
    assert {shard.data.shape for shard in q.addressable_shards} == {(q.shape[0] // 2, *q.shape[1:])}


def test_bfloat16_is_the_rounded_float32() -> None:
    pretrained = Pretrained.open(GOLDEN / "llama_tied")
    mesh = make_mesh(ONE)
    exact, half = pretrained.load(mesh).params, pretrained.load(mesh, "bfloat16").params
    for name, value in exact.items():
        assert half[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(half[name]), np.asarray(value.astype(jnp.bfloat16)))


def test_a_loaded_model_runs_in_either_dtype() -> None:
    pretrained, tokens = Pretrained.open(GOLDEN / "llama_tied"), jnp.arange(4, dtype=jnp.int32)[None]
    logits = []
    for dtype in ("float32", "bfloat16"):
        model = pretrained.load(make_mesh(ONE), dtype)

        @twins.jit
        def run(params: Params, graphdef: Any = model.graphdef) -> jax.Array:
            module = merge(graphdef, params)
            return module.logits(module(tokens, tokens, jnp.full_like(tokens, 4)))

        logits.append(run(model.params))
    np.testing.assert_allclose(np.asarray(logits[1]), np.asarray(logits[0]), atol=0.5)


def test_fields_without_weights_may_change() -> None:
    pretrained, mesh = Pretrained.open(GOLDEN / "llama_tied"), make_mesh(ONE)
    values = {name: getattr(pretrained.config, name) for name in pretrained.config.__dataclass_fields__}
    model = pretrained.load(mesh, config=ModelConfig(**values | {"compute_dtype": "bfloat16", "remat": "full"}))
    assert model.merge().config.compute_dtype == "bfloat16"
    with pytest.raises(ModelFileError, match="has other weights; change only fields without weights"):
        pretrained.load(mesh, config=ModelConfig(**values | {"layers": 1}))


def test_a_mesh_that_does_not_divide_the_weights_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"mesh.tensor = 2: must divide dimension 1 of layers.0.attention.k"):
        Pretrained.open(folder).load(make_mesh(MeshConfig(tensor=2)))


def test_a_reward_model_is_no_base() -> None:
    with pytest.raises(ModelFileError, match=r"LlamaForSequenceClassification.*a run starts from a language model"):
        Pretrained.open(GOLDEN / "llama_reward")


def test_damage_after_opening_is_refused(tmp_path: Path) -> None:
    path = Path(shutil.copytree(GOLDEN / "llama_tied", tmp_path / "m"))
    pretrained = Pretrained.open(path)
    tensors = load_file(path / WEIGHTS)
    tensors.pop("model.norm.weight")
    save_file(tensors, path / WEIGHTS)
    with pytest.raises(ModelFileError, match=r"tensor 'model.norm.weight' is missing"):
        pretrained.load(make_mesh(ONE))


def test_token_facts_of_a_folder(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    pretrained = Pretrained.open(folder)
    assert pretrained.special_tokens == {"eos_token": "<|output|>", "pad_token": "<|pad|>"}
    assert pretrained.eos_ids == (tokenizer.role_ids["output"],)
    assert pretrained.bos_id is None
    assert pretrained.chat_template is None
    assert Tokenizer.from_json(pretrained.tokenizer().decode()).hash == tokenizer.hash


def test_token_facts_are_written_as_they_are_read(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    config, rows, params = load_pretrained(folder)
    ids = {"eos_ids": [5, 3], "bos_id": tokenizer.role_ids["user"], "pad_id": tokenizer.role_ids["pad"]}
    text = {"tokenizer": tokenizer.to_json(), "chat_template": "{{ bos_token }}"}
    save_pretrained(tmp_path / "again", config, params, rows, **text, **ids)
    again = Pretrained.open(tmp_path / "again")
    assert (again.chat_template, again.eos_ids, again.bos_id) == ("{{ bos_token }}", (5, 3), ids["bos_id"])
    assert again.special_tokens["bos_token"] == "<|user|>"
    with pytest.raises(ModelFileError, match=f"bos_id = {rows}: must be within the vocabulary of {rows} rows"):
        save_pretrained(tmp_path / "no", config, params, rows, bos_id=rows)


def test_the_newest_place_of_each_fact_wins(folder: Path) -> None:
    roles = Tokenizer.load(folder / "tokenizer.json").role_ids
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text())))
    edit(folder / "special_tokens_map.json", bos_token="<|user|>", eos_token="<|input|>")
    assert Pretrained.open(folder).special_tokens["eos_token"] == "<|output|>"
    assert Pretrained.open(folder).bos_id == roles["user"]
    edit(folder / "tokenizer_config.json", bos_token={"content": "<|system|>", "lstrip": False}, chat_template="one")
    edit(folder / "generation_config.json", eos_token_id=[5, 3, 5])
    pretrained = Pretrained.open(folder)
    assert (pretrained.bos_id, pretrained.eos_ids, pretrained.chat_template) == (roles["system"], (5, 3), "one")
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "rag", "template": "no"}, {"name": "default"}])
    with pytest.raises(ModelFileError, match=r"chat_template = \['default', 'rag'\]: must be a text"):
        Pretrained.open(folder)
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": "two"}])
    assert Pretrained.open(folder).chat_template == "two"
    (folder / "chat_template.jinja").write_text("three")
    assert Pretrained.open(folder).chat_template == "three"


def test_the_tokenizer_names_the_end_where_no_config_does(folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=None)
    roles = Tokenizer.load(folder / "tokenizer.json").role_ids
    assert Pretrained.open(folder).eos_ids == (roles["output"],)


BAD_FACTS: list[tuple[str, dict[str, Any], str]] = [
    ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id = 'x': must be a token id"),
    ("generation_config.json", {"eos_token_id": [1, -1]}, r"eos_token_id = \[1, -1\]: must be a token id"),
    ("generation_config.json", {"eos_token_id": 10_000}, "token id = 10000: must be within the vocabulary of"),
    ("tokenizer_config.json", {"bos_token": 3}, "bos_token = 3: must be a text"),
    ("tokenizer_config.json", {"chat_template": {}}, "chat_template = {}: must be a text"),
]


@pytest.mark.parametrize(("file", "fields", "words"), BAD_FACTS, ids=[words[:30] for _, _, words in BAD_FACTS])
def test_facts_of_another_type_are_refused(folder: Path, file: str, fields: dict[str, Any], words: str) -> None:
    edit(folder / file, **fields)
    with pytest.raises(ModelFileError, match=words):
        Pretrained.open(folder)


def test_a_folder_without_a_tokenizer_is_refused_when_it_is_asked_for() -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer.json: no such file; save the tokenizer again"):
        Pretrained.open(GOLDEN / "llama_tied").tokenizer()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


CHANGES: list[tuple[str, Callable[[Path], object], bool]] = [
    ("another place", lambda f: None, False),
    ("another file", lambda f: (f / "README.md").write_text("x"), False),
    ("a weight", lambda f: flip(f / WEIGHTS), True),
    ("config", lambda f: edit(f / "config.json", note=1), True),
    ("tokenizer", lambda f: (f / "tokenizer.json").write_text((f / "tokenizer.json").read_text() + "\n"), True),
    ("template", lambda f: (f / "chat_template.jinja").write_text("x"), True),
    ("ends", lambda f: edit(f / "generation_config.json", eos_token_id=1), True),
]


@pytest.mark.parametrize(("change", "differs"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_the_digest_is_that_of_the_bytes_that_are_read(
    folder: Path, tmp_path: Path, change: Callable[[Path], object], differs: bool
) -> None:
    before = Pretrained.open(folder).digest
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    change(other)
    assert (Pretrained.open(other).digest != before) is differs


def test_the_digest_covers_every_piece(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pit.model import pretrained

    monkeypatch.setattr(pretrained, "_PIECE", 1000)
    before, size = Pretrained.open(folder).digest, (folder / WEIGHTS).stat().st_size
    for place in (size - 1, size - 1001, size - 2002):
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[place] ^= 1
        (folder / WEIGHTS).write_bytes(bytes(content))
        after = Pretrained.open(folder).digest
        assert after != before
        before = after
