"""Synthetic preferences for benches that need no download, and a template for their texts."""

from collections.abc import Iterator
from itertools import chain, cycle, islice

from pit.data.synthetic import generate
from pit.data.template import RoleTemplate
from pit.data.tokenizer import Tokenizer
from pit.types import Preference


def preferences(rows: int, different: int) -> Iterator[Preference]:
    """Return so many preferences, of which `different` are generated and then repeated: generating takes longer."""
    return islice(cycle(list(generate(min(rows, different), 0))), rows)


def template(texts_of: int = 4_000) -> RoleTemplate:
    """Return the template of a BPE tokenizer of 1,024 tokens, trained on other preferences of the same family."""
    texts = chain.from_iterable((row.prompt[0].content, row.better, row.worse) for row in generate(texts_of, 1))
    return RoleTemplate(Tokenizer.train_bpe(texts, 1_024), (512, 512, 512))
