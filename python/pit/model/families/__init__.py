"""The families of pretrained models that can be read and written: one file and one line in `FAMILIES` each.

A model is written as the first family that can express it. docs/guides/add-a-model-family.md adds one step by step.
"""

from pit.model.families.gemma import GEMMA, GEMMA_2, GEMMA_3
from pit.model.families.llama import LLAMA
from pit.model.families.mistral import MISTRAL
from pit.model.families.own import PIT
from pit.model.families.qwen import QWEN_2, QWEN_3
from pit.model.family import Family

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    QWEN_2,
    QWEN_3,
    GEMMA,
    GEMMA_2,
    GEMMA_3,
    PIT,
)
