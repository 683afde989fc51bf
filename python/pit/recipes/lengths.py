"""Sizes of a run by its data: windows that hold most texts, and rows that hold the longest path of the chat format."""

import math
from typing import NamedTuple

import numpy as np

from pit.config import DataConfig, TemplateConfig, WindowConfig
from pit.data.chat import ChatTemplate
from pit.data.errors import DataError
from pit.data.packing import Layout, rows_needed
from pit.data.readers import Reason, read_preferences
from pit.data.synthetic import generate
from pit.data.usable import DETAILS
from pit.model.pretrained import Pretrained
from pit.run.base import chat_of
from pit.types import Closings, Topology

SAMPLED = 2_000
"""Preferences whose texts are counted, spread evenly over the data."""

HELD = 0.95
"""Share of given prompts, and of answers, that their window holds whole; prompts of a synthetic task are all held."""

LARGEST = 512
"""Largest window, as in the paper."""

_UNBOUNDED = 1 << 20
"""Window in which no text is cut."""

_STEP = 32
"""Windows and rows are multiples of 32 and 128 tokens."""


class Sizes(NamedTuple):
    """Windows, and the tokens that the chat format adds to the longest path."""

    windows: WindowConfig
    added: int

    @property
    def path(self) -> int:
        """Tokens of the longest path."""
        return self.windows.input + self.windows.reference + self.windows.output + self.added

    @property
    def row_length(self) -> int:
        """Tokens of a row: the longest path, and at least 512, in multiples of 128."""
        return max(512, 4 * _STEP * math.ceil(self.path / (4 * _STEP)))

    def rows(self, tree: Topology) -> int:
        """Return the rows that hold a tree whose texts fill the windows."""
        # Most of what the format adds closes references, which a tree may have many of.
        closings = Closings((0,), (0,), (0,) * max(1, self.added - 2), 0)
        layout = Layout(closings, pad=0, row_length=self.row_length, rows=1, trees=1)
        return rows_needed(tree, layout, (self.windows.input, self.windows.reference, self.windows.output))

    def within(self, *, prompt: int, answer: int) -> "Sizes":
        """Return the sizes with windows of at most so many tokens."""
        windows, shorter = self.windows, min(self.windows.output, answer)
        return self._replace(windows=WindowConfig(min(windows.input, prompt), shorter, shorter))


def measure(model: Pretrained, data: DataConfig, template: TemplateConfig) -> Sizes:
    """Return windows that hold most prompts and answers of the preferences in a model's chat format.

    Args:
        model: the pretrained model.
        data: the preferences, of which `path` names a file or folder, or else `task` a synthetic task.
        template: the chat template, where it is not the model's own, and the request.

    Raises:
        ConfigError: the model has no chat template.
        DataError: the preferences cannot be read or used, or the chat format cannot be used.
    """
    if data.path is not None:
        rows = list(read_preferences(data.path, data.format, "train", data.strict, None)[0])
    else:
        assert data.task is not None
        rows = list(generate(SAMPLED, 0, task=data.task))
    if not rows:
        raise DataError(f"{data.path}: holds no usable preferences; `pit data check {data.path}` says why")
    tokenizer, format = chat_of(model, template)
    open_ended = (_UNBOUNDED, _UNBOUNDED, _UNBOUNDED)
    chat = ChatTemplate(tokenizer, format, open_ended, template.request)
    sampled = chat.encode_rows(rows[:: math.ceil(len(rows) / SAMPLED)])
    encoded = [row for row in sampled if row is not None]
    if not encoded:
        raise DataError(f"{data.path}: holds no conversation that the chat format takes; {DETAILS[Reason.FORMAT]}")
    opening = chat.longest[0] - _UNBOUNDED
    # An oracle reads whole prompts.
    prompt = _window([len(row.prompt) - opening for row in encoded], 1.0 if data.synthetic else HELD)
    answer = _window([len(ids) for row in encoded for ids in (row.better, row.worse)], HELD)
    return Sizes(WindowConfig(prompt, answer, answer), chat.path(referenced=True) - sum(open_ended))


def _window(lengths: list[int], share: float) -> int:
    """Return the window that holds a share of the texts of these lengths whole."""
    held = math.ceil(float(np.quantile(lengths, share)) / _STEP)
    return min(LARGEST, _STEP * max(1, held))
