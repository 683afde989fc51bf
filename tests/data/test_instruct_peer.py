"""Checkers of the family "instruct" against those of the package if-verifiable, which holds IFEval's and IFBench's."""

import importlib.util
import sys
import types
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest

from pit.data.synthetic import FAMILIES, generate
from pit.data.synthetic.instruct.base import Constraint
from pit.data.synthetic.instruct.constraints import KINDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("if_verifiable") is None, reason="if-verifiable is not installed"),
]

ABSENT = ("datasets", "emoji", "immutabledict", "langdetect", "nltk", "syllapy")
"""Packages that if-verifiable imports, and that its checkers of these kinds hardly use."""

TRICKY = [
    "",
    " ",
    "one, two, three.",
    "<<a title>>\ntext",
    "<< >>",
    "<a title>",
    '"quoted"',
    '"',
    '"half quoted',
    "* a\n* b",
    "* a\n- b\n* c",
    "**bold** text\n** x",
    "text * a\n  * b\n\t- c",
    "p.s. small",
    "P. S. spaced",
    "PS without dots",
    "1 2 3",
    "3.5 and 1,000",
    "ask [name]",
    "[a\nb]",
    "[]",
    "all small letters here",
    "ALL CAPITALS",
    "I hope you agree.",
    "i hope you agree. ",
    '"Well. I hope you agree."',
    "I hope you agree. Well then.",
    "a lantern",
    "LANTERN!",
    "word " * 30,
    "word " * 31,
    "it's " * 15,
]
"""Texts at the edges of the rules."""


@cache
def peers() -> Any:
    """Return the modules of IFEval's and IFBench's checkers; packages that are absent are stood in for."""
    absent = {name: _stand_in(name) for name in ABSENT if importlib.util.find_spec(name) is None}
    with patch.dict(sys.modules, absent):
        from if_verifiable.ifbench import instructions as ifbench
        from if_verifiable.ifeval import instructions as ifeval
    return ifeval, ifbench


def _stand_in(name: str) -> types.ModuleType:
    class Module(types.ModuleType):
        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            return _stand_in(attribute)

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return self

    return Module(name)


COMPARED: dict[str, tuple[str, str]] = {
    "include": ("KeywordChecker", "keywords"),
    "commas": ("CommaChecker", ""),
    "title": ("TitleChecker", ""),
    "closing": ("EndChecker", "end_phrase"),
    "quotes": ("QuotationChecker", ""),
    "bullets": ("BulletListChecker", "num_bullets"),
    "postscript": ("PostscriptChecker", "postscript_marker"),
    "placeholder": ("PlaceholderChecker", "num_placeholders"),
    "numbers": ("NumbersCountChecker", "N"),
}
"""Kinds that the peer has too, with its checker and the option that takes the value. Its counts of words and its small
letters need nltk and langdetect; a question at the end and first words are kinds of ours."""


def peer_of(constraint: Constraint) -> Any:
    """Return the peer's checker of a constraint."""
    ifeval, ifbench = peers()
    name, option = COMPARED[constraint.kind]
    checker = getattr(ifbench if constraint.kind == "numbers" else ifeval, name)(constraint.kind)
    values = {"keywords": [constraint.value], "end_phrase": constraint.value, "postscript_marker": "P.S."}
    number = int(constraint.value) if constraint.value.isdigit() else 1
    checker.build_description(**{option: values.get(option, number)} if option else {})
    return checker


@pytest.mark.parametrize("kind", COMPARED)
def test_checkers_agree(kind: str) -> None:
    texts = list(TRICKY)
    for row in generate(60, 7, task="instruct"):
        prompt = row.prompt[0].content
        texts += [row.better, row.worse, FAMILIES["instruct"].clean_answer(prompt)]
    verdicts = set()
    for value in KINDS[kind].values:
        constraint = KINDS[kind](value)
        checker = peer_of(constraint)
        for text in texts:
            ours = constraint.holds(text)
            assert ours == bool(checker.check_following(text)), (value, text)
            verdicts.add(ours)
    assert verdicts == {True, False}
