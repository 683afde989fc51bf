"""Stages of a run in a chat format: every tree is a conversation as served, with loss on the answer and its EOS."""

import functools
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from world import World, config, named, remembered, temporary_folder

from pit.config import override
from pit.data.errors import DataError
from pit.run.folder import Run
from pit.serve.lines import improve_lines
from pit.stages.prepare import prepare
from pit.train.log import PROGRESS_VARIABLE

sys.path.append(str(Path(__file__).parents[1] / "data"))
import chat_cases as cases

FORMATS = ("chatml", "qwen3")
"""One that keeps prefixes, and one that drops an empty thought from earlier turns."""
WORDS = ("red", "lamp", "small", "cheap", "a", "b c", "two.", "please,")
WINDOWS = ("windows.input=40", "windows.reference=27", "windows.output=27")
SETTINGS = (*WINDOWS, "rl_improver_1.gap=symmetric")


def rows():
    """Preferences of one or two questions, with a system message or without."""
    dice = np.random.default_rng(5)

    def text():
        return " ".join(dice.choice(WORDS, dice.integers(1, 4)))

    for number in range(240):
        turns = [("system", text())] * (number % 3 == 0) + [("user", text())]
        turns += [("assistant", text()), ("user", text())] * (number % 2)
        prompt = [{"role": role, "content": f"{content} {number}"} for role, content in turns]
        yield {"prompt": prompt, "chosen": f"{text()} yes", "rejected": f"{text()} no"}


@functools.cache
def prepared(name):
    """Return a run in a chat format, with its data."""
    folder = temporary_folder()
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows())))
    settings = [*SETTINGS, f"data.path={path}", "data.task=none"]
    run = Run(folder / "run", override(config(), settings))
    run.adopt(cases.tokenizer(name), cases.chat_format(name))
    with mock.patch.dict("os.environ", {PROGRESS_VARIABLE: "json"}):
        prepare(run)
    return run


@functools.cache
def words(name):
    """Return ids of tokens that are words. White space in front would join the line end of the format before it."""
    tokenizer = cases.tokenizer(name)
    return np.array([i for i in range(256, 330) if tokenizer.decode([i])[:1].isalpha()], np.int32)


class ChatWorld(World):
    """A world whose samples are words of the small vocabulary of a format, and end in either EOS."""

    def __init__(self, name):
        super().__init__()
        self.words = words(name)

    def sample(self, *arguments, **options):
        samples = super().sample(*arguments, **options)
        own, other = options["eos_ids"]
        sampled = (samples.token > 0) & (samples.token != own)
        samples.token[sampled] = self.words[samples.token[sampled] % len(self.words)]
        for g, n in np.argwhere(~samples.finished):
            samples.token[g, n, samples.length[g, n] - 1] = other
        return samples._replace(finished=np.ones_like(samples.finished))

    def scores(self, scorer, batch, contents):
        present = batch.local.leaf[:, :, 0] >= 0
        return np.where(present, np.float32(contents % 7), np.float32(0)).astype(np.float32)


def worked(name, stage):
    """Return a world in which a stage was done in a chat format, and its run."""

    def make():
        world, run = ChatWorld(name), Run(prepared(name).folder, prepared(name).config)
        world.work(run, stage)
        return world, run

    return remembered((name, stage), make)


def rendered(name, turns):
    """Tokens of a conversation, up to the EOS of its last answer."""
    whole, (eos,) = cases.rendered(name, *turns), cases.ids_of(name, "<|im_end|>")
    return tuple(whole[: len(whole) - whole[::-1].index(eos)])


def paths(arrays):
    """Return (path, weights) of each tip of packed rows; a tip is no other token's predecessor."""
    token, previous, until = arrays["token"], arrays["previous"], arrays["visible_until"]
    index = np.arange(token.shape[1])
    for row in range(len(token)):
        alive = np.flatnonzero(until[row] > index)
        before = {int(previous[row, i]) for i in alive if previous[row, i] != i}
        for place in set(alive.tolist()) - before:
            path = [place]
            while previous[row, path[-1]] != path[-1]:
                path.append(int(previous[row, path[-1]]))
            path.reverse()
            yield tuple(token[row, path].tolist()), arrays["loss_weight"][row, path]


def texts(run, fold, example):
    """Return the turns of a row's prompt, and its two answers."""
    x, better, worse = run.fold(fold).row(example)
    turns = [(message.role, message.content) for message in run.template.decode_prompt(x)]
    return turns, run.template.decode_answer(better), run.template.decode_answer(worse)


def asked(turns, reference):
    """Return a prompt with an answer and the request for a better one."""
    return [*turns, ("assistant", reference), ("user", cases.REQUEST)]


def expected(stage, turns, better, worse):
    """Return the conversations of a stage's tree, each with its last answer."""
    if stage == "sft-policy":
        return [(turns, better)]
    if stage == "sft-improver":
        return [(asked(turns, worse), better)]
    if stage == "reward-quality":
        return [(turns, better), (turns, worse)]
    return [(asked(turns, ref), y) for ref in (better, worse) for y in (better, worse)]


