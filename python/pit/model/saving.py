"""Models written as the folders of config.json and safetensors that transformers reads.

Everything here holds for all families; what differs between them is in `pit.model.families`.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import tokenizers

from pit.atomic import new_folder
from pit.config import ModelConfig
from pit.model.errors import ModelFileError, refusal
from pit.model.families import FAMILIES
from pit.model.layout import Weight
from pit.model.params import Params
from pit.model.shape import Shape
from pit.model.tensor_files import write_tensors
from pit.model.token_facts import SETTINGS, TEMPLATE, TOKENIZER

FileDtype = Literal["float32", "bfloat16", "float16"]
"""Dtype of the weights in a file."""

SHARD_BYTES = 5 * 10**9
"""Size above which weights are split over several files, as transformers splits them."""


def save_pretrained(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    vocab_size: int,
    *,
    tokenizer: str | None = None,
    chat_template: str | None = None,
    special_tokens: Mapping[str, str] = MappingProxyType({}),
    eos_ids: Sequence[int] = (),
    bos_id: int | None = None,
    pad_id: int | None = None,
    dtype: FileDtype = "float32",
    max_positions: int = 4096,
    shard_bytes: int = SHARD_BYTES,
    fields: Mapping[str, Any] = MappingProxyType({}),
    files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a folder that transformers loads; it appears whole or not at all. Each option is a field of the folder.

    A reward model (its parameters hold `score`) loses its output table if it has one, which no score depends on.

    Args:
        folder: must be missing or empty.
        config: shape of the decoder.
        params: parameters of a Decoder or a RewardModel, as `pit.model.params.split` names them.
        vocab_size: rows of the embedding.
        tokenizer: text of a tokenizer.json to put next to the weights (`pit.data.tokenizer.Tokenizer.to_json`).
        chat_template: jinja text that renders a conversation, for chat_template.jinja.
        special_tokens: texts of special tokens by their names in tokenizer_config.json, such as "eos_token"; the others
            are those of the ids below.
        eos_ids: tokens that end an answer.
        bos_id: token that opens a text.
        pad_id: token of padding; a reward model needs one, outside `eos_ids`.
        dtype: of the weights in the file.
        max_positions: longest input in tokens that other programs should accept; the weights do not depend on it.
        shard_bytes: size of the weights above which they are split over several files.
        fields: further fields of config.json, which transformers keeps and does not use.
        files: further text files by name.

    Raises:
        ModelFileError: the folder is not empty, no family can express the config, the parameters are not those of the
            config, a token id or the tokenizer does not fit, or a weight is too large for the dtype.

    Example:
        >>> import tempfile
        >>> from pit.model.decoder import Decoder
        >>> from pit.model.params import build
        >>> from pit.model.pretrained import load_pretrained
        >>> config = ModelConfig(width=4, layers=1, heads=2, kv_heads=1, head_dim=2, mlp=3)
        >>> folder = Path(tempfile.mkdtemp()) / "tiny"
        >>> save_pretrained(folder, config, build(Decoder, config, 7, seed=0)[1], 7, eos_ids=[1], pad_id=2)
        >>> load_pretrained(folder)[:2] == (config, 7)
        True
    """
    shape, family_fields = written_shape(config, vocab_size, reward="score" in params)
    values = _common_fields(shape, dtype=dtype, max_positions=max_positions)
    values |= _token_fields(shape, eos_ids=eos_ids, bos_id=bos_id, pad_id=pad_id) | family_fields | dict(fields)
    _check_params(params, shape)
    code = {name: path.read_text(encoding="utf-8") for name, path in shape.family.files.items()}
    texts = {**files, **code, "config.json": _json(values)}
    texts |= {} if chat_template is None else {TEMPLATE: chat_template}
    if tokenizer is not None:
        texts |= {TOKENIZER: tokenizer, SETTINGS: _tokenizer_config(tokenizer, values, special_tokens)}
    with new_folder(Path(folder)) as temporary:
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        size = jnp.dtype(dtype).itemsize
        write_tensors(
            temporary,
            {weight.file_name: math.prod(weight.shape) * size for weight in shape.weights},
            {weight.file_name: functools.partial(_tensor, weight, params, dtype) for weight in shape.weights},
            shard_bytes,
        )


def _tensor(weight: Weight, params: Params, dtype: FileDtype) -> np.ndarray:
    """Return what a file holds of a parameter.

    Raises:
        ModelFileError: a number of it would become infinite.
    """
    value = np.asarray(params[weight.name])
    with np.errstate(over="ignore"):
        tensor = weight.to_file(value, dtype)
    if np.isinf(tensor).sum() > np.isinf(value).sum():
        finite = value[np.isfinite(value)].astype(np.float32)
        rule, remedy = f"would be infinite in {dtype}", "write the model in bfloat16 or float32"
        raise refusal(f"params: a number of {weight.name!r}", float(np.abs(finite).max()), rule, remedy)
    return tensor


