"""Tokens per second: the rollout engine, transformers' generate and tunix's sampler, on the same weights.

    python bench/rollout.py                                # the small model, a few samples
    pip install torch transformers google-tunix            # the peers; a missing one is named and left out
    python bench/rollout.py --full --model smollm2-135m    # random weights of that shape, as safetensors
    python bench/rollout.py --full --file SmolLM2-135M-Instruct.Q4_1.gguf --data PREFERENCES    # real ones

The work is that of an RL step: N samples after each of G prefixes. With random weights a prefix has 200 + 100 tokens on
average, and a 64th of the vocabulary ends a sample; with real ones prefixes are prompts with a reference, and EOS ends.
Every contender draws at temperature 1 from the whole vocabulary, at most 128 tokens. With several `--slots` (rows of a
batch) or `--dtype`, each is tried once by each contender, which then runs at its best; contenders alternate in one
process. The figure is tokens of samples per second. Results also have the tokens that each contender puts through the
layers per sampled token (prefixes read once or N times, rows that wait for the longest of their batch), as a ratio to
ours, and the part of that ratio that the clock shows.
"""

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from _measure import alternate, keep, origin, results_file, size_options, spread
from _pretrained import prepared, written
from pit.config import ModelConfig, RolloutConfig
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.model.params import abstract, build
from pit.model.pretrained import Pretrained, load_pretrained, save_pretrained
from pit.rollout.sample import sample
from pit.rollout.strategy import Temperature
from pit.run.folder import Run

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

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
"""Arithmetic of weights and activations."""


