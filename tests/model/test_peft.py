"""Adapters as PEFT's files: written and read without loss, and what transformers and PEFT compute from them."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from safetensors.numpy import load_file, save_file
from test_adapters import moved

from pit.config import AdapterConfig
from pit.model.adapters import merged
from pit.model.decoder import Decoder
from pit.model.errors import ModelFileError
from pit.model.heads import RewardModel
from pit.model.params import merge
from pit.model.peft import CONFIG, WEIGHTS, load_adapter, save_adapter
from pit.model.pretrained import save_pretrained

SHAPE = dataclasses.replace(twins.LLAMA, layers=1, head_dim=4, tied=True)
ADAPTER = AdapterConfig(rank=3, alpha=6.0, dropout=0.25, targets=r".*\.(q|k|v|o|gate|up|down)_proj")
KINDS = {Decoder: "CAUSAL_LM", RewardModel: "SEQ_CLS"}


def weights(kind, adapter=ADAPTER):
    return moved(kind, SHAPE, adapter).trained


def saved(folder, kind, adapter=ADAPTER):
    save_adapter(folder, SHAPE, adapter, weights(kind, adapter), base="some/base")
    return folder


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_read_is_what_was_written_byte_for_byte(kind, tmp_path):
    read = load_adapter(saved(tmp_path / "one", kind), SHAPE)
    assert (read.config, read.base) == (ADAPTER, "some/base")
    assert read.params.keys() == weights(kind).keys()
    for name, value in weights(kind).items():
        np.testing.assert_array_equal(read.params[name], value, err_msg=name)
    save_adapter(tmp_path / "two", SHAPE, read.config, read.params, base=read.base)
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_the_scale_of_rank_stabilised_adapters_is_written_and_read(tmp_path):
    adapter = dataclasses.replace(ADAPTER, rank_stabilised=True)
    read = load_adapter(saved(tmp_path / "one", Decoder, adapter), SHAPE).config
    assert (read, read.scale) == (adapter, adapter.scale)
    assert read.scale != ADAPTER.scale


def test_names_shapes_and_fields_are_those_of_peft(tmp_path):
    fields = json.loads((saved(tmp_path / "one", RewardModel) / CONFIG).read_text())
    named = ("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "bias")
    assert {name: fields[name] for name in named} == {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "r": 3,
        "lora_alpha": 6,
        "lora_dropout": 0.25,
        "target_modules": ADAPTER.targets,
        "modules_to_save": ["classifier", "score"],
        "bias": "none",
    }
    shapes = {name: value.shape for name, value in load_file(tmp_path / "one" / WEIGHTS).items()}
    layer = "base_model.model.model.layers.0"
    # Torch keeps [out, in]: heads 4 x 4, KV heads 2 x 4, width 16, MLP 24.
    expected = {
        "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (8, 16),
        "self_attn.v_proj": (8, 16),
        "self_attn.o_proj": (16, 16),
        "mlp.gate_proj": (24, 16),
        "mlp.up_proj": (24, 16),
        "mlp.down_proj": (16, 24),
    }
    assert shapes == {
        **{f"{layer}.{name}.lora_A.weight": (3, inputs) for name, (_, inputs) in expected.items()},
        **{f"{layer}.{name}.lora_B.weight": (outputs, 3) for name, (outputs, _) in expected.items()},
        "base_model.model.score.weight": (1, 16),
    }


def test_a_b_of_the_file_is_what_is_merged(tmp_path):
    """The product of the tensors, in torch's axes, is what the adapter adds to the weight in torch's axes."""
    tensors = load_file(saved(tmp_path / "one", Decoder) / WEIGHTS)
    model = moved(Decoder, SHAPE, ADAPTER)
    added = merged(model.params, ADAPTER)
    for name, module, turn in (
        ("attention.q", "self_attn.q_proj", lambda w: w.reshape(16, 16).T),
        ("attention.k", "self_attn.k_proj", lambda w: w.reshape(16, 8).T),
        ("attention.o", "self_attn.o_proj", lambda w: w.reshape(16, 16).T),
        ("mlp.down", "mlp.down_proj", lambda w: w.T),
    ):
        a, b = (tensors[f"base_model.model.model.layers.0.{module}.lora_{part}.weight"] for part in "AB")
        difference = np.asarray(added[f"layers.0.{name}"]) - np.asarray(model.params[f"layers.0.{name}"])
        np.testing.assert_allclose(turn(difference), 2.0 * b @ a, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (["q_proj", "v_proj"], 2),
        (["layers.0.mlp.up_proj"], 1),
        ("all-linear", 7),
        (r".*\.o_proj", 1),
    ],
)
def test_targets_are_read_as_peft_reads_them(targets, count, tmp_path):
    full = load_file(saved(tmp_path / "one", Decoder) / WEIGHTS)
    modules = {name.rsplit(".lora_", 1)[0] for name in full}

    def chosen(module):
        short = module.removeprefix("base_model.model.")
        if targets == "all-linear":
            return True
        if isinstance(targets, str):
            return re.fullmatch(targets, short) is not None
        return any(short == name or short.endswith(f".{name}") for name in targets)

    kept = {module for module in modules if chosen(module)}
    assert len(kept) == count
    save_file({name: v for name, v in full.items() if name.rsplit(".lora_", 1)[0] in kept}, tmp_path / "one" / WEIGHTS)
    edit(tmp_path / "one", target_modules=targets)
    assert len(load_adapter(tmp_path / "one", SHAPE).params) == 2 * count


def edit(folder, **fields):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def retensor(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
REFUSED = {
    "another kind": (lambda f: edit(f, peft_type="IA3"), f"{CONFIG}: peft_type = 'IA3': only 'LORA' is supported"),
    "DoRA": (lambda f: edit(f, use_dora=True), "use_dora = True: only False is supported"),
    "a base that changed": (
        lambda f: edit(f, init_lora_weights="pissa_niter_4"),
        "init_lora_weights = 'pissa_niter_4': its training changed the base too, and the files add to that base alone",
    ),
    "another base, as PEFT spells it too": (
        lambda f: edit(f, init_lora_weights="OLoRA"),
        "init_lora_weights = 'OLoRA': its training",
    ),
    "adapters from a token on": (
        lambda f: edit(f, alora_invocation_tokens=[5, 6]),
        "alora_invocation_tokens = [5, 6]: only None is supported",
    ),
    "repeated layers": (
        lambda f: edit(f, layer_replication=[[0, 1], [0, 1]]),
        "layer_replication = [[0, 1], [0, 1]]: only None",
    ),
    "ranks by name": (lambda f: edit(f, rank_pattern={"q_proj": 4}), "rank_pattern = {'q_proj': 4}: only {}"),
    "a whole embedding": (
        lambda f: edit(f, modules_to_save=["embed_tokens"]),
        "modules_to_save = ['embed_tokens']: beside adapters only [] can be trained whole; choose an adapter without",
    ),
    "another task": (lambda f: edit(f, task_type="SEQ_2_SEQ_LM"), "task_type = 'SEQ_2_SEQ_LM': must be one of CAUSAL"),
    "no targets": (lambda f: edit(f, target_modules=None), "target_modules = None: must be a regular expression or a"),
    "other targets": (
        lambda f: edit(f, target_modules=["c_attn"]),
        "adapter.targets = '(.*\\\\.)?(c_attn)': must match",
    ),
    "a bad rank": (lambda f: edit(f, r=0), "r = 0: must be a positive integer; correct it"),
    "another rank": (lambda f: edit(f, r=4), f"shape of '{Q}' = (3, 16): the config and the decoder make it (4, 16)"),
    "a bad dropout": (lambda f: edit(f, lora_dropout=1.5), "dropout = 1.5: must be in [0, 1)"),
    "a tensor is missing": (lambda f: retensor(f, lambda t: t.pop(Q)), f"tensor '{Q}' is missing: the targets of its"),
    "a tensor too many": (
        lambda f: retensor(f, lambda t: t.update(extra=np.zeros(1, np.float32))),
        "tensor = 'extra': no target of its config has this name; choose an adapter of projections alone",
    ),
    "integers": (
        lambda f: retensor(f, lambda t: t.update({Q: np.zeros((3, 16), np.int32)})),
        f"dtype of '{Q}' = 'int32': must be one of float32, bfloat16, float16; convert the adapter",
    ),
    "no tensors": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}: no such file; name a folder as PEFT's"),
    "no config": (lambda f: (f / CONFIG).unlink(), f"{CONFIG}: no such file"),
    "damage": (lambda f: (f / WEIGHTS).write_bytes(b"0123"), f"{WEIGHTS}: is damaged, or not a safetensors file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_are_refused(case, tmp_path):
    change, message = REFUSED[case]
    change(saved(tmp_path / "one", Decoder))
    with pytest.raises(ModelFileError) as raised:
        load_adapter(tmp_path / "one", SHAPE)
    assert message in str(raised.value)
    assert str(tmp_path / "one") in str(raised.value)


def test_weights_of_another_adapter_are_not_written(tmp_path):
    trained = weights(Decoder)
    name = "layers.0.attention.adapters.q.a"
    for changed, message in (
        ({n: v for n, v in trained.items() if n != name}, f"params: '{name}' is missing: its adapter has it; pass the"),
        (
            {**trained, name: jnp.zeros((16, 4))},
            f"params: shape of '{name}' = (16, 4): its config and adapter make it ",
        ),
        ({**trained, "embedding": jnp.zeros(1)}, "params: name = 'embedding': its adapter has none of this name; pass"),
    ):
        with pytest.raises(ModelFileError, match=f"^{re.escape(message)}"):
            save_adapter(tmp_path / "one", SHAPE, ADAPTER, changed)
        assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "lora_ga"])
def test_initial_weights_that_leave_the_base_alone_are_no_matter(start, tmp_path):
    edit(saved(tmp_path / "one", Decoder), init_lora_weights=start)
    assert load_adapter(tmp_path / "one", SHAPE).config == ADAPTER


def test_half_precision_is_read_as_float32(tmp_path):
    folder = saved(tmp_path / "one", Decoder)
    retensor(folder, lambda t: t.update({name: v.astype(np.float16) for name, v in t.items()}))
    for name, value in load_adapter(folder, SHAPE).params.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, weights(Decoder)[name], rtol=1e-3, atol=1e-4)


needs_peft = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers", "peft"))), reason="needs torch, transformers, peft"
)


@pytest.mark.slow
@needs_peft
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_peft_computes_the_same_from_a_saved_adapter_and_saves_what_is_read(kind, tmp_path: Path) -> None:
    import peft
    import torch
    import transformers

    model = moved(kind, SHAPE, ADAPTER)
    config = dataclasses.replace(SHAPE, tied=kind is Decoder)
    save_pretrained(tmp_path / "base", config, model.frozen | score(model), twins.VOCAB, eos_ids=[3], pad_id=0)
    save_adapter(tmp_path / "adapter", SHAPE, ADAPTER, model.trained, base=str(tmp_path / "base"))
    auto = "AutoModelForCausalLM" if kind is Decoder else "AutoModelForSequenceClassification"
    base = getattr(transformers, auto).from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()

    tokens = np.array([[4, 5, 1, 7, 9, 2, 11, 3], [8, 6, 1, 13, 2, 15, 16, 3]], np.int32)
    position = np.broadcast_to(np.arange(8, dtype=np.int32), tokens.shape)
    until, leaf = np.full_like(tokens, 8), np.array([[[0, 7]], [[1, 7]]], np.int32)

    inputs = [jnp.asarray(rows) for rows in (tokens, position, until, leaf)]

    def run(params):
        module = merge(model.graphdef, params)
        if kind is RewardModel:
            return module(*inputs)
        return module.logits(module(*inputs[:3]))

    with torch.no_grad():
        expected = theirs(torch.asarray(tokens.astype(np.int64))).logits.numpy()
    ours = np.asarray(twins.jit(run)(model.params))
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)

    theirs.save_pretrained(tmp_path / "saved")
    read = load_adapter(tmp_path / "saved", SHAPE)
    assert dataclasses.replace(read.config, targets=ADAPTER.targets) == ADAPTER
    for name, value in model.trained.items():
        np.testing.assert_array_equal(read.params[name], value, err_msg=name)


def score(model):
    """The head, which a saved base must hold, with other values: the adapter's replaces it."""
    return {name: jnp.zeros_like(value) for name, value in model.trained.items() if name == "score"}
