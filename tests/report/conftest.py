"""A synthetic run with everything that a report can show."""

import json
import math
import random
from pathlib import Path

import pytest

from pit.evaluate.schema import Example, ExampleStep, QualityPoint, Results, SensitivityRow, StageCost, write_results
from pit.evaluate.stats import CopyRate, Delta, Interval, accuracy_interval

STAGES = ("sft-policy", "sft-improver", "reward-quality", "reward-gap", "rl-policy", "rl-improver-0", "rl-improver-1")


def fake_delta(win: int, lose: int, n: int, method: str = "paired bootstrap over prompts, 2000 resamples") -> Delta:
    """Return a delta with a normal interval."""
    value = 100 * (win - lose) / n
    half = 196 * math.sqrt(((win + lose) / n - ((win - lose) / n) ** 2) / n)
    return Delta(value, max(-100.0, value - half), min(100.0, value + half), n, win, lose, n - win - lose, method)


def fake_results() -> Results:
    """Return results with every field filled; one text holds markup."""
    raw = [(0.412, None, 31.2), (0.561, 1.0, 33.9), (0.548, 1.0, 35.1), (0.529, 1.0, 37.4), (0.507, 1.0, 40.8)]
    stop = [(0.412, None, 31.2), (0.583, 0.71, 33.1), (0.607, 0.29, 33.6), (0.612, 0.12, 33.8), (0.613, 0.05, 33.9)]
    quality = {
        name: tuple(QualityPoint(i, m, m - 0.017, m + 0.017, a, t) for i, (m, a, t) in enumerate(points))
        for name, points in (("raw", raw), ("stop_rule", stop))
    }
    aspects = ("missing fact", "wrong number", "rude tone", "padded with filler", "order of sentences")
    chances = {
        "R_P": (0.81, 0.74, 0.88, 0.47, 0.52),
        "R_PIT": (0.86, 0.79, 0.87, 0.61, 0.55),
        "judge": (0.9, 0.83, 0.91, 0.36, 0.58),
    }
    return Results(
        recipe="synthetic-small",
        seeds=(0,),
        config_hash="9f2c61d07a3be5d4",
        versions={"pit": "0.1.0", "jax": "0.10.2", "flax": "0.12.8", "numpy": "2.4.6"},
        dataset="synthetic instructions",
        device="2 CPU cores",
        config={
            "model": {"layers": 4, "width": 192, "heads": 6, "vocab": 512},
            "rl": {"beta": 0.05, "samples": 8, "lr": 1e-5, "algorithm": "leave-one-out"},
            "stop": {"threshold": 0.25, "gap": "centred"},
            "seed": 0,
            "notes": "<script>alert('config')</script>",
        },
        delta={
            "improved_over_policy/oracle": fake_delta(602, 189, 1000),
            "improved_over_policy/oracle/length_controlled": fake_delta(
                571, 221, 1000, "logistic regression at equal length"
            ),
            "improved_over_policy/judge": fake_delta(566, 301, 1000),
            "sft_improver_over_policy/oracle": fake_delta(341, 322, 1000),
            "best_of_4_over_policy/oracle": fake_delta(472, 258, 1000),
            "wrong_reference_over_policy/oracle": fake_delta(251, 418, 1000),
        },
        quality=quality,
        quality_measure="oracle score, 0 to 1",
        accuracies={
            "R_P": accuracy_interval(742, 1000),
            "R_PIT": accuracy_interval(793, 1000),
            "judge": accuracy_interval(816, 1000),
            "length": accuracy_interval(587.5, 1000),
        },
        perplexity={"pretrained": Interval(9.31, 9.02, 9.61, 400), "sft-policy": Interval(6.77, 6.51, 7.04, 400)},
        sensitivity=tuple(
            SensitivityRow(model, aspect, i.value, i.low, i.high, i.n)
            for model, row in chances.items()
            for aspect, chance in zip(aspects, row, strict=True)
            for i in [accuracy_interval(round(300 * chance), 300)]
        ),
        stages=tuple(
            StageCost(
                name,
                61.0 + 97.3 * k,
                11.2 + k,
                400 + 50 * k,
                1_400_000 + 800_000 * k,
                None if k == 2 else (900 + 40 * k) << 20,
            )
            for k, name in enumerate(STAGES)
        ),
        tokens={"policy": 31_200, "improver": 141_875, "best_of_4": 124_800},
        copy_rate={"improved": CopyRate(0.043, 0.61, 1000), "sft_improver": CopyRate(0.224, 0.78, 1000)},
        examples=fake_examples(),
        notes=(
            "Models of 2 million parameters on synthetic text: the figures do not say how the method does at scale.",
        ),
    )


