"""Verdicts of an LLM judge on the answers of a run: which comparisons it is asked, and their figures.

It compares improved answers, of the first and the last pass, with the policy's own. Intervals are over prompts; prompts
without a verdict are left out and counted.
"""

import hashlib
import os
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from pit import processes
from pit.chat_client import ChatClient
from pit.data.tokens import Tokens
from pit.evaluate.llm_judge import PROMPT, LlmJudge, Pair, outcomes_of
from pit.evaluate.measure import Answers
from pit.evaluate.schema import LLM_JUDGE, Comparisons, LlmJudgeRecord
from pit.evaluate.stats import Delta, delta
from pit.run.folder import Run
from pit.train.log import make_reporter

KEY = "PIT_JUDGE_KEY"
"""Environment variable of the judge's key."""

FOLDER = "judge"
"""Folder of its replies, in that of the run."""


class Asked(NamedTuple):
    """What an LLM judge said: deltas, the record of the judge, and caveats; all empty without a judge."""

    deltas: dict[str, Delta]
    record: LlmJudgeRecord | None
    notes: tuple[str, ...]


def ask(run: Run, answers: Answers) -> Asked:
    """Return the verdicts of the run's LLM judge; nothing where the config names none, or another process asks.

    Raises:
        ChatError: its URL or key cannot be used.
    """
    config = run.config.evaluate.judge
    if config is None or not processes.first():
        return Asked({}, None, ())
    client = ChatClient(
        config.url, config.model, key=os.environ.get(KEY), timeout_s=config.timeout_s, attempts=config.attempts
    )
    judge, last = LlmJudge(config, client, run.folder / FOLDER), f"improved_{run.config.improve.rounds}"
    methods = [name for name in ("improved", last) if name in answers.methods]
    deltas, counts = {}, {}
    reporter = make_reporter("evaluate")
    for number, method in enumerate(methods, start=1):
        name = f"{method}_over_policy"
        pairs = pairs_of(run, answers.prompts, answers.methods[method], answers.methods["policy"], config.prompts)
        verdicts = judge.compare(pairs)
        scores = outcomes_of(verdicts)
        changed = sum(verdict is not None and not verdict.consistent for verdict in verdicts)
        counts[name] = Comparisons(len(pairs), len(pairs) - len(scores), changed)
        if len(scores):
            made = delta(scores, np.zeros_like(scores), seed=run.config.seed, resamples=run.config.evaluate.resamples)
            deltas[f"{name}/{LLM_JUDGE}"] = made._replace(method=f"both orders must agree, {made.method}")
        reporter.update(number, len(methods), "LLM judge")
    reporter.close()
    digest = hashlib.blake2b(PROMPT.encode(), digest_size=8).hexdigest()
    record = LlmJudgeRecord(config.url, config.model, digest, counts, **asdict(judge.cost))
    return Asked(deltas, record, tuple(_notes(record, judge.trouble)))


def pairs_of(run: Run, prompts: Tokens, candidates: Tokens, baselines: Tokens, most: int) -> list[Pair]:
    """Return the texts of the first comparisons."""
    template = run.template
    columns = zip(prompts[:most], candidates[:most], baselines[:most], strict=True)
    return [
        Pair(template.decode_prompt(x), template.decode_answer(y), template.decode_answer(z)) for x, y, z in columns
    ]


def _notes(record: LlmJudgeRecord, trouble: str | None) -> list[str]:
    notes = []
    for name, counts in record.comparisons.items():
        notes.append(
            f"LLM judge {record.model}, {name.replace('_', ' ')}: of {counts.asked} comparisons {counts.no_verdict} "
            f"have no verdict, and {counts.inconsistent} changed with the order of the answers and count as ties."
        )
    if trouble is not None:
        notes.append(f"LLM judge {record.model}: {record.failed} replies did not come; the last error was: {trouble}")
    return notes
