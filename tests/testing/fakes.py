"""Stand-ins for a tokenizer and a classifier of transformers: letters are tokens, and scores are sums of letters."""

import contextlib
from types import SimpleNamespace

import numpy as np

PAD, BOS, EOS = 0, 1, 2
VOCABULARY = 0x110000


class Tensor:
    """The methods of a torch tensor that the adapter uses."""

    def __init__(self, values):
        self.values = values

    def float(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.values.astype(np.float32)


class FakeTokenizer:
    """Letters as tokens, padded with `PAD` on one side.

    chat: whether it has a template, which writes BOS, a line for each message, and EOS.
    adds_bos: whether it writes BOS itself when special tokens are wanted.
    """

    pad_token_id, bos_token_id, eos_token_id, unk_token_id = PAD, BOS, EOS, None
    all_special_ids = (PAD, BOS, EOS)

    def __init__(self, padding_side="right", *, chat=False, adds_bos=False):
        self.padding_side, self.adds_bos = padding_side, adds_bos
        self.chat_template = "template" if chat else None

    def __call__(self, texts, *, padding, truncation, max_length, add_special_tokens, return_tensors):
        assert (padding, truncation, return_tensors) == (True, True, "pt")
        first = [BOS] if add_special_tokens and self.adds_bos else []
        rows = [[*first, *map(ord, text)][:max_length] for text in texts]
        width = max(map(len, rows))
        left = self.padding_side == "left"
        ids = [[PAD] * (width - len(r)) + r if left else r + [PAD] * (width - len(r)) for r in rows]
        return {"input_ids": np.array(ids), "attention_mask": (np.array(ids) > 0).astype(int)}

    def apply_chat_template(self, messages, *, tokenize, return_dict=False):
        lines = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        text = f"{chr(BOS)}{lines}{chr(EOS)}\n"
        return list(map(ord, text)) if tokenize else text


class FakeClassifier:
    """Sums the letters up to the last letter, or up to the index that is their count, less one.

    reads: "last_token" or "counted", as many decoders of transformers read.
    adapter: what its adapter adds to the sum; None without one.
    """

    def __init__(self, reads="last_token", *, dtype="torch.float32", adapter=None, rows=VOCABULARY, overflows=False):
        self.reads, self.dtype, self.adapter, self.overflows = reads, dtype, adapter, overflows
        self.config = SimpleNamespace(vocab_size=rows, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
        if adapter is not None:
            self.disable_adapter = self._disable_adapter

    @contextlib.contextmanager
    def _disable_adapter(self):
        kept, self.adapter = self.adapter, 0.0
        yield
        self.adapter = kept

    def float(self):
        self.dtype, self.overflows = "torch.float32", False
        return self

    def __call__(self, input_ids, attention_mask):
        width = input_ids.shape[1]
        # The rule of many decoders in transformers: the number of tokens that are not padding, less one.
        counted = np.sum(input_ids != PAD, axis=1) - 1
        last = width - 1 - np.argmax(attention_mask[:, ::-1], axis=1)
        place = {"counted": counted, "last_token": last}[self.reads]
        logits = np.array([row[: i + 1].sum() for row, i in zip(input_ids, place, strict=True)], float)[:, None] / 1000
        if self.adapter is not None:
            logits += self.adapter * np.sin(logits)
        if self.overflows:
            logits = np.minimum(logits, 1.0)
        return SimpleNamespace(logits=Tensor(logits))
