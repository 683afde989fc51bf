"""A reward model in ten lines: the number of words that prompt and answer share, minus a little per word."""

import numpy as np


def quality(prompt: str, answer: str) -> float:
    """Return the score of one answer."""
    topic, words = set(prompt.lower().split()), answer.lower().split()
    return len(topic & set(words)) - 0.05 * len(words) - (5.0 if not words else 0.0)


def gap(prompts: list[str], outputs: list[str], references: list[str]) -> np.ndarray:
    """Return the gap of each output over its reference."""
    pairs = zip(prompts, outputs, references, strict=True)
    return np.array([quality(x, y) - quality(x, ref) for x, y, ref in pairs], np.float32)
