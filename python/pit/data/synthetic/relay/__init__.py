"""The family "relay": follow a chain of passes from person to person, and name the people, the last ones first.

An answer must begin with the end of the chain, so a shallow model that follows one pass at a time cannot write it in
one go; given a draft, it can continue from its correct part. An improver therefore helps. The oracle is not exported
here; see `pit.data.synthetic.oracle`.
"""

from pit.data.synthetic.relay.corruptions import RUNGS, clean_answer, corruptions, progress
from pit.data.synthetic.relay.task import preference_at, prompt_at
from pit.data.synthetic.shared import subset_of

__all__ = ["RUNGS", "clean_answer", "corruptions", "preference_at", "progress", "prompt_at", "subset_of"]
