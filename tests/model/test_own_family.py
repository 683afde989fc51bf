"""PIT's own decoders in files: learned positions and heads rotated in part come back the same; code goes along."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest

from pit.model.decoder import Decoder
from pit.model.errors import ModelFileError
from pit.model.heads import RewardModel
from pit.model.params import abstract
from pit.model.pretrained import load_pretrained, save_pretrained

CONFIG = dataclasses.replace(twins.LEARNED, matched_heads=0)


def weights(kind, config=CONFIG):
    rng = np.random.default_rng(0)
    shapes = abstract(kind, config, twins.VOCAB)[1]
    return {name: jnp.asarray(rng.normal(size=place.shape), jnp.float32) for name, place in shapes.items()}


@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("kind", [Decoder, RewardModel])
def test_a_model_comes_back_the_same(kind, fraction, tmp_path):
    config = dataclasses.replace(CONFIG, rotary_fraction=fraction)
    params = weights(kind, config)
    save_pretrained(tmp_path / "m", config, params, twins.VOCAB, eos_ids=[3], pad_id=0)
    read_config, vocab_size, read = load_pretrained(tmp_path / "m")
    assert (read_config, vocab_size) == (config, twins.VOCAB)
    assert read.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(read[name], value, err_msg=name)


def test_the_code_goes_along(tmp_path):
    params = weights(Decoder)
    save_pretrained(tmp_path / "m", CONFIG, params, twins.VOCAB)
    code = (tmp_path / "m" / "modeling_pit.py").read_text()
    auto = json.loads((tmp_path / "m" / "config.json").read_text())["auto_map"]
    assert auto.keys() == {"AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification"}
    for name in auto.values():
        module, _, kind = name.partition(".")
        assert module == "modeling_pit"
        assert f"class {kind}(" in code
    compile(code, "modeling_pit.py", "exec")


@pytest.mark.parametrize(("name", "value"), [("learned_positions", -1), ("rotary_fraction", "half")])
def test_other_fields_are_refused(name, value, tmp_path):
    save_pretrained(tmp_path / "m", CONFIG, weights(Decoder), twins.VOCAB)
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ModelFileError, match=f"{name} = {value!r}: must be a number that is not negative; correct it"):
        load_pretrained(tmp_path / "m")
