"""Tokens a second: the rollout engine beside transformers' generate and tunix's sampler, on the same weights.

    pip install torch transformers google-tunix    # the peers, each optional: one that is absent is named, left out
    python bench/rollout.py --model smollm2-135m   # random weights of that shape, as safetensors that all of them read

The work is that of a step of RL: N samples after each of G prefixes of 200 + 100 tokens on average, ragged to 128
tokens because a 64th of the vocabulary ends a sample. Every contender has the same number of slots (rows of its batch),
takes turns in one process, and draws at temperature 1 from the whole vocabulary; what counts is tokens of samples a
second. Beside it: how many tokens each has to put through the layers for one that counts (prefixes read once or N
times, rows that wait for the longest of their batch), that as a ratio to ours, and the share that the clock shows.
"""

import argparse
import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from _measure import alternate, merge_rows, origin, spread
from pit.config import ModelConfig, RolloutConfig
from pit.model.decoder import Decoder
from pit.model.pretrained import load_pretrained
from pit.model.params import build
from pit.rollout.sample import sample
from pit.rollout.strategy import Temperature

MODELS = {
    "smollm2-135m": (
        ModelConfig(width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp=1536, rope_theta=100_000.0),
        49_152,
    ),
    "small": (ModelConfig(width=256, layers=6, heads=4, kv_heads=2, head_dim=64, mlp=768), 8_192),
}
"""Shape and vocabulary by name."""

ENDING = 64
"""One token in so many of the vocabulary ends a sample."""

LONGEST = 128
"""Most tokens of a sample."""


