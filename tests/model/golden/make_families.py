"""Write the golden models of every family: tiny random checkpoints by transformers, and the logits it computes.

    python tests/model/golden/make_families.py

needs torch and transformers (last run with 2.14.1 and 5.24.0) and nothing of pit. Windows are shorter than the rows,
positions are scaled within them, soft caps bend, and no norm or bias has the value that it starts with.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.gemma import GemmaConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

HERE = Path(__file__).parent / "families"
VOCAB, PAD = 24, 23
LENGTHS = (17, 9)
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 10,
    "rms_norm_eps": 1e-2,
    "initializer_range": 0.5,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": 1,
    "max_position_embeddings": 64,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
LINEAR = {"rope_type": "linear", "rope_theta": 70.0, "factor": 3.0}
PLAIN = {"rope_type": "default", "rope_theta": 60.0}
CONFIGS: Mapping[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama3": (LlamaConfig, {"rope_parameters": LLAMA_3, "tie_word_embeddings": True}),
    "mistral": (MistralConfig, {"rope_parameters": LINEAR, "sliding_window": 5}),
    "qwen2": (
        # Qwen 2 takes its head size from the width.
        Qwen2Config,
        {"rope_parameters": PLAIN, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
        | {"hidden_size": 24},
    ),
    "qwen3": (Qwen3Config, {"rope_parameters": PLAIN, "tie_word_embeddings": True}),
    "gemma": (GemmaConfig, {"rope_parameters": PLAIN}),
    "gemma2": (
        Gemma2Config,
        {"rope_parameters": PLAIN, "sliding_window": 4, "query_pre_attn_scalar": 9}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        Gemma3TextConfig,
        {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": PLAIN}, "sliding_window": 3}
        | {"query_pre_attn_scalar": 9, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
}


def randomise(model: PreTrainedModel) -> PreTrainedModel:
    """Give norms and biases values other than those they start with, and round all to bfloat16."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value += torch.empty_like(value).uniform_(-0.5, 0.5)
            elif "bias" in name:
                value.normal_(0, 0.5)
    return model.to(torch.bfloat16)


def main() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, PAD, (len(LENGTHS), max(LENGTHS)))
    mask = torch.arange(max(LENGTHS))[None, :] < torch.tensor(LENGTHS)[:, None]
    ids = torch.where(mask, ids, PAD)
    golden = {"ids": ids.int().numpy(), "length": np.array(LENGTHS, np.int32)}
    shutil.rmtree(HERE, ignore_errors=True)
    for name, (kind, fields) in CONFIGS.items():
        model = AutoModelForCausalLM.from_config(kind(**(SIZES | fields)))
        randomise(model).save_pretrained(HERE / name)
        (HERE / name / "generation_config.json").unlink(missing_ok=True)
        # sdpa would leave out the soft caps; and read back in float32, as rotary frequencies were rounded.
        model = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            golden[name] = model.eval()(ids, attention_mask=mask).logits.numpy()
    np.savez_compressed(HERE / "logits.npz", **golden)


if __name__ == "__main__":
    main()
