"""Pairs per second of a reward model's step on a pretrained model: R_P and R_PIT, and TRL's RewardTrainer.

    python bench/reward_step.py                                               # ours on the recipe tiny, a few pairs
    pip install torch trl peft                                                # the peer; without it, ours alone
    python bench/reward_step.py --full --model SmolLM2-135M-Instruct.Q4_1.gguf --data HH_FOLDER

One optimizer step on the same pairs from the same weights, with LoRA of rank 16 on every projection. R_P reads a pair
as one tree x -> {y_w, y_l}, R_PIT its four orders as one tree; trees are packed into rows. TRL reads two padded
sequences per pair, in batches of pairs sorted by length. Before the rounds, TRL's batch and dtype are chosen by one
trial of each; ours take microbatches of the recipe smollm2, in bfloat16 and in float32. Contenders alternate in one
process. `seen_tokens` go through the layers, padding included.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import jax

from _measure import alternate, keep, origin, results_file, size_options, spread
from _pretrained import prepared, tiny, written
from pit.data.local import pack_local
from pit.data.template import quality
from pit.model.pretrained import Pretrained
from pit.model.sharding import row_sharding
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.stages import reward
from pit.train.feed import to_device
from pit.train.update import LossFunction, Update, make_optimizer

MODELS = {"R_P": (reward.QUALITY, reward.quality_loss), "R_PIT": (reward.GAP, reward.gap_loss)}
"""Stages of ours with their losses."""

Dtype = Literal["bfloat16", "float32"]

OUR_DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")
"""Arithmetic of ours; bfloat16 is the recipe's."""

BATCHES = (2, 4, 8)
"""Pairs of a batch that TRL is tried with."""

DTYPES = ("float32", "bfloat16 under autocast", "bfloat16 base")
"""Arithmetic that TRL is tried with: float32, its own default, and a base in bfloat16 as well."""

Pairs = list[tuple[list[int], list[int], list[int]]]
"""Tokens of x, y_w and y_l."""


@dataclass(frozen=True)
class Contender:
    """A call that makes one optimizer step on all pairs, and the tokens that go through the layers in it."""

    step: Callable[[], object]
    seen: int


def ours(run: Run, stage: Stage, make_loss: Callable[[Any], LossFunction], pairs: Pairs) -> Contender:
    """Return the step of a reward model of the run, in microbatches of its own packing."""
    settings = stage.settings(run.config)
    columns = [list(column) for column in zip(*pairs, strict=True)]
    layout = run.layout(settings.packing)
    packed = pack_local(columns, stage.topology(run.config), layout, run.shards)
    batches = [to_device(batch, row_sharding(run.mesh)) for batch in packed]
    model = stage.fresh(run)
    update = Update(make_loss(model.graphdef), make_optimizer(settings.optimizer, 1000), model.frozen)
    states = [update.start(model.trained)]

    def step() -> None:
        states[0], metrics = update(states[0], batches)
        jax.block_until_ready((states[0], metrics))

    return Contender(step, len(batches) * layout.rows * layout.row_length)


def sequences(run: Run, pairs: Pairs) -> list[dict[str, list[int]]]:
    """Return the rows that TRL's trainer takes: the two paths of each pair, sorted by length for batches."""
    closings = run.template.closings.of(quality())

    def path(x: list[int], y: list[int]) -> list[int]:
        return [*x, *closings[0], *y, *closings[1]]

    rows = [{"chosen_ids": path(x, better), "rejected_ids": path(x, worse)} for x, better, worse in pairs]
    return sorted(rows, key=lambda row: max(map(len, row.values())))


