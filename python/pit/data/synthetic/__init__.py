"""Synthetic instructions with a hidden quality, in families: the data of the demo and of the evidence.

The oracle is not exported here; see `pit.data.synthetic.oracle`.
"""

from pit.data.synthetic.family import FAMILIES, Family
from pit.data.synthetic.files import generate, generate_prompts, write

__all__ = ["FAMILIES", "Family", "generate", "generate_prompts", "write"]