@dataclass(frozen=True)
class Work:
    """Prefixes, samples per prefix, and the ids that end a sample."""

    prefixes: list[list[int]]
    samples: int
    eos_ids: tuple[int, ...]

    @classmethod
    def draw(cls, vocabulary: int, prefixes: int, samples: int, seed: int) -> "Work":
        """Return work with prefixes of an input of 100 to 300 tokens and a reference of 50 to 150."""
        rng = np.random.default_rng(seed)
        ends = tuple(range(vocabulary // ENDING))
        lengths = rng.integers(100, 301, prefixes) + rng.integers(50, 151, prefixes)
        return cls([rng.integers(len(ends), vocabulary, n).tolist() for n in lengths], samples, ends)

    @classmethod
    def real(cls, run: Run, prefixes: int, samples: int) -> "Work":
        """Return work with prompts of a run and the better answer as reference."""
        fold, closings = run.fold("rl"), run.template.closings
        rows = ([part.tolist() for part in fold.row(i)] for i in range(prefixes))
        taken = [[*x, *closings.input, *better, *closings.reference] for x, better, _ in rows]
        return cls(taken, samples, run.template.eos_ids)

    def batches(self, slots: int) -> list[list[list[int]]]:
        """Return prefixes in batches whose samples fill the slots once, for samplers that work batch by batch."""
        size = max(slots // self.samples, 1)
        return [self.prefixes[i : i + size] for i in range(0, len(self.prefixes), size)]


@dataclass
class Count:
    """Tokens of a call: those of its samples, and those that went through the layers for them."""

    tokens: int
    fed: int


Sampler = Callable[[int], Count]
"""Call that draws all samples of the work, given a seed."""


class Setting(NamedTuple):
    """A choice of a contender: samples that decode at a time, and arithmetic."""

    slots: int
    dtype: Dtype


def ours(folder: Path, work: Work, setting: Setting) -> Sampler:
    """Return the rollout engine."""
    config, vocabulary, params = load_pretrained(folder)
    graphdef = abstract(Decoder, replace(config, compute_dtype=setting.dtype), vocabulary)[0]
    model = Model(graphdef, {name: value.astype(setting.dtype) for name, value in params.items()})

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
            config=RolloutConfig(slots=setting.slots),
        )
        tokens = int(drawn.length.sum())
        return Count(tokens, round(tokens / drawn.fill) + sum(map(len, work.prefixes)))

    return draw


def transformers_generate(folder: Path, work: Work, setting: Setting) -> Sampler:
    """Return transformers' `generate`: left-padded batches, a prefix per sample, until the longest sample ends."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, setting.dtype))
    pad = work.eos_ids[0]

    def draw(seed: int) -> Count:
        torch.manual_seed(seed)
        tokens = fed = 0
        for batch in work.batches(setting.slots):
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


def tunix_sampler(folder: Path, work: Work, setting: Setting) -> Sampler:
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
        params.create_model_from_safe_tensors(str(folder), shape, dtype=jnp.dtype(setting.dtype)),
        _Ids(work.eos_ids[1], work.eos_ids[0]),
        sampler.CacheConfig(width + LONGEST, config.layers, config.kv_heads, config.head_dim),
    )

    def draw(seed: int) -> Count:
        tokens = fed = 0
        for number, batch in enumerate(work.batches(setting.slots)):
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


PEERS: Mapping[str, tuple[str, Callable[[Path, Work, Setting], Sampler]]] = {
    "transformers": ("transformers", transformers_generate),
    "tunix": ("tunix", tunix_sampler),
}
"""Module to look for and contender, by name."""


def contender(name: str, make: Callable[[Setting], Sampler], settings: Sequence[Setting]) -> tuple[Setting, Sampler]:
    """Return a contender at its best setting; each of several is tried once, after a call that compiles."""
    rates: dict[Setting, float] = {}
    for setting in settings if len(settings) > 1 else ():
        draw = make(setting)
        draw(0)
        begin = time.perf_counter()
        rates[setting] = draw(1).tokens / (time.perf_counter() - begin)
        print(f"{name}, {setting.slots} slots, {setting.dtype}: {rates[setting]:,.0f} tokens per second", flush=True)
    best = max(rates, key=rates.__getitem__) if rates else settings[0]
    return best, make(best)


def measure(folder: Path, work: Work, settings: Sequence[Setting], rounds: int, seed: int) -> dict[str, Any]:
    """Return the figures of every contender on the same weights and work; contenders alternate."""
    makers: dict[str, Callable[[Path, Work, Setting], Sampler]] = {"pit": ours}
    for peer, (module, make) in PEERS.items():
        if importlib.util.find_spec(module) is None:
            print(f"left out: {peer}: {module} is not installed", file=sys.stderr)
        else:
            makers[peer] = make
    chosen = {name: contender(name, partial(make, folder, work), settings) for name, make in makers.items()}
    counts: dict[str, list[Count]] = {name: [] for name in chosen}

    def call(name: str) -> Callable[[], object]:
        return lambda: counts[name].append(chosen[name][1](seed + len(counts[name])))

    seconds = alternate({name: call(name) for name in chosen}, rounds)
    rate = {e: np.array([d.tokens for d in counts[e][1:]]) / seconds[e] for e in chosen}
    fed = {e: sum(d.fed for d in counts[e][1:]) / sum(d.tokens for d in counts[e][1:]) for e in chosen}
    return {
        "what": f"{len(work.prefixes)} prefixes, {work.samples} samples each",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "contenders": {
            e: {
                "slots": setting.slots,
                "dtype": setting.dtype,
                "tokens_per_s": spread(rate[e]),
                "fed_tokens_per_token": round(fed[e], 3),
            }
            for e, (setting, _) in chosen.items()
        },
        "ratios": {
            e: {
                "tokens_per_s": spread(rate["pit"] / rate[e]),
                "fed_tokens": round(fed[e] / fed["pit"], 3),
                "attained": round(float(np.median(rate["pit"] / rate[e])) / (fed[e] / fed["pit"]), 3),
            }
            for e in chosen
            if e != "pit"
        },
    }


def real_work(file: str, data: str, folder: Path, prefixes: int, samples: int) -> Work:
    """Write a pretrained model into a folder of transformers, and return work of some preferences."""
    with TemporaryDirectory() as place:
        run = prepared(Pretrained.open(file), data, Path(place))
        written(run, folder)
        return Work.real(run, prefixes, samples)


def random_work(name: str, folder: Path, prefixes: int, samples: int, seed: int) -> Work:
    """Write a model of random weights into a folder of transformers, and return work of random tokens."""
    config, vocabulary = MODELS[name]
    save_pretrained(folder, config, build(Decoder, config, vocabulary, seed)[1], vocabulary, max_positions=1024)
    return Work.draw(vocabulary, prefixes, samples, seed)


def main() -> None:
    """Measure and report tokens per second of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = "repeatable [small; with --full all]"
    parser.add_argument("--model", choices=list(MODELS), action="append", default=[], help=models)
    parser.add_argument("--file", help="pretrained model in the place of random weights; needs --data")
    parser.add_argument("--data", help="preferences whose prompts are the work of --file")
    parser.add_argument("--prefixes", type=int, help="[4; with --full 8]")
    parser.add_argument("--samples", type=int, help="samples per prefix [4; with --full 16]")
    rows = "samples that decode at a time, repeatable [8; with --full 32 and 128]"
    parser.add_argument("--slots", type=int, action="append", default=[], help=rows)
    arithmetic = "repeatable [float32; with --full both]"
    parser.add_argument("--dtype", choices=DTYPES, action="append", default=[], help=arithmetic)
    parser.add_argument("--rounds", type=int, help="timed rounds [1; with --full 3]")
    parser.add_argument("--seed", type=int, default=0)
    size_options(parser, "rollout")
    options = parser.parse_args()
    if (options.file is None) != (options.data is None):
        parser.error("--file and --data go together: prompts of the data are the work of the model")
    small, full = (4, 4, 1), (8, 16, 3)
    given = (options.prefixes, options.samples, options.rounds)
    defaults = full if options.full else small
    prefixes, samples, rounds = (value or default for value, default in zip(given, defaults, strict=True))
    slots_tried = options.slots or ([32, 128] if options.full else [8])
    dtypes_tried = options.dtype or (list(DTYPES) if options.full else ["float32"])
    settings = [Setting(slots, dtype) for dtype in dtypes_tried for slots in slots_tried]
    shapes = options.model or (list(MODELS) if options.full else ["small"])
    for name in [Path(options.file).stem] if options.file else shapes:
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            if options.file:
                work = real_work(options.file, options.data, folder, prefixes, samples)
            else:
                work = random_work(name, folder, prefixes, samples, options.seed)
            row = {**measure(folder, work, settings, rounds, options.seed), **origin(options.seed, rounds)}
        rates = {who: figures["tokens_per_s"]["median"] for who, figures in row["contenders"].items()}
        summary = f"{name}: {', '.join(f'{who} {rate:,.0f}' for who, rate in rates.items())} tokens per second"
        keep(results_file(options, "rollout"), {name: row}, summary)


if __name__ == "__main__":
    main()
