"""Sections of a run's config that are not about one stage: data, optimizer, packing, use, evaluation."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pit.config.judge import JudgeConfig
from pit.config.rules import COUNT, DECAY, LATER, POSITIVE, SHARE, UNSIGNED, Range, Section

GapForm = Literal["raw", "centred", "symmetric"]

KEPT = Range(low=0.0, high=1.0, open_low=True)
"""Share of probability that a filter keeps."""

WINDOW = Range(low=3.0)
"""Room for a token on each side of a cut, and the closing role token."""


@dataclass(frozen=True)
class FoldFractions(Section):
    """Share of the conversations in each fold: the paper's thirds, then two folds that no trained model sees.

    sft, reward, rl: share for fine-tuning, for the reward models, and for prompts of RL.
    judge: share for the reward model that judges alone. eval: share for evaluation.
    """

    sft: Annotated[float, POSITIVE] = 0.28
    reward: Annotated[float, POSITIVE] = 0.28
    rl: Annotated[float, POSITIVE] = 0.28
    judge: Annotated[float, POSITIVE] = 0.10
    eval: Annotated[float, POSITIVE] = 0.06

    def __post_init__(self) -> None:
        super().__post_init__()
        total = self.sft + self.reward + self.rl + self.judge + self.eval
        self._require(
            abs(total - 1.0) < 1e-9,
            "sft",
            f"must sum to 1 with the other folds' shares, the sum is {total:.6g}",
            "set several at once, for example the defaults .28, .28, .28, .10, .06",
        )


RESERVED = frozenset({"fold", "messages", "row"})
"""Names of what a reward function gets with any row."""


@dataclass(frozen=True)
class DataConfig(Section):
    """Preferences, and how they are split into folds.

    path: folder or file of preferences; None means the synthetic task.
    task: synthetic task: "describe", the demonstration's; "relay", in which a second look at an answer has a reason
        to help; "instruct", writing under constraints for a pretrained model; None: the recipe needs `path`.
    format: reader; "auto" looks at the content.
    eval_split: split of the data, "test" or "validation", whose rows are the eval fold; the other folds then share the
        training split in proportion. None folds the training split alone.
    synthetic_rows: rows of the synthetic task.
    folds: share of each fold.
    fold_key: key of the stable hash that assigns a conversation to a fold.
    fold_by: text that the hash reads: "opening", a conversation's first message, so that no conversation and its
        continuation are in two folds; or "prompt", all of it, for data that all open alike.
    difficulty_column: column of the data with a number per row, larger is harder, as prior of a curriculum; "-NAME"
        reads it negated.
    columns: further columns, their names separated by commas, whose values a reward function gets with each row.
    strict: stop at the first unusable row instead of counting and dropping it.
    """

    path: str | None = None
    task: Literal["describe", "relay", "instruct"] | None = "describe"
    format: str = "auto"
    eval_split: Literal["test", "validation"] | None = None
    synthetic_rows: Annotated[int, Range(low=100.0)] = 48_000
    folds: FoldFractions = field(default_factory=FoldFractions)
    fold_key: str = "pit"
    fold_by: Literal["opening", "prompt"] = "opening"
    difficulty_column: str | None = None
    strict: bool = False
    columns: str | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.named_columns
        self._require(
            self.columns is None or (all(names) and len(set(names)) == len(names) and not {*names} & RESERVED),
            "columns",
            f"must be different names, separated by commas, none of them {', '.join(sorted(RESERVED))}",
            "for example {path}=solution,level",
        )
        self._require(
            self.columns is None or self.path is not None,
            "columns",
            "needs data of your own, because rows of a synthetic task have no further columns",
            "set {path}=none, or give data.path",
        )
        self._require(
            self.eval_split is None or self.path is not None or self.task is None,
            "eval_split",
            "needs data of your own, a synthetic task has one split",
            "set {path}=none, or give data.path",
        )

    @property
    def named_columns(self) -> tuple[str, ...]:
        """The names in `columns`."""
        return () if self.columns is None else tuple(name.strip() for name in self.columns.split(","))

    @property
    def synthetic(self) -> bool:
        """Whether the preferences are those of a synthetic task, which has an oracle."""
        return self.path is None


@dataclass(frozen=True)
class TokenizerConfig(Section):
    """Tokenizer of a run.

    path: a `tokenizer.json` to load; None trains a byte-level BPE on the sft fold.
    vocab_size: size of that BPE's vocabulary.
    """

    path: str | None = None
    vocab_size: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.path is not None or self.vocab_size >= 264,
            "vocab_size",
            "must hold 256 bytes and the role tokens",
            "set it to 264 or more",
        )


@dataclass(frozen=True)
class TemplateConfig(Section):
    """Conversation of the improver, where a pretrained model's chat format shows it.

    path: jinja file of a chat template in the place of the model's own; None takes the model's.
    request: user's turn that asks for a better answer. It names no criterion: the improver learns those from the data.
    """

    path: str | None = None
    request: str = "Improve your answer. Write only the improved answer."

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.request == self.request.strip() != "",
            "request",
            "must be a text that neither begins nor ends in white space",
            "write it without, for example the default",
        )


@dataclass(frozen=True)
class WindowConfig(Section):
    """Most tokens of each kind of segment (paper: 512 each).

    With role tokens the closing one is counted. In a chat format a window counts contents, and what the format adds
    comes on top.

    input, reference, output: most tokens of a prompt, of a reference and of an answer.
    """

    input: Annotated[int, WINDOW] = 512
    reference: Annotated[int, WINDOW] = 512
    output: Annotated[int, WINDOW] = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.reference == self.output,
            "reference",
            f"must equal the output window, {self.output}, because an output becomes the next reference",
            f"set it to {self.output}, or both windows to one value",
        )


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """AdamW with linear warm-up, cosine decay to `end_fraction` of the peak, and global norm clipping.

    moments: states per weight: "full", AdamW's two, in float32; or "factored", Adafactor's second moment by rows and
        columns alone (Shazeer, Stern, arXiv 1804.04235), which decays as its authors set it, with b1 = 0.
    learning_rate: peak, reached after the warm-up. warmup_steps: steps of the linear warm-up.
    end_fraction: share of the peak at the last step.
    weight_decay: AdamW's, per unit of the learning rate.
    clip_norm: largest norm of a gradient; longer ones are scaled down to it.
    b1, b2: decay of the first and of AdamW's second moment.
    refusals: number of consecutive steps with a loss or gradient that is not finite after which a stage stops; each is
        refused, so that weights and optimizer stay as they were.
    """

    learning_rate: Annotated[float, POSITIVE] = 2e-3
    warmup_steps: Annotated[int, UNSIGNED] = 20
    end_fraction: Annotated[float, SHARE] = 0.1
    b1: Annotated[float, DECAY] = 0.9
    b2: Annotated[float, DECAY] = 0.98
    weight_decay: Annotated[float, UNSIGNED] = 0.0
    clip_norm: Annotated[float, POSITIVE] = 1.0
    refusals: Annotated[int, COUNT] = 3
    moments: Literal["full", "factored"] = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.moments == "full" or self.b1 == 0,
            "b1",
            "must be 0 with factored moments, which keep no mean of the gradients",
            "set {path}=0, or moments=full",
        )


@dataclass(frozen=True)
class PackingConfig(Section):
    """Packing of trees: `rows` rows of `row_length` tokens per shard and microbatch.

    row_length: tokens per row. rows: rows per shard and microbatch.
    microbatches: number of microbatches per step (gradient accumulation).
    window: trees that the planner may look ahead to fill a row.
    trees: most trees per microbatch and shard (the static size of its leaf table).
    """

    row_length: Annotated[int, COUNT] = 2048
    rows: Annotated[int, COUNT] = 8
    microbatches: Annotated[int, COUNT] = 1
    window: Annotated[int, COUNT] = 256
    trees: Annotated[int, COUNT] = 128


@dataclass(frozen=True)
class RolloutConfig(Section):
    """Batching of decoding. It decides speed and memory, and no result beyond rounding.

    slots: samples that decode at a time; a slot takes the next sample when its sample has ended.
    prefill_tokens: tokens of prefixes that are prefilled at a time.
    """

    slots: Annotated[int, COUNT] = 256
    prefill_tokens: Annotated[int, COUNT] = 8192


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """Measurements at the end of a run, and the gate before RL.

    prompts: most prompts of the eval fold; examples: prompts that the report shows.
    resamples: bootstrap samples per interval.
    gate: action where a reward model is below a floor before RL: none, and no measurement ("off"), a line in the log
        ("warn"), or an end of the run ("stop").
    sensitivity_prompts: prompts, or pairs, per check.
    sensitivity_floor: least share of clean answers ranked above a copy with one fault, per aspect of the synthetic
        task; progress_floor: of answers ranked above a copy that is one step further from the clean one; pairs_floor:
        of held-out pairs ranked as the data rank them.
    judge: an LLM judge behind an API, which compares answers besides the other measures; None: none.
    search_prompts: most prompts of the judge fold on which `pit search` chooses; search_answers: budgets that it
        chooses for, in answers per prompt, their numbers separated by commas.
    """

    prompts: Annotated[int, Range(low=2.0)] = 1000
    resamples: Annotated[int, COUNT] = 2000
    examples: Annotated[int, UNSIGNED] = 8
    sensitivity_prompts: Annotated[int, COUNT] = 256
    gate: Literal["off", "warn", "stop"] = "warn"
    sensitivity_floor: Annotated[float, SHARE] = 0.8
    progress_floor: Annotated[float, SHARE] = 0.8
    pairs_floor: Annotated[float, SHARE] = 0.55
    judge: JudgeConfig | None = field(default=None, metadata=LATER)
    search_prompts: Annotated[int, Range(low=2.0)] = field(default=200, metadata=LATER)
    search_answers: str = field(default="2,6,12", metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = [number.strip() for number in self.search_answers.split(",")]
        self._require(
            all(re.fullmatch("[0-9]{1,3}", number) and int(number) >= 2 for number in numbers),
            "search_answers",
            "must be whole numbers from 2 to 999, separated by commas",
            "for example {path}=2,6,12",
        )

    @property
    def search_budgets(self) -> tuple[int, ...]:
        """The numbers in `search_answers`, ascending, each once."""
        return tuple(sorted({int(number) for number in self.search_answers.split(",")}))


@dataclass(frozen=True)
class MeshConfig(Section):
    """Sizes of the device mesh (data, fsdp, tensor); 1, 1, 1 is a single device.

    data: copies of the weights; each takes a share of the rows.
    fsdp: shards of weights and optimizer; each takes a share of the rows.
    tensor: shards of heads and of the width of the MLP.
    """

    data: Annotated[int, COUNT] = 1
    fsdp: Annotated[int, COUNT] = 1
    tensor: Annotated[int, COUNT] = 1

    @property
    def shards(self) -> int:
        """Number of shards of the batch: rows are split over data x fsdp."""
        return self.data * self.fsdp
