"""The tokenizer keeps every text, and no text forges a role token."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.errors import DataError
from pit.data.tokenizer import RoleTokens, Tokenizer

ROLES = list(dataclasses.astuple(RoleTokens()))
TEXTS = ["describe this red lamp: price and size.", "price cheap, size small. fondly"] * 10

# Text that spells role tokens, whole or broken, at any place.
texts = st.one_of(
    st.text(),
    st.lists(st.one_of(st.sampled_from([*ROLES, " ", "<|", "|>", "user"]), st.text(max_size=3))).map("".join),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe(TEXTS, 400)


@given(text=texts)
def test_every_text_comes_back_and_holds_no_role_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.role_ids.values())
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
    assert tokenizer.decode(ids) == text


@given(batch=st.lists(texts, max_size=5))
def test_a_batch_is_its_texts(tokenizer: Tokenizer, batch: list[str]) -> None:
    assert tokenizer.encode_batch(batch) == [tokenizer.encode(text) for text in batch]


def test_words_are_one_token_the_first_included(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("price cheap, size small. fondly")) == 7
    assert tokenizer.encode("price")[0] == tokenizer.encode("small price")[1]


def test_decoding_leaves_role_tokens_out(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.role_ids["user"], *tokenizer.encode("red lamp"), tokenizer.role_ids["output"]]
    assert tokenizer.decode(ids) == "red lamp"


def test_saved_pickled_and_retrained_tokenizers_are_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "deep" / "tokenizer.json")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["tokenizer.json"]
    text = "<|user|> red lamp <|output|>"
    for other in (
        Tokenizer.load(tmp_path / "deep" / "tokenizer.json"),
        pickle.loads(pickle.dumps(tokenizer)),
        Tokenizer.train_bpe(TEXTS, 400),
    ):
        assert other.hash == tokenizer.hash
        assert other.encode(text) == tokenizer.encode(text)
    assert Tokenizer.train_bpe(TEXTS, 300).hash != tokenizer.hash


def test_the_hash_knows_the_roles(tokenizer: Tokenizer) -> None:
    assert Tokenizer.from_json(tokenizer.to_json(), RoleTokens(pad="<|output|>")).hash != tokenizer.hash


def edited(tokenizer: Tokenizer, edit: str) -> str:
    """Return the JSON of the tokenizer with one change."""
    content = json.loads(tokenizer.to_json())
    if edit == "lacks":
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|user|>"]
        del content["model"]["vocab"]["<|user|>"]
    elif edit == "ordinary":
        for token in content["added_tokens"]:
            token["special"] = token["content"] != "<|user|>"
    elif edit == "forgeable":
        content["pre_tokenizer"] = None
        content["model"]["ignore_merges"] = True
    return json.dumps(content)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ("lacks", r"no token for \{'user': '<\|user\|>'\}"),
        ("ordinary", r"role tokens \{'user': '<\|user\|>'\} are not special tokens"),
        ("forgeable", r"turns the text '<\|system\|>' into a special token, so a user could forge one"),
    ],
)
def test_unfit_tokenizers_are_refused(tokenizer: Tokenizer, tmp_path: Path, edit: str, words: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(edited(tokenizer, edit))
    with pytest.raises(DataError, match=words) as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)


def test_roles_of_another_tokenizer_can_be_named(tokenizer: Tokenizer) -> None:
    renamed = tokenizer.to_json().replace("<|output|>", "<eos>").replace("<|pad|>", "<unused>")
    roles = RoleTokens(output="<eos>", pad="<eos>")
    other = Tokenizer.from_json(renamed, roles)
    assert other.role_ids["pad"] == other.role_ids["output"] == tokenizer.role_ids["output"]
    assert other.decode(other.encode("<eos>")) == "<eos>"
    with pytest.raises(DataError, match=r"role tokens .* must differ"):
        Tokenizer.from_json(renamed, RoleTokens(output="<eos>", pad="<|user|>"))
    with pytest.raises(DataError, match=r"role tokens .* must differ"):
        Tokenizer.from_json(renamed, RoleTokens(output="<eos>", pad="<eos>", reference="<|input|>"))


def test_bad_files_and_sizes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such tokenizer file"):
        Tokenizer.load(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad.json: not a tokenizer.json"):
        Tokenizer.load(tmp_path / "bad.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"binary.json"):
        Tokenizer.load(tmp_path / "binary.json")
    with pytest.raises(DataError, match="vocab_size=262 is below 263, the 256 bytes and 7 role tokens"):
        Tokenizer.train_bpe(["a"], 262)


# Tokenizers of pretrained models.


def pretrained(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer whose role tokens are its own special tokens, with one added token that is not special."""
    settings = json.loads(tokenizer.to_json())
    added = {**settings["added_tokens"][0], "id": tokenizer.vocab_size, "content": "<think>", "special": False}
    settings["added_tokens"].append(added)
    return Tokenizer.pretrained(json.dumps(settings))


def test_a_pretrained_tokenizer_needs_no_role_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = json.loads(tokenizer.to_json())
    settings["added_tokens"] = [{**settings["added_tokens"][0], "content": "<s>"}]
    settings["model"]["vocab"]["<s>"] = settings["model"]["vocab"].pop("<|system|>")
    text = json.dumps(settings)
    with pytest.raises(DataError, match="the tokenizer has no token for"):
        Tokenizer.from_json(text)
    other = Tokenizer.pretrained(text)
    assert (other.role_ids, other.roles, other.added) == ({}, None, {0: "<s>"})
    other.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json", pretrained=True)
    for again in (loaded, pickle.loads(pickle.dumps(other))):
        assert (again.hash, again.encode("<s> red")) == (other.hash, other.encode("<s> red"))
    with pytest.raises(DataError, match=r"not a tokenizer\.json of the tokenizers library"):
        Tokenizer.pretrained("{}")


@given(text=texts)
def test_special_tokens_are_parsed_in_a_formats_text_alone(tokenizer: Tokenizer, text: str) -> None:
    other = pretrained(tokenizer)
    marked = f"<|user|>{text}<think>"
    ids = other.encode_format(marked)
    assert ids[0] == tokenizer.role_ids["user"]
    assert ids[-1] == tokenizer.vocab_size
    assert not set(other.encode(marked)) & set(tokenizer.role_ids.values())


def test_a_guarded_token_is_text_where_text_spells_it(tokenizer: Tokenizer) -> None:
    other = pretrained(tokenizer)
    think = tokenizer.vocab_size
    assert think in other.encode("a <think> b")
    guarded = other.guarding({think, *tokenizer.role_ids.values()})
    ids = guarded.encode("a <think> <|user|> b")
    assert not {think, *tokenizer.role_ids.values()} & set(ids)
    assert other.decode(ids) == "a <think> <|user|> b"
    # What the format writes is parsed as before.
    assert guarded.encode_format("<think>") == [think]


def test_a_token_that_a_text_becomes_cannot_be_guarded(tokenizer: Tokenizer) -> None:
    settings = json.loads(tokenizer.to_json())
    letter = settings["model"]["vocab"]["z"]
    settings["added_tokens"].append({**settings["added_tokens"][0], "id": letter, "content": "z", "special": False})
    with pytest.raises(DataError, match="turns the text 'z' into a special token, so a user could forge one"):
        Tokenizer.pretrained(json.dumps(settings)).guarding({letter})
