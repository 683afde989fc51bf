"""Write the golden Llamas: tiny random checkpoints by transformers, and the logits and scores that it computes.

    python tests/model/golden/make_llama.py

needs torch and transformers (last run with 2.13.0 and 5.23.0) and nothing of pit. Together the checkpoints cover
grouped queries, a head size other than width / heads, a separate and a tied output table, one file and shards, float32
and bfloat16.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel

HERE = Path(__file__).parent
VOCAB, PAD = 48, 47
LENGTHS = (11, 7)


def tiny(**changes: object) -> LlamaConfig:
    """Return a config whose sizes all differ, and whose rotary base and epsilon are far from the defaults."""
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 28,
        "rms_norm_eps": 1e-2,
        "rope_theta": 50.0,
        "initializer_range": 0.4,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": 1,
        "max_position_embeddings": 64,
    }
    return LlamaConfig(**(fields | changes))


def randomise_gains(model: PreTrainedModel) -> PreTrainedModel:
    """Give the norms values other than 1, with which they start."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.uniform_(0.5, 1.5)
    return model.eval()


def main() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, PAD, (len(LENGTHS), max(LENGTHS)))
    mask = torch.arange(max(LENGTHS))[None, :] < torch.tensor(LENGTHS)[:, None]
    ids = torch.where(mask, ids, PAD)
    models = {
        "untied": randomise_gains(LlamaForCausalLM(tiny(tie_word_embeddings=False))).to(torch.bfloat16),
        "tied": randomise_gains(LlamaForCausalLM(tiny(tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh"))),
        "reward": randomise_gains(LlamaForSequenceClassification(tiny(num_labels=1))),
    }
    golden = {"ids": ids.int().numpy(), "length": np.array(LENGTHS, np.int32)}
    for name, model in models.items():
        folder = HERE / f"llama_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, max_shard_size="12KB" if name == "untied" else "1GB")
        # Read it back in float32: a module turned to bfloat16 and back keeps rounded rotary frequencies.
        model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            golden[name] = model(ids, attention_mask=mask).logits.numpy()
    np.savez_compressed(HERE / "tiny_llama.npz", **golden)


if __name__ == "__main__":
    main()
