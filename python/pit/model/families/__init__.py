"""The families of pretrained models that can be read and written: one file and one line in `FAMILIES` each.

A model is written as the first family that can express it. docs/guides/add-a-model-family.md adds one step by step.
"""

from pit.model.families.llama import LLAMA
from pit.model.family import Family

FAMILIES: tuple[Family, ...] = (LLAMA,)
