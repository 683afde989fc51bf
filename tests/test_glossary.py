"""Every dimension letter of an annotation in `pit` is in the glossary of `pit.types`."""

import re
from pathlib import Path

import pit.types

ROOT = Path(__file__).parents[1] / "python" / "pit"
SHAPE = re.compile(r"\b(?:Float|Int|UInt|Bool|Num)\d*\[[\w.]+, [\"']([^\"']*)[\"']\]")


def test_letters_are_explained():
    glossary = {
        letter
        for line in re.findall(r"^([A-Za-z](?:, [a-z])*)  +\S", pit.types.__doc__, re.M)
        for letter in line.split(", ")
    }
    used = {}
    for path in ROOT.rglob("*.py"):
        for shape in SHAPE.findall(path.read_text(encoding="utf-8")):
            for word in re.findall(r"(?<![\w*#])[A-Z](?!\w)", shape):
                used.setdefault(word, path.name)
    assert len(used) > 15
    assert used.keys() <= glossary, {letter: used[letter] for letter in used.keys() - glossary}
