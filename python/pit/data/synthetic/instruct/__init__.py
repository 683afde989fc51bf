"""The family "instruct": short writing in English under verifiable constraints, for a pretrained language model.

A prompt names a form, a topic and one to three constraints, such as "Write without commas." A draft that holds two of
three can be mended, where a new draw must hold all three at once. The oracle is not exported here; see
`pit.data.synthetic.oracle`.
"""

from pit.data.synthetic.instruct.corruptions import RUNGS, clean_answer, corruptions, progress
from pit.data.synthetic.instruct.grammar import subset_of
from pit.data.synthetic.instruct.task import preference_at, prompt_at

__all__ = ["RUNGS", "clean_answer", "corruptions", "preference_at", "progress", "prompt_at", "subset_of"]