@dataclass(frozen=True)
class Work:
    """Prefixes, samples of each, slots, and the ids that end a sample."""

    prefixes: list[list[int]]
    samples: int
    slots: int
    eos_ids: tuple[int, ...]

    @classmethod
    def draw(cls, vocabulary: int, prefixes: int, samples: int, slots: int, seed: int) -> "Work":
        """Prefixes of an input of 100 to 300 tokens and a reference of 50 to 150."""
        rng = np.random.default_rng(seed)
        ends = tuple(range(vocabulary // ENDING))
        lengths = rng.integers(100, 301, prefixes) + rng.integers(50, 151, prefixes)
        return cls([rng.integers(len(ends), vocabulary, n).tolist() for n in lengths], samples, slots, ends)

    @property
    def batches(self) -> list[list[list[int]]]:
        """Prefixes whose samples fill the slots once, for samplers that go batch by batch."""
        each = max(self.slots // self.samples, 1)
        return [self.prefixes[i : i + each] for i in range(0, len(self.prefixes), each)]


@dataclass
class Drawn:
    """What a call did: tokens of samples that it drew, and tokens that went through the layers for them."""

    tokens: int
    fed: int


Sampler = Callable[[int], Drawn]
"""Draws all of the work, given a seed."""


def ours(folder: Path, work: Work) -> Sampler:
    """The rollout engine."""
    config, vocabulary, params = load_pretrained(folder)
    graphdef = build(Decoder, config, vocabulary, 0)[0]

    def draw(seed: int) -> Drawn:
        drawn = sample(
            graphdef,
            params,
            work.prefixes,
            range(len(work.prefixes)),
            n=work.samples,
            capacity=LONGEST,
            strategy=Temperature(1.0),
            eos_ids=work.eos_ids,
            seed=seed,
            config=RolloutConfig(slots=work.slots),
        )
        tokens = int(drawn.length.sum())
        return Drawn(tokens, round(tokens / drawn.fill) + sum(map(len, work.prefixes)))

    return draw


def transformers_generate(folder: Path, work: Work) -> Sampler:
    """`generate` of transformers: left-padded batches, every prefix once a sample, until the longest sample ends."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pad = work.eos_ids[0]

    def draw(seed: int) -> Drawn:
        torch.manual_seed(seed)
        tokens = fed = 0
        for batch in work.batches:
            width = max(map(len, batch))
            ids = torch.tensor([[pad] * (width - len(prefix)) + prefix for prefix in batch])
            mask = torch.tensor([[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in batch])
            out = model.generate(
                ids,
                attention_mask=mask,
                num_return_sequences=work.samples,
                max_new_tokens=LONGEST,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=list(work.eos_ids),
                pad_token_id=pad,
            )[:, width:]
            tokens += count_tokens(out.numpy(), work.eos_ids)
            fed += out.shape[0] * (width + out.shape[1] - 1)
        return Drawn(tokens, fed)

    return draw


def count_tokens(rows: np.ndarray, eos_ids: Sequence[int]) -> int:
    """Tokens of samples up to the first that ends each, it included."""
    ends = np.isin(rows, eos_ids)
    first = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, rows.shape[1])
    return int(first.sum())


class _Ids:
    """A tokenizer of texts that are token ids already."""

    def __init__(self, eos: int, pad: int) -> None:
        self._eos, self._pad = eos, pad

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # None, to tunix.

    def eos_id(self) -> int:
        return self._eos

    def pad_id(self) -> int:
        return self._pad


def tunix_sampler(folder: Path, work: Work) -> Sampler:
    """Tunix's sampler: left-padded batches, every prefix once a sample, until the longest sample ends."""
    models, params, sampler = (
        importlib.import_module(f"tunix.{name}")
        for name in ("models.llama3.model", "models.llama3.params", "generate.sampler")
    )
    config, vocabulary, _ = load_pretrained(folder)
    shape = models.ModelConfig(
        num_layers=config.layers,
        vocab_size=vocabulary,
        embed_dim=config.width,
        hidden_dim=config.mlp,
        num_heads=config.heads,
        head_dim=config.head_dim,
        num_kv_heads=config.kv_heads,
        rope_theta=int(config.rope_theta),
        norm_eps=config.norm_eps,
        weight_tying=config.tied,
    )
    width = max(map(len, work.prefixes))
    draws = sampler.Sampler(
        params.create_model_from_safe_tensors(str(folder), shape, dtype=np.float32),
        _Ids(work.eos_ids[1], work.eos_ids[0]),
        sampler.CacheConfig(width + LONGEST, config.layers, config.kv_heads, config.head_dim),
    )

    def draw(seed: int) -> Drawn:
        tokens = fed = 0
        for number, batch in enumerate(work.batches):
            out = draws(
                [" ".join(map(str, prefix)) for prefix in batch for _ in range(work.samples)],
                max_generation_steps=LONGEST,
                max_prompt_length=width,
                eos_tokens=work.eos_ids,
                temperature=1.0,
                top_p=1.0,
                seed=1_000 * seed + number,
            )
            # What it returns ends before the token that ended the sample.
            lengths = [min(len(row) + 1, LONGEST) for row in out.tokens]
            tokens += sum(lengths)
            fed += len(lengths) * (width + max(lengths))
        return Drawn(tokens, fed)

    return draw


PEERS: Mapping[str, tuple[str, Callable[[Path, Work], Sampler]]] = {
    "transformers": ("transformers", transformers_generate),
    "tunix": ("tunix", tunix_sampler),
}
"""Module to look for, and the contender, by name."""


def measure(name: str, work: Work, rounds: int, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Every contender on the same weights and work, in turns."""
    config, vocabulary = MODELS[name]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_pretrained(path, config, build(Decoder, config, vocabulary, seed)[1], vocabulary, max_positions=1024)
        samplers = {"pit": ours(path, work)}
        for peer, (module, make) in PEERS.items():
            if importlib.util.find_spec(module) is None:
                tell(f"left out: {peer}: {module} is not installed")
                continue
            samplers[peer] = make(path, work)
        drawn: dict[str, list[Drawn]] = {each: [] for each in samplers}

        def call(each: str) -> Callable[[], object]:
            return lambda: drawn[each].append(samplers[each](seed + len(drawn[each])))

        seconds = alternate({each: call(each) for each in samplers}, rounds)
    rate = {e: np.array([d.tokens for d in drawn[e][1:]]) / seconds[e] for e in samplers}
    fed = {e: sum(d.fed for d in drawn[e][1:]) / sum(d.tokens for d in drawn[e][1:]) for e in samplers}
    row: dict[str, Any] = {
        "what": f"{len(work.prefixes)} prefixes, {work.samples} samples each, {work.slots} slots, {name}",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "contenders": {
            e: {"tokens_per_s": spread(rate[e]), "fed_tokens_per_token": round(fed[e], 3)} for e in samplers
        },
        "ratios": {
            e: {
                "tokens_per_s": spread(rate["pit"] / rate[e]),
                "fed_tokens": round(fed[e] / fed["pit"], 3),
                "attained": round(float(np.median(rate["pit"] / rate[e])) / (fed[e] / fed["pit"]), 3),
            }
            for e in samplers
            if e != "pit"
        },
    }
    return row


def main() -> None:
    """Measures a model and keeps the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), action="append", default=[], help="repeatable [all]")
    parser.add_argument("--prefixes", type=int, default=8)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rollout.json")
    chosen = parser.parse_args()
    for name in chosen.model or list(MODELS):
        work = Work.draw(MODELS[name][1], chosen.prefixes, chosen.samples, chosen.slots, chosen.seed)
        row = {**measure(name, work, chosen.rounds, chosen.seed, print), **origin(chosen.seed, chosen.rounds)}
        merge_rows(chosen.out, {name: row})
        print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
