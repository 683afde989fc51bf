"""A reward model in ten lines: how many words of the prompt an answer uses, less a little for every word."""

import numpy as np


def quality(prompt: str, answer: str) -> float:
    """Score of one answer."""
    asked, words = set(prompt.lower().split()), answer.lower().split()
    return len(asked & set(words)) - 0.05 * len(words) - (5.0 if not words else 0.0)


def gap(prompts: list[str], outputs: list[str], references: list[str]) -> np.ndarray:
    """How much better each output is than its reference."""
    pairs = zip(prompts, outputs, references, strict=True)
    return np.array([quality(x, y) - quality(x, ref) for x, y, ref in pairs], np.float32)