def trl_trainer(folder: Path, rows: list[dict[str, list[int]]], batch: int, dtype: str) -> Contender:
    """Return the step of TRL's RewardTrainer, its batches accumulated into one step."""
    torch, transformers, peft, datasets, trl = map(
        importlib.import_module, ("torch", "transformers", "peft", "datasets", "trl")
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.bfloat16 if dtype == DTYPES[2] else torch.float32
    )
    settings = trl.RewardConfig(
        output_dir=str(folder.parent / "trl"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=len(rows) // batch,
        max_steps=1,
        max_length=None,
        learning_rate=1e-4,
        gradient_checkpointing=False,
        bf16=dtype != DTYPES[0],
        use_cpu=True,
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = trl.RewardTrainer(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        peft_config=peft.LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules="all-linear"),
    )

    def step() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()

    widths = [max(len(ids) for row in rows[i : i + batch] for ids in row.values()) for i in range(0, len(rows), batch)]
    return Contender(step, 2 * batch * sum(widths))


def best_trl(
    folder: Path, rows: list[dict[str, list[int]]], dtypes: Sequence[str]
) -> tuple[Contender, dict[str, float]]:
    """Return TRL's fastest contender, and the seconds of one step of each that was tried."""
    tried: dict[tuple[int, str], float] = {}
    for dtype in dtypes:
        for batch in (size for size in BATCHES if size <= len(rows)):
            contender = trl_trainer(folder, rows, batch, dtype)
            begin = time.perf_counter()
            contender.step()
            tried[batch, dtype] = time.perf_counter() - begin
            print(f"TRL, batches of {batch}, {dtype}: {tried[batch, dtype]:.1f} s", flush=True)
    best = min(tried, key=tried.__getitem__)
    named = {f"batches of {batch}, {dtype}": round(seconds, 2) for (batch, dtype), seconds in tried.items()}
    return trl_trainer(folder, rows, *best), named


def in_dtype(run: Run, dtype: Dtype) -> Run:
    """Return the run in one dtype throughout."""
    shape, base = replace(run.config.policy, compute_dtype=dtype), replace(run.config.base, dtype=dtype)
    return Run(run.folder, replace(run.config, policy=shape, reward_model=shape, base=base))


def measure(model: Pretrained | None, data: str, count: int, rounds: int, dtypes: Sequence[str]) -> dict[str, Any]:
    """Return the figures of all contenders on the first pairs of the reward fold; `dtypes` are tried with TRL."""
    with TemporaryDirectory() as name:
        place = Path(name) / "run"
        run = tiny(place) if model is None else prepared(model, data, place)
        fold = run.fold("reward")
        rows = ([part.tolist() for part in fold.row(i)] for i in range(count))
        pairs = [(x, better, worse) for x, better, worse in rows]
        contenders = {
            f"{name} in {dtype}": ours(in_dtype(run, dtype), stage, loss, pairs)
            for dtype in OUR_DTYPES
            for name, (stage, loss) in MODELS.items()
        }
        tried: dict[str, float] = {}
        if model is None or any(importlib.util.find_spec(module) is None for module in ("torch", "trl", "peft")):
            print("left out: TRL: needs --model, and torch, trl and peft", file=sys.stderr)
        else:
            contenders["TRL"], tried = best_trl(written(run, Path(name) / "model"), sequences(run, pairs), dtypes)
        seconds = alternate({name: contender.step for name, contender in contenders.items()}, rounds)
    named = "recipe tiny" if model is None else f"LoRA of rank 16, {model.path.name}"
    return {
        "what": f"one optimizer step on {count} pairs, {named}",
        "trl_tried_s": tried,
        "contenders": {
            name: {
                "seconds": spread(seconds[name]),
                "pairs_per_s": spread(count / seconds[name]),
                "seen_tokens": contender.seen,
                "seen_tokens_per_s": spread(contender.seen / seconds[name]),
            }
            for name, contender in contenders.items()
        },
        "seconds_over_ours": {
            name: spread(seconds["TRL"] / seconds[name]) for name in contenders if "TRL" in seconds and name != "TRL"
        },
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of transformers, or GGUF file; needs --data")
    parser.add_argument("--data", help="preferences")
    parser.add_argument("--pairs", type=int, help="pairs of a step, a multiple of 16 [16; with --full 32]")
    parser.add_argument("--rounds", type=int, help="timed rounds [1; with --full 3]")
    dtypes = "arithmetic that TRL is tried with [all; without AMX a step in bfloat16 takes it minutes]"
    parser.add_argument("--trl-dtypes", nargs="+", choices=DTYPES, default=DTYPES, help=dtypes)
    size_options(parser, "reward_step")
    options = parser.parse_args()
    if (options.model is None) != (options.data is None) or (options.full and options.model is None):
        parser.error("--model and --data go together, and --full needs them")
    count, rounds = options.pairs or (32 if options.full else 16), options.rounds or (3 if options.full else 1)
    model = None if options.model is None else Pretrained.open(options.model)
    row = measure(model, options.data, count, rounds, options.trl_dtypes) | origin(0, rounds)
    rates = {name: figures["pairs_per_s"]["median"] for name, figures in row["contenders"].items()}
    summary = ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()) + " pairs per second"
    keep(results_file(options, "reward_step"), {"tiny" if model is None else model.path.stem: row}, summary)


if __name__ == "__main__":
    main()
