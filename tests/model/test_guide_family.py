"""The guide to a new model family: its diff, applied to a copy of the sources, computes a Ministral as NumPy does."""

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import pit

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "add-a-model-family.md"
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCAB = 2, 12, 4, 2, 6, 10, 17
EPS, THETA, WINDOW = 1e-2, 50.0, 3
IDS = np.array([3, 16, 0, 7, 7, 11, 2], np.int32)

CONFIG = {
    "architectures": ["MinistralForCausalLM"],
    "model_type": "ministral",
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "intermediate_size": MLP,
    "rms_norm_eps": EPS,
    "rope_theta": THETA,
    "vocab_size": VOCAB,
}

# Asks the changed copy for the logits of the folder, for the same folder written again, and for a refusal.
SCRIPT = """
import dataclasses, importlib.machinery, sys
# An editable install finds `pit` through a hook; the copy, first on the path, must win.
sys.meta_path.insert(0, importlib.machinery.PathFinder)
root, folder, again = sys.argv[1:]
sys.path.insert(0, root)
import numpy as np
import pit
assert pit.__file__.startswith(root), pit.__file__
import jax
from flax import nnx
from pit.model.decoder import Decoder
from pit.model.errors import ModelFileError
from pit.model.params import merge
from pit.model.pretrained import load_pretrained, save_pretrained

config, vocab_size, params = load_pretrained(folder)
graphdef = nnx.split(nnx.eval_shape(lambda: Decoder(config, vocab_size, nnx.Rngs(0))), nnx.Param)[0]
ids = np.load(f"{root}/ids.npy")[None]
position = np.arange(ids.shape[1], dtype=np.int32)[None]

def logits(params, ids, position, visible_until):
    model = merge(graphdef, params)
    return model.logits(model(ids, position, visible_until))

logits = jax.jit(logits, compiler_options={"xla_backend_optimization_level": 0})
np.save(f"{root}/logits.npy", logits(params, ids, position, np.full_like(ids, ids.shape[1]))[0])
save_pretrained(again, config, params, vocab_size)
try:
    save_pretrained(f"{root}/none", dataclasses.replace(config, post_norm=True), params, vocab_size)
except ModelFileError as error:
    print(error)
"""


def ministral_tensors() -> dict[str, np.ndarray]:
    """A tiny Ministral by the names of transformers; linear weights are [out, in]."""
    shapes = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (WIDTH,),
            f"{prefix}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, WIDTH),
            f"{prefix}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, WIDTH),
            f"{prefix}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, WIDTH),
            f"{prefix}.self_attn.o_proj.weight": (WIDTH, HEADS * HEAD_DIM),
            f"{prefix}.post_attention_layernorm.weight": (WIDTH,),
            f"{prefix}.mlp.gate_proj.weight": (MLP, WIDTH),
            f"{prefix}.mlp.up_proj.weight": (MLP, WIDTH),
            f"{prefix}.mlp.down_proj.weight": (WIDTH, MLP),
        }
    rng = np.random.default_rng(0)
    return {name: rng.normal("norm" in name, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS) * weight


def rotate(x: np.ndarray) -> np.ndarray:
    """Rotary positions of [T, heads, HEAD_DIM]; the halves of a head are the two coordinates of each pair."""
    angle = np.arange(len(x))[:, None] * THETA ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    turns = np.exp(1j * angle)[:, None]
    pairs = (x[..., : HEAD_DIM // 2] + 1j * x[..., HEAD_DIM // 2 :]) * turns
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def ministral_logits(tensors: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Ministral in float64, one head after the other; the first layer sees a window."""
    weight = {name: value.astype(np.float64) for name, value in tensors.items()}
    embedding = weight["model.embed_tokens.weight"]
    x = embedding[ids]
    causal = np.tril(np.ones((len(ids), len(ids)), bool))
    for layer in range(LAYERS):
        seen = causal & ~np.tril(causal, -WINDOW) if layer == 0 else causal
        here = {n.split(".", 3)[3]: w for n, w in weight.items() if n.startswith(f"model.layers.{layer}.")}
        normed = norm(x, here["input_layernorm.weight"])
        q, k, v = ((normed @ here[f"self_attn.{name}_proj.weight"].T).reshape(len(ids), -1, HEAD_DIM) for name in "qkv")
        q, k, heads = rotate(q), rotate(k), []
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            scores = np.where(seen, q[:, head] @ k[:, shared].T / math.sqrt(HEAD_DIM), -np.inf)
            share = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(share / share.sum(axis=1, keepdims=True) @ v[:, shared])
        x = x + np.concatenate(heads, axis=1) @ here["self_attn.o_proj.weight"].T
        normed = norm(x, here["post_attention_layernorm.weight"])
        gate = normed @ here["mlp.gate_proj.weight"].T
        silu = gate / (1 + np.exp(-gate))
        x = x + (silu * (normed @ here["mlp.up_proj.weight"].T)) @ here["mlp.down_proj.weight"].T
    return norm(x, weight["model.norm.weight"]) @ embedding.T


def guide_diff() -> str:
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return diff


def copy_with_diff(root: Path) -> None:
    """Copy the package as it is installed, the compiled core included, and change it as the guide says."""
    package = root / "python" / "pit"
    shutil.copytree(Path(pit.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    core = importlib.util.find_spec("pit.data._core")
    assert core is not None
    assert core.origin is not None
    shutil.copy(core.origin, package / "data")
    applied = subprocess.run(["git", "apply", "-"], cwd=root, input=guide_diff(), capture_output=True, text=True)
    assert applied.returncode == 0, f"{GUIDE}: its diff does not apply: {applied.stderr}"


def test_the_diff_stays_short() -> None:
    assert len(guide_diff().splitlines()) <= 60


def test_the_diff_adds_a_family_that_computes_the_same(tmp_path: Path) -> None:
    copy_with_diff(tmp_path)
    folder, again, tensors = tmp_path / "ministral", tmp_path / "again", ministral_tensors()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "model.safetensors")
    root = tmp_path / "python"
    np.save(root / "ids.npy", IDS)
    asked = subprocess.run(
        [sys.executable, "-c", SCRIPT, root, folder, again], cwd=tmp_path, capture_output=True, text=True
    )
    assert asked.returncode == 0, asked.stderr

    expected = ministral_logits(tensors, IDS)
    assert expected.std() > 1
    np.testing.assert_allclose(np.load(root / "logits.npy"), expected, rtol=0, atol=1e-4)
    written = json.loads((again / "config.json").read_text())
    assert written | CONFIG == written, "every field comes back"
    for name, value in load_file(again / "model.safetensors").items():
        np.testing.assert_array_equal(value, tensors[name], name)
    for words in ("model.post_norm = True: Llama has only False", "model.post_norm = True: Ministral has only False"):
        assert words in asked.stdout
