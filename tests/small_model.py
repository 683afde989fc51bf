"""A pretrained chat model in the smallest size, and preferences for it, as files."""

import json
import sys
from pathlib import Path

from pit.config import ModelConfig
from pit.model.decoder import Decoder
from pit.model.params import build
from pit.model.pretrained import save_pretrained

sys.path.append(str(Path(__file__).parent / "data"))
import chat_cases as cases

SHAPE = ModelConfig(width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp=32)
"""Shape of the model."""


def write_model(folder: Path, name: str = "chatml", *, template: bool = True) -> Path:
    """Write a Llama with random weights, and the tokenizer and chat template of one of `chat_cases`."""
    tokenizer, format = cases.tokenizer(name), cases.chat_format(name)
    params = build(Decoder, SHAPE, tokenizer.vocab_size, seed=1)[1]
    text = tokenizer.to_json()
    save_pretrained(folder, SHAPE, params, tokenizer.vocab_size, tokenizer=text, eos_ids=format.eos_ids)
    if template:
        (folder / "chat_template.jinja").write_text(format.source)
    return folder


def write_preferences(path: Path, rows: int = 240) -> Path:
    """Write preferences of conversations with one or three turns, in the columns of TRL."""
    lines = []
    for i in range(rows):
        turns = [{"role": "user", "content": f"describe lamp {i}, please"}]
        if i % 3 == 0:
            said = {"role": "assistant", "content": "which one?"}
            turns = [*turns, said, {"role": "user", "content": f"the red one, number {i % 7}"}]
        chosen, rejected = (
            [{"role": "assistant", "content": text}]
            for text in (f"it is small and cheap, {i % 5}", f"a b c {i % 11} four"[: 6 + i % 9])
        )
        lines.append(json.dumps({"prompt": turns, "chosen": chosen, "rejected": rejected}))
    path.write_text("\n".join(lines) + "\n")
    return path