def written_shape(config: ModelConfig, vocab_size: int, *, reward: bool) -> tuple[Shape, dict[str, Any]]:
    """Return the shape in the first family that can express it, and the fields of its config.json.

    Args:
        config: shape of the decoder.
        vocab_size: rows of the embedding.
        reward: whether the model is a reward model.

    Raises:
        ModelFileError: no family can.
    """
    refusals = []
    for family in FAMILIES:
        try:
            return Shape(family, config, vocab_size, reward), family.fields(config, reward=reward)
        except ModelFileError as error:
            refusals.append(str(error))
    raise ModelFileError(f"no family can express the model: {'; '.join(refusals)}")


def _common_fields(shape: Shape, *, dtype: str, max_positions: int) -> dict[str, Any]:
    """Return the fields of config.json that all families share, as plain values that transformers 4 and 5 both read."""
    if max_positions < 1:
        raise refusal("max_positions", max_positions, "must be positive", "give the longest input in tokens")
    fields = {
        "architectures": [shape.architecture],
        "model_type": shape.family.model_type,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": max_positions,
        "torch_dtype": dtype,
    }
    return fields | ({"id2label": {"0": "score"}, "label2id": {"score": 0}} if shape.reward else {})


def _token_fields(shape: Shape, *, eos_ids: Sequence[int], bos_id: int | None, pad_id: int | None) -> dict[str, Any]:
    """Return the fields of config.json that name tokens."""
    optional = {name: token for name, token in (("bos_id", bos_id), ("pad_id", pad_id)) if token is not None}
    for name, token in ({f"eos_ids[{i}]": token for i, token in enumerate(eos_ids)} | optional).items():
        if not 0 <= token < shape.vocab_size:
            raise refusal(name, token, f"must be within the vocabulary of {shape.vocab_size} rows", "correct it")
    if shape.reward and (pad_id is None or pad_id in eos_ids):
        rule = f"{shape.architecture} scores the last token that is not padding, so it needs one that ends no answer"
        raise refusal("pad_id", pad_id, rule, f"give an id outside eos_ids = {list(eos_ids)}")
    # Written even where absent: the configs of transformers have other defaults.
    return {
        "bos_token_id": bos_id,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids) or None,
        "pad_token_id": pad_id,
    }


def _check_params(params: Params, shape: Shape) -> None:
    """Raise if the parameters differ from those of the config."""
    remedy = "pass the config and the parameters of one model"
    for weight in shape.weights:
        if weight.name not in params:
            raise ModelFileError(f"params: {weight.name!r} is missing: its config has it; {remedy}")
        if params[weight.name].shape != weight.shape:
            rule = f"its config and vocab_size = {shape.vocab_size} make it {weight.shape}"
            raise refusal(f"params: shape of {weight.name!r}", params[weight.name].shape, rule, remedy)
    unused = {"decoder.output"} if shape.reward and not shape.config.tied else set()
    extra = set(params) - {weight.name for weight in shape.weights} - unused
    if extra:
        raise refusal("params: name", min(extra), "its config has none of this name", remedy)


def _tokenizer_config(tokenizer: str, fields: Mapping[str, Any], special_tokens: Mapping[str, str]) -> str:
    """Return a tokenizer_config.json in which the special tokens are those of config.json, unless they are named."""
    inner = _parsed(tokenizer, fields["vocab_size"])
    eos, pad = fields["eos_token_id"], fields["pad_token_id"]
    first = eos[0] if isinstance(eos, list) else eos
    tokens = {"bos_token": fields["bos_token_id"], "eos_token": first, "pad_token": pad}
    ids = {name: token for name, token in tokens.items() if token is not None}
    texts = {name: text for name, token in ids.items() if (text := inner.id_to_token(token)) is not None}
    longest = fields["max_position_embeddings"]
    return tokenizer_settings(tokenizer, fields["vocab_size"], longest, texts | dict(special_tokens))


def tokenizer_settings(tokenizer: str, vocab_size: int, max_positions: int, special_tokens: Mapping[str, str]) -> str:
    """Return a tokenizer_config.json that makes transformers take tokenizer.json as it is, not rebuild a Llama's.

    Args:
        tokenizer: text of the tokenizer.json.
        vocab_size: rows of the embedding.
        max_positions: longest input in tokens.
        special_tokens: texts of special tokens by their names, such as "eos_token".

    Raises:
        ModelFileError: the text is something else, or has more tokens than the embedding rows.
    """
    _parsed(tokenizer, vocab_size)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings["model_max_length"] = max_positions
    pre_tokenizer = json.loads(tokenizer).get("pre_tokenizer") or {}
    if "add_prefix_space" in pre_tokenizer:
        # transformers 4 would turn it off in the tokenizer itself.
        settings["add_prefix_space"] = pre_tokenizer["add_prefix_space"]
    return _json(settings | dict(special_tokens))


def _parsed(tokenizer: str, vocab_size: int) -> tokenizers.Tokenizer:
    try:
        inner = tokenizers.Tokenizer.from_buffer(tokenizer.encode())
    except ValueError as error:
        raise ModelFileError(
            f"tokenizer: not the text of a tokenizer.json ({error}); pass Tokenizer.to_json()"
        ) from error
    rows = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if rows > vocab_size:
        rule = f"must fit into the embedding of {vocab_size} rows"
        raise refusal("tokenizer: largest id + 1", rows, rule, "pass the tokenizer that the model was trained with")
    return inner


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