def fake_examples() -> tuple[Example, ...]:
    """Return four examples: accepted twice, accepted then rejected, markup as text, and long texts."""
    return (
        Example(
            "Name three animals that live in the sea, in alphabetical order, and end with a full stop.",
            (
                ExampleStep("whale, crab, and also maybe a shark", quality=0.33),
                ExampleStep("crab, shark, and also whale", 0.91, True, 0.67, 0),
                ExampleStep("crab, shark, whale.", 0.64, True, 1.0, 1),
            ),
        ),
        Example(
            "Write the numbers from two to five in words.",
            (
                ExampleStep("two three five", quality=0.75),
                ExampleStep("two three four five", 1.12, True, 1.0, 0),
                ExampleStep("two three four five six", -0.48, False, 0.8, 1),
            ),
        ),
        Example(
            "Repeat after me: <script>alert('x')</script> & \"quotes\"",
            (
                ExampleStep("<script>alert('x')</script>", quality=0.5),
                ExampleStep("<script>alert('x')</script> & \"quotes\"\x00\u202e <b>bold</b>", 0.37, True, 1.0, 0),
            ),
        ),
        Example(
            "Say it at length. " * 12,
            (ExampleStep("word " * 120, quality=0.1), ExampleStep("wörd " * 3 + "x" * 300, 2.5, True, 0.2, 0)),
        ),
    )


def write_fake_metrics(run_dir: Path) -> None:
    """Write curves for every stage of the run; the last stage has more steps than a plot has buckets."""
    rng = random.Random(0)
    for k, stage in enumerate(STAGES):
        lines = []
        for step in range(0, 120 if k < 6 else 900, 2):
            fade = math.exp(-step / 40)
            row: dict[str, float] = {
                "step": step,
                "perf/tokens_per_s": 21000 + rng.gauss(0, 400),
                "perf/fill": 0.97,
                "perf/data_wait_s": 0.001,
            }
            row["loss"] = 1.1 + 2.9 * fade + rng.gauss(0, 0.08)
            if stage.startswith("reward"):
                row |= {
                    "loss": 0.4 + 0.3 * fade,
                    "accuracy": 0.8 - 0.3 * fade + rng.gauss(0, 0.02),
                    "rewards/margin": 1.2 - fade,
                }
                row |= {"eval/accuracy": 0.77 - 0.27 * fade} if step % 20 == 0 else {}
            if stage.startswith("rl"):
                row |= {
                    "objective/kl": 0.9 * (1 - fade) + rng.gauss(0, 0.03),
                    "objective/reward": 1.4 * (1 - fade) - 0.2 + rng.gauss(0, 0.1),
                }
                row |= {"completions/mean_length": 30 + 4 * (1 - fade) + rng.gauss(0, 0.5)}
            if stage.startswith("sft") and step % 20 == 0:
                row["eval/loss"] = 1.25 + 2.8 * fade
            lines.append(json.dumps(row))
        folder = run_dir / "stages" / stage
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def full_results() -> Results:
    """Results with every field filled."""
    return fake_results()


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with results and metrics; tests may write reports to it, and leave the rest as it is."""
    folder = tmp_path_factory.mktemp("run")
    write_fake_metrics(folder)
    write_results(fake_results(), folder / "results.json")
    return folder
