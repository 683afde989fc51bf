"""Tokens per second: the rollout engine, transformers' generate and tunix's sampler, on the same weights.

    python bench/rollout.py                                # the small model, a few samples
    pip install torch transformers google-tunix            # the peers; a missing one is named and left out
    python bench/rollout.py --full --model smollm2-135m    # random weights of that shape, as safetensors

The work is that of an RL step: N samples after each of G prefixes of 200 + 100 tokens on average, ragged to 128 tokens
because a 64th of the vocabulary ends a sample. Every contender has the same number of slots (rows of its batch), and
draws at temperature 1 from the whole vocabulary; contenders alternate in one process. The figure is tokens of samples
per second. Results also have the tokens that each contender puts through the layers per sampled token (prefixes read
once or N times, rows that wait for the longest of their batch), as a ratio to ours, and the part of that ratio that the
clock shows.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from _measure import alternate, keep, origin, results_file, size_options, spread
from pit.config import ModelConfig, RolloutConfig
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.model.params import build
from pit.model.pretrained import load_pretrained, save_pretrained
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
"""Share of the vocabulary that ends a sample: one token in so many."""

LONGEST = 128
"""Most tokens of a sample."""


@dataclass(frozen=True)
class Work:
    """Prefixes, samples per prefix, slots, and the ids that end a sample."""

    prefixes: list[list[int]]
    samples: int
    slots: int
    eos_ids: tuple[int, ...]

    @classmethod
    def draw(cls, vocabulary: int, prefixes: int, samples: int, slots: int, seed: int) -> "Work":
        """Return work with prefixes of an input of 100 to 300 tokens and a reference of 50 to 150."""
        rng = np.random.default_rng(seed)
        ends = tuple(range(vocabulary // ENDING))
        lengths = rng.integers(100, 301, prefixes) + rng.integers(50, 151, prefixes)
        return cls([rng.integers(len(ends), vocabulary, n).tolist() for n in lengths], samples, slots, ends)

    @property
    def batches(self) -> list[list[list[int]]]:
        """Prefixes in batches whose samples fill the slots once, for samplers that work batch by batch."""
        size = max(self.slots // self.samples, 1)
        return [self.prefixes[i : i + size] for i in range(0, len(self.prefixes), size)]


@dataclass
class Count:
    """Tokens of a call: those of its samples, and those that went through the layers for them."""

    tokens: int
    fed: int


Sampler = Callable[[int], Count]
"""Call that draws all samples of the work, given a seed."""


def ours(folder: Path, work: Work) -> Sampler:
    """Return the rollout engine."""
    config, vocabulary, params = load_pretrained(folder)
    model = Model(build(Decoder, config, vocabulary, 0)[0], params)

    def draw(seed: int) -> Count:
        drawn = sample(
            model,
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
        return Count(tokens, round(tokens / drawn.fill) + sum(map(len, work.prefixes)))

    return draw


def transformers_generate(folder: Path, work: Work) -> Sampler:
    """Return transformers' `generate`: left-padded batches, a prefix per sample, until the longest sample ends."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pad = work.eos_ids[0]

    def draw(seed: int) -> Count:
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
        return Count(tokens, fed)

    return draw


def count_tokens(rows: np.ndarray, eos_ids: Sequence[int]) -> int:
    """Return the tokens of samples up to the first end token, inclusive."""
    ends = np.isin(rows, eos_ids)
    first = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, rows.shape[1])
    return int(first.sum())


class _Ids:
    """Tokenizer of texts that are token ids already."""

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
    """Return tunix's sampler: left-padded batches, a prefix per sample, until the longest sample ends."""
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

    def draw(seed: int) -> Count:
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
            # Its rows end before the token that ended the sample.
            lengths = [min(len(row) + 1, LONGEST) for row in out.tokens]
            tokens += sum(lengths)
            fed += len(lengths) * (width + max(lengths))
        return Count(tokens, fed)

    return draw


PEERS: Mapping[str, tuple[str, Callable[[Path, Work], Sampler]]] = {
    "transformers": ("transformers", transformers_generate),
    "tunix": ("tunix", tunix_sampler),
}
"""Module to look for and contender, by name."""


def measure(model: str, work: Work, rounds: int, seed: int) -> dict[str, Any]:
    """Return the figures of every contender on the same weights and work; contenders alternate."""
    config, vocabulary = MODELS[model]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_pretrained(path, config, build(Decoder, config, vocabulary, seed)[1], vocabulary, max_positions=1024)
        samplers = {"pit": ours(path, work)}
        for peer, (module, make) in PEERS.items():
            if importlib.util.find_spec(module) is None:
                print(f"left out: {peer}: {module} is not installed", file=sys.stderr)
                continue
            samplers[peer] = make(path, work)
        counts: dict[str, list[Count]] = {name: [] for name in samplers}

        def call(name: str) -> Callable[[], object]:
            return lambda: counts[name].append(samplers[name](seed + len(counts[name])))

        seconds = alternate({name: call(name) for name in samplers}, rounds)
    rate = {e: np.array([d.tokens for d in counts[e][1:]]) / seconds[e] for e in samplers}
    fed = {e: sum(d.fed for d in counts[e][1:]) / sum(d.tokens for d in counts[e][1:]) for e in samplers}
    return {
        "what": f"{len(work.prefixes)} prefixes, {work.samples} samples each, {work.slots} slots, {model}",
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


def main() -> None:
    """Measure and report tokens per second of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = "repeatable [small; with --full all]"
    parser.add_argument("--model", choices=list(MODELS), action="append", default=[], help=models)
    parser.add_argument("--prefixes", type=int, help="[4; with --full 8]")
    parser.add_argument("--samples", type=int, help="samples per prefix [4; with --full 16]")
    parser.add_argument("--slots", type=int, help="samples that decode at a time [8; with --full 32]")
    parser.add_argument("--rounds", type=int, help="timed rounds [1; with --full 3]")
    parser.add_argument("--seed", type=int, default=0)
    size_options(parser, "rollout")
    options = parser.parse_args()
    small, full = (4, 4, 8, 1), (8, 16, 32, 3)
    given = (options.prefixes, options.samples, options.slots, options.rounds)
    defaults = full if options.full else small
    prefixes, samples, slots, rounds = (value or default for value, default in zip(given, defaults, strict=True))
    for name in options.model or (list(MODELS) if options.full else ["small"]):
        work = Work.draw(MODELS[name][1], prefixes, samples, slots, options.seed)
        row = {**measure(name, work, rounds, options.seed), **origin(options.seed, rounds)}
        rates = {who: figures["tokens_per_s"]["median"] for who, figures in row["contenders"].items()}
        summary = f"{name}: {', '.join(f'{who} {rate:,.0f}' for who, rate in rates.items())} tokens per second"
        keep(results_file(options, "rollout"), {name: row}, summary)


if __name__ == "__main__":
    main()
