"""The contents of a model folder: family, decoder, embedding rows, and kind; read from config.json and checked.

Reading (`pit.model.pretrained`) and writing (`pit.model.saving`) share it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pit.config import ModelConfig
from pit.model.config_json import ConfigJson
from pit.model.errors import ModelFileError, refusal
from pit.model.families import FAMILIES
from pit.model.family import Family
from pit.model.layout import Weight
from pit.model.tensor_files import Tensor

_READABLE = ("F32", "BF16", "F16")
# Old conversions store the rotary frequencies, which follow from rope_theta.
_DERIVED = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class Shape:
    """Family, decoder, rows of the embedding, and kind of a model.

    reward: the model scores an answer at its last token that is not padding; it counts as tied, for want of an output
        table.
    """

    family: Family
    config: ModelConfig
    vocab_size: int
    reward: bool

    @property
    def architecture(self) -> str:
        """Name in config.json's `architectures`."""
        return self.family.architecture(reward=self.reward)

    @property
    def weights(self) -> list[Weight]:
        """All parameters of the model, under their names in memory and in the files."""
        return self.family.weights(self.config, self.vocab_size, reward=self.reward)


def read_shape(file: ConfigJson) -> Shape:
    """Return the shape that a config.json describes.

    Raises:
        ModelFileError: no family has the architecture, or the decoder does not compute all parts of it.
    """
    named = file.values.get("architectures")
    known = {family.architecture(reward=kind): (family, kind) for kind in (False, True) for family in FAMILIES}
    if not isinstance(named, list) or len(named) != 1 or named[0] not in known:
        rule = f"must be a list of one of {', '.join(known)}"
        remedy = "choose such a checkpoint, or add the family as docs/guides/add-a-model-family.md describes"
        raise file.refusal("architectures", named, rule, remedy)
    family, reward = known[named[0]]
    file.require(quantization_config=None)
    config = family.config(file)
    config = dataclasses.replace(config, tied=config.tied or reward)
    return Shape(family, config, file.integer("vocab_size"), reward)


def check_tensors(folder: Path, tensors: Mapping[str, Tensor], shape: Shape) -> None:
    """Check the headers of the tensors against the config.

    Raises:
        ModelFileError: a tensor is missing, superfluous, or of another shape or dtype.
    """
    kind = f"a {shape.architecture} of this config.json"
    weights = shape.weights
    for weight in weights:
        tensor = tensors.get(weight.file_name)
        if tensor is None:
            tie = "set tie_word_embeddings to true if it is the embedding"
            remedy = tie if weight.name == "output" else "fetch the folder again"
            raise ModelFileError(f"{folder}: tensor {weight.file_name!r} is missing: {kind} has it; {remedy}")
        if tensor.shape != weight.file_shape:
            name, rule = f"{tensor.path}: shape of {weight.file_name!r}", f"{kind} has {weight.file_shape}"
            raise refusal(name, tensor.shape, rule, "put the right config.json there")
        if tensor.dtype not in _READABLE:
            rule = f"must be one of {', '.join(_READABLE)}"
            raise refusal(f"{tensor.path}: dtype of {weight.file_name!r}", tensor.dtype, rule, "convert the checkpoint")
    extra = {name for name in tensors if not name.endswith(_DERIVED)} - {weight.file_name for weight in weights}
    table, embedding = shape.family.tensors.get("output"), shape.family.tensors["embedding"]
    if not shape.reward and shape.config.tied and table in extra:
        # Some tied checkpoints store the table twice.
        extra.remove(table)
        if not np.array_equal(tensors[table].read(), tensors[embedding].read()):
            rule = f"config.json ties it to {embedding}, from which it differs"
            raise refusal(f"{folder}: tensor", table, rule, "set tie_word_embeddings to false")
    if extra:
        remedy = "choose a checkpoint without it; the decoder would not compute what it is for"
        raise refusal(f"{folder}: tensor", min(extra), f"{kind} has none of this name", remedy)