def test_supervised_trees_are_the_conversations_of_their_rows():
    for name in FORMATS:
        for stage in ("sft-policy", "sft-improver", "reward-quality", "reward-gap"):
            world, run = worked(name, stage)
            trees = 0
            for group in world.of(stage):
                for arrays, examples in zip(group.arrays, group.examples, strict=True):
                    there = [texts(run, named(stage).fold, i) for i in examples if i >= 0]
                    said = [one for row in there for one in expected(stage, *row)]
                    wanted = sorted(rendered(name, [*turns, ("assistant", y)]) for turns, y in said)
                    assert sorted({path for path, _ in paths(arrays)}) == sorted(set(wanted)), (name, stage)
                    trees += len(there)
            assert trees > 8


def test_loss_is_on_the_answer_and_its_eos_alone():
    for name in FORMATS:
        for stage in ("sft-policy", "sft-improver"):
            world, run = worked(name, stage)
            for group in world.of(stage):
                for arrays, examples in zip(group.arrays, group.examples, strict=True):
                    sizes = {}
                    for turns, better, worse in (texts(run, named(stage).fold, i) for i in examples if i >= 0):
                        ((before, y),) = expected(stage, turns, better, worse)
                        path = rendered(name, [*before, ("assistant", y)])
                        sizes[path] = len(run.template.tokenizer.encode(y)) + 1
                    for path, weight in paths(arrays):
                        learned = np.arange(len(path)) >= len(path) - sizes[path]
                        np.testing.assert_array_equal(weight, learned, str((name, stage)))


def test_policy_and_improver_read_the_conversation_as_it_is_served():
    for name in FORMATS:
        world, run = worked(name, "rl-improver-1")
        samples = run.config.rl_improver_1.samples
        fold, checked = run.fold("rl"), 0
        for writes, improves in zip(world.asked("rl-improver-1")[::2], world.asked("rl-improver-1")[1::2], strict=True):
            assert (writes.n, improves.n) == (1, samples)
            if writes.ids != improves.ids or max(writes.ids) >= len(fold):
                continue
            for g, prefix in enumerate(writes.prefixes):
                turns, *_ = texts(run, "rl", writes.ids[g])
                if tuple(prefix) != tuple(cases.rendered(name, *turns, opening=True)):
                    # A prompt of the eval fold, on which the stage is measured.
                    turns, *_ = texts(run, "eval", writes.ids[g])
                assert prefix == cases.rendered(name, *turns, opening=True)
                content = [token for token in writes.tokens[g, 0].tolist() if token]
                reference = run.template.decode_answer(content)
                whole = cases.rendered(name, *asked(turns, reference), opening=True)
                assert improves.prefixes[g] == whole
                assert (whole[: len(prefix)] == prefix) == (name == "chatml")
                checked += 1
        assert checked > 8


def test_rl_trees_are_the_conversations_of_their_samples():
    for name in FORMATS:
        world, run = worked(name, "rl-improver-1")
        samples = run.config.rl_improver_1.samples
        read = {tuple(prefix) for ask in world.asks if ask.n == samples for prefix in ask.prefixes}
        eos, seen = run.template.closings.eos, 0
        for group in world.of("rl-improver-1"):
            for arrays in group.arrays:
                for path, _ in paths({"loss_weight": np.zeros(arrays["token"].shape), **arrays}):
                    assert any(path[: len(prefix)] == prefix for prefix in read)
                    assert path[-1] == eos
                    seen += 1
        assert seen > 8


def improved(run, world, rows):
    """Return what `pit improve` writes for some lines."""
    source, written = run.folder / "prompts.jsonl", run.folder / "improved.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    with world.watched("improve"), source.open("rb") as lines, written.open("w") as sink:
        improve_lines(run, lines, sink, {}, seed=0, strict=True)
    return [json.loads(line) for line in written.read_text().splitlines()]


def test_conversations_come_in_and_go_out_as_text():
    """What `pit improve` reads of a conversation is its rendering, and what it writes holds no token of the format."""
    for name in FORMATS:
        world, run = ChatWorld(name), Run(prepared(name).folder, prepared(name).config)
        asked_of = [
            {"prompt": "red <|im_end|> lamp", "answer": "small"},
            {"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "b c"}], "answer": "red"},
        ]
        records = improved(run, world, asked_of)
        assert [record["prompt"] for record in records] == [
            [{"role": "user", "content": "red <|im_end|> lamp"}],
            asked_of[1]["prompt"],
        ]
        assert [record["answers"][0] for record in records] == ["small", "red"]
        typed, control = world.asks[0].prefixes[0], run.template.special_ids
        assert sum(token in control for token in typed) == sum(
            token in control for token in cases.rendered(name, *asked([("user", "a")], "b"), opening=True)
        )
        turns = [("system", "a"), ("user", "b c")]
        assert world.asks[0].prefixes[1] == cases.rendered(name, *asked(turns, "red"), opening=True)
        for record in records:
            for answer in (*record["answers"], *(step["candidate"] for step in record["steps"])):
                assert run.template.decode_answer(run.template.encode_answer(answer)) == answer
                assert "<|im_end|>" not in answer


def test_a_conversation_that_the_format_refuses_names_its_line():
    run = Run(prepared("chatml").folder, prepared("chatml").config)
    world, lines = ChatWorld("chatml"), [{"prompt": "a"}, {"prompt": [{"role": "assistant", "content": "b"}]}]
    with pytest.raises(DataError, match="line 2: a prompt must end with a user's message"):
        improved(run, world, lines)
