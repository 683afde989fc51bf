"""Trees in chat formats: every path is the conversation that the format writes, and nobody forges a control token."""

import dataclasses
import json
import re

import chat_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.chat import ChatFormat, ChatTemplate
from pit.data.errors import DataError
from pit.data.packing import Layout, pack
from pit.data.readers import Reason
from pit.data.template import gap, gap_scoring, improver_sft, policy_sft, quality, rollout
from pit.data.tokens import Tokens
from pit.data.usable import flaw
from pit.testing.paths import leaf_paths, packed_path, tip_paths
from pit.types import Message, Preference, SegmentKind

WINDOWS = (4000, 4000, 4000)
"""Sizes at which nothing is cut."""
SYSTEMS = {"chatml", "qwen25", "qwen3", "llama3", "gemma3", "zephyr"}
"""Formats that take a system message."""

letters = st.characters(codec="utf-8", exclude_categories=["Cs"])
plain = st.text(letters, max_size=12).map(str.strip).filter(lambda text: not re.search("[<>\ufffd]", text))
"""Contents as they stand in a conversation: no space around them, and none of the tokens that part turns."""
typed = st.lists(
    st.sampled_from(["a", " ", "\n", "<think>", "<|user|>", *cases.MISTRAL, *cases.CHATML, *cases.LLAMA, *cases.GEMMA]),
    max_size=6,
)
forged = st.one_of(plain, typed.map("".join))
names = st.sampled_from(cases.NAMES)


@st.composite
def prompts(draw, name, content=plain):
    """Draw the turns of a prompt that a format takes."""
    roles = ["user", *["assistant", "user"] * draw(st.integers(0, 2))]
    if name in SYSTEMS and draw(st.booleans()):
        roles = ["system", *roles]
    # An empty system message would let the text on its two sides join, where the format puts no token between them.
    return [(role, draw(content.filter(bool) if role == "system" else content)) for role in roles]


def messages_of(turns):
    return [Message(role, text) for role, text in turns]


@st.composite
def conversations(draw):
    """Draw (format, turns of a prompt, two answers)."""
    name = draw(names)
    return name, draw(prompts(name)), draw(plain), draw(plain)


def expected_paths(name, topology, turns, answers):
    """Return the tokens of each tip's conversation, up to EOS, from the rendering of the whole."""
    close, paths = cases.chat_template(name, WINDOWS).closings.eos, []
    for tip, segment in enumerate(topology.segments):
        if segment.kind is SegmentKind.OUTPUT:
            said = [("assistant", answers[segment.column])]
            if segment.parent > 0:
                reference = answers[topology.segments[segment.parent].column]
                said = [("assistant", reference), ("user", cases.REQUEST), *said]
            whole = cases.rendered(name, *turns, *said)
            paths.append((tip, tuple(whole[: len(whole) - whole[::-1].index(close)])))
    return dict(paths)


TREES = (
    policy_sft(),
    improver_sft(),
    quality(),
    gap(),
    rollout(2, True),
    gap_scoring(1, identity=True, swapped=True)[0],
)


@given(conversations(), st.sampled_from(TREES))
def test_every_path_is_the_conversation_that_the_format_writes(case, topology):
    name, turns, first, second = case
    template = cases.chat_template(name, WINDOWS)
    count = 1 + max(segment.column for segment in topology.segments)
    answers = [None, first, second, first + "b"][:count]
    columns = [[template.encode_prompt(messages_of(turns))], *([template.encode_answer(text)] for text in answers[1:])]
    expected = expected_paths(name, topology, turns, answers)
    assert set(tip_paths(topology, columns, 0, template.closings)) == set(expected.values())
    longest = max(map(len, expected.values()))
    layout = Layout(template.closings, template.pad, row_length=longest, rows=8, trees=1)
    (batch,) = pack(columns, topology, layout)
    slots = {segment.leaf: tip for tip, segment in enumerate(topology.segments) if segment.leaf >= 0}
    for slot, (row, index) in enumerate(batch.leaf[0]):
        assert packed_path(batch, int(row), int(index)) == expected[slots[slot]]
        assert batch.token[row, index] == template.closings.eos
    # Loss is on an output's content and its EOS, and on no other token of the format.
    learned = sum(len(columns[s.column][0]) + 1 for s in topology.segments if s.loss)
    assert batch.loss_weight.sum() == learned


@given(conversations())
def test_the_sampler_reads_the_format_up_to_the_opening_of_the_answer(case):
    name, turns, reference, _ = case
    template = cases.chat_template(name, WINDOWS)
    x, close = template.encode_prompt(messages_of(turns)), template.closings
    assert [*x, *close.input] == cases.rendered(name, *turns, opening=True)
    asked = (*turns, ("assistant", reference), ("user", cases.REQUEST))
    ours = [*x, *close.reviewed, *template.encode_answer(reference), *close.reference]
    assert ours == cases.rendered(name, *asked, opening=True)


@pytest.mark.parametrize("name", cases.NAMES)
def test_policy_and_improver_share_x_where_the_format_keeps_prefixes(name):
    template = cases.chat_template(name)
    asked = [("user", "red"), ("assistant", "small"), ("user", cases.REQUEST)]
    alone, before = cases.rendered(name, asked[0], opening=True), cases.rendered(name, *asked, opening=True)
    shares = before[: len(alone)] == alone
    assert template.keeps_prefixes == shares == (template.closings.input == template.closings.reviewed)
    # Qwen 3 opens an answer by an empty thought, and drops it from earlier turns.
    assert shares == (name != "qwen3")


@given(names.flatmap(lambda name: st.tuples(st.just(name), prompts(name, forged))), forged)
def test_what_a_user_types_stays_text(case, answer):
    name, turns = case
    template = cases.chat_template(name, WINDOWS)
    x, y = template.encode_prompt(messages_of(turns)), template.encode_answer(answer)
    assert not template.special_ids & set(y)
    pieces = template.tokenizer.encode_format(
        cases.chat_format(name).render(messages_of([(r, "") for r, _ in turns]), opening=True)
    )
    control = sum(token in template.special_ids for token in pieces)
    assert sum(token in template.special_ids for token in [*x, *template.closings.input]) == control
    shown = template.decode_prompt(x)
    merged = name == "gemma3" and turns[0][0] == "system"
    assert [m.role for m in shown] == [role for role, _ in turns][merged:]
    if name in ("chatml", "qwen25"):
        assert [m.content for m in shown] == [text for _, text in turns]
        assert template.decode_answer(y) == answer


@given(names, st.text(st.sampled_from(" \n\ta"), max_size=8))
def test_contents_are_shown_as_the_format_shows_them(name, text):
    template = cases.chat_template(name, WINDOWS)
    shown = template.decode_answer(template.encode_answer(text))
    trims = ("llama3", "gemma", "gemma3")
    trimmed = name in (*trims, "mistral")
    assert shown == (text.strip() if trimmed else text.lstrip("\n") if name == "qwen3" else text)
    (said,) = template.decode_prompt(template.encode_prompt([Message("user", text)]))
    assert said.content == (text.strip() if name in trims else text)


def test_thinking_is_left_out_of_answers_where_the_format_drops_it():
    template = cases.chat_template("qwen3", WINDOWS)
    thought = template.encode_answer("<think>\nsmall?\n</think>\n\nred lamp")
    assert thought == template.encode_answer("red lamp")
    sampled = [*cases.ids_of("qwen3", "<think>"), *thought[:1], *cases.ids_of("qwen3", "</think>"), *thought]
    assert template.served(Tokens.of([sampled])).rows() == [thought]
    messages = [Message("user", "a"), Message("assistant", "<think>b</think>c"), Message("user", "d")]
    assert [m.content for m in template.decode_prompt(template.encode_prompt(messages))] == ["a", "c", "d"]


def test_a_sampled_answer_is_served_trimmed_and_without_control_tokens():
    template = cases.chat_template("llama3")
    red, (other,) = template.encode_answer("red"), cases.ids_of("llama3", "<|end_of_text|>")
    space = template.tokenizer.encode(" \n")
    assert template.served(Tokens.of([[*space, *red, *space], [*red, other], []])).rows() == [red, red, []]


# Windows.


@given(conversations(), st.integers(3, 40))
def test_a_long_prompt_keeps_its_end_behind_the_opening(case, window):
    name, turns, *_ = case
    template = cases.chat_template(name, (window, 3, 3))
    whole = cases.chat_template(name, WINDOWS).encode_prompt(messages_of(turns))
    system = turns[0][0] == "system"
    row = Preference(tuple(messages_of(turns)), "", "")
    if system and window < 16:
        # The system message and the text after it may leave no room for the question.
        return
    (encoded,) = template.encode_preferences([row])
    if not encoded.prompt:
        # Nobody said anything, or nothing of it fits: a window of so few tokens cuts a character apart.
        assert encoded.truncated[0] or not any(text for role, text in turns if role != "system")
        return
    x, kept = encoded.prompt, template.decode_prompt(encoded.prompt)
    assert len(x) <= template.longest[0]
    assert (template.prompt_size(row.prompt) > window) == encoded.truncated[0]
    if not encoded.truncated[0]:
        assert x == whole
        return
    assert len(whole) > len(x)
    # What is left is a conversation of its own: its tokens are the format's rendering of it.
    again = [(m.role, m.content) for m in kept]
    assert [*x, *template.closings.input] == cases.rendered(name, *again, opening=True) or name == "gemma3"
    merged = name == "gemma3"
    texts = [text for role, text in again if role != "system"]
    given_texts = [text for role, text in turns if role != "system"]
    if not merged:
        assert [m.role for m in kept] == [*["system"] * system, *[role for role, _ in turns[system:]][-len(texts) :]]
        assert texts[1:] == given_texts[len(given_texts) - len(texts) + 1 :]
        assert given_texts[-len(texts)].endswith(texts[0])
        assert not system or turns[0][1].startswith(again[0][1])
    assert again[system and not merged][0] == "user"


def test_a_prompt_is_cut_at_a_users_turn_by_hand():
    name, turns = "chatml", [("user", "a b c"), ("assistant", "0 1"), ("user", "d e 2 3")]
    big = cases.chat_template(name, WINDOWS)
    opening = len(big.encode_prompt([Message("user", "")]))
    size = len(big.encode_prompt(messages_of(turns))) - opening
    words = len(big.encode_answer("a b c"))
    last = len(big.encode_answer("d e 2 3"))
    for window, expected in [
        (size, turns),
        (size - 1, [("user", " b c"), *turns[1:]]),
        (size - words + 1, [("user", " c"), *turns[1:]]),
        # No place is left for the first message, and an answer does not stand at the beginning.
        (size - words, turns[2:]),
        (last, turns[2:]),
    ]:
        template = cases.chat_template(name, (window, 8, 8))
        assert template.decode_prompt(template.encode_prompt(messages_of(turns))) == tuple(messages_of(expected))
        assert template.longest == (window + opening, 8, 8)


@given(names, plain, st.integers(3, 9))
def test_a_long_answer_keeps_its_beginning(name, text, window):
    template, whole = (
        cases.chat_template(name, (8, window, window)),
        cases.chat_template(name, WINDOWS).encode_answer(text),
    )
    encoded = template.encode_preferences([Preference((Message("user", "a"),), text, "b")])[0]
    assert encoded.truncated == (False, len(whole) > window, False)
    assert template.answer_size(text) == len(whole)
    assert encoded.better == whole[: len(encoded.better)]
    assert len(encoded.better) == len(whole) if len(whole) <= window else len(encoded.better) <= window
    shown = template.decode_answer(encoded.better)
    assert template.decode_answer(template.encode_answer(shown)) == shown


@pytest.mark.parametrize("name", cases.NAMES)
def test_the_longest_path_is_worked_out_from_windows_and_format(name):
    template = cases.chat_template(name, (5, 4, 4))
    x, y = template.encode_prompt([Message("user", "a b c d e a b c d e")]), template.encode_answer("xyzxyzxyz")
    assert len(x) <= template.longest[0]
    assert len(y) == template.longest[1] == template.capacity == 4
    for tree, referenced in ((policy_sft(), False), (improver_sft(), True)):
        (path,) = tip_paths(tree, [[[0] * template.longest[0]], [[1] * 4], [[2] * 4]], 0, template.closings)
        assert len(path) == template.path(referenced=referenced)


# Refusals.


def changed(name, old, new, **more):
    """Return the arguments of a template whose format has a changed text."""
    source = cases.chat_format(name).source
    assert old in source
    format = dataclasses.replace(cases.chat_format(name), source=source.replace(old, new), **more)
    return cases.tokenizer(name), format, (8, 8, 8), cases.REQUEST


CUT = "the chat template cannot be cut apart: for a conversation of user"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("chatml", "turn['content'] +", "turn['content'] | upper +"),
            f"{CUT} it shows the content of message 1 0 times",
        ),
        (("chatml", "turn['content'] +", "turn['content'] * 2 +"), f"{CUT} it shows the content of message 1 2 times"),
        (
            ("chatml", "'<|im_start|>system\\nYou are a small helper.<|im_end|>\\n'", "range(9**5) | random"),
            "renders one conversation in two ways",
        ),
        (
            ("chatml", "assistant\\n' -}}", "assistant\\nSure: ' -}}"),
            "opens an answer by '<|im_end|>\\n<|im_start|>assistant",
        ),
        (("chatml", "in messages -%}", "in messages | reverse -%}"), "moves a message"),
        (("chatml", "+ '<|im_end|>\\n'", "+ '\\n'"), "which does not begin with a special token"),
        (("chatml", "{%- endfor -%}", "{%- endfor"), "the chat template is not valid jinja"),
        (
            ("chatml", "turn['content'] +", "turn['content'].missing() +"),
            "refuses a conversation of user: 'str object' has no",
        ),
        (("gemma", "trim + '<end", "trim + ' <end"), "which does not begin with a special token"),
        (
            ("chatml", "turn['role'] != 'system'", "turn['role'] != 'system' and messages | length < 2"),
            "shows the prompt",
        ),
        (
            ("chatml", "turn['content'] +", "(turn['content'] if turn['role'] != 'user' or loop.first else '') +"),
            "request",
        ),
    ],
)
def test_a_template_that_cannot_be_cut_is_refused(arguments, message):
    with pytest.raises(DataError, match=re.escape(message)):
        ChatTemplate(*changed(*arguments))


def test_a_format_whose_turns_anyone_can_type_is_refused():
    source = (
        "{% for t in messages %}{{ t.role }}: {{ t.content }}{{ '<|im_end|>' if t.role == 'assistant' }}\n{% endfor %}"
    )
    format = ChatFormat(source + "{{ 'assistant: ' if add_generation_prompt }}", {}, (), cases.DAY)
    with pytest.raises(DataError, match=r"parts turns by '\\nassistant: ', which anyone can type"):
        ChatTemplate(cases.tokenizer("chatml"), format, (8, 8, 8), cases.REQUEST)


def test_a_system_message_that_a_format_does_not_take_is_refused_by_name():
    messages = [Message("system", "a"), Message("user", "b")]
    message = "the chat template refuses a conversation of system, user: System role not supported"
    with pytest.raises(DataError, match=message):
        cases.chat_template("gemma").encode_prompt(messages)


def test_rows_that_a_format_does_not_take_are_left_out():
    taken = Preference((Message("user", "a"),), "b", "c")
    rows = [
        taken,
        Preference((Message("system", "a"), Message("user", "b")), "b", "c"),
        Preference(
            (Message("user", "a"), Message("assistant", "b"), Message("assistant", "b"), Message("user", "c")), "b", "c"
        ),
        taken._replace(better="d"),
        Preference((Message("user", "a"), Message("assistant", "b")), "b", "c"),
    ]
    template = cases.chat_template("gemma")
    first, *refused, last, end = template.encode_rows(rows)
    assert [first, last] == template.encode_preferences([rows[0], rows[3]])
    assert [*refused, end] == [None, None, None]
    assert flaw(None) is Reason.FORMAT
    assert [row is None for row in cases.chat_template("chatml").encode_rows(rows)] == [False] * 4 + [True]


def test_two_turns_of_one_role_come_back():
    template = cases.chat_template("llama3", WINDOWS)
    messages = [Message(role, role[:3]) for role in ("user", "assistant", "assistant", "user", "user")]
    assert template.decode_prompt(template.encode_prompt(messages)) == tuple(messages)


def test_a_closing_that_contents_would_join_is_refused():
    """GPT-2's words split two line ends before a word, so the opening of a thought has other tokens alone."""
    inner = cases.byte_level(cases.CHATML, cases.THINK)
    tokenizer = cases.Tokenizer.pretrained(inner.to_str())
    assert len(tokenizer.encode_format("\n\n")) < len(tokenizer.encode_format("\n\na")) - 1
    with pytest.raises(DataError, match="this tokenizer joins the text of the chat format with contents"):
        ChatTemplate(tokenizer, cases.chat_format("qwen3"), (8, 8, 8), cases.REQUEST)


def test_a_system_message_that_moves_is_refused():
    """A format that shows it in the last turn has another x for the improver than for the policy."""
    moved = "{%- for turn in messages if turn.role != 'system' -%}"
    old = "{%- for turn in messages -%}"
    last = "turn['content'] + ('[' + messages[0].content + ']' if loop.last and messages[0].role == 'system' else '') +"
    tokenizer, format, *rest = changed("chatml", old, moved)
    format = dataclasses.replace(format, source=format.source.replace("turn['content'] +", last))
    template = ChatTemplate(tokenizer, format, *rest)
    assert template.encode_prompt([Message("user", "a")])
    with pytest.raises(DataError, match="the chat template cannot be cut apart: for a conversation of system, user"):
        template.encode_prompt([Message("system", "a"), Message("user", "b")])


PREFIXED = cases.byte_level(cases.CHATML).to_str().replace('"add_prefix_space":false', '"add_prefix_space":true')


def test_contents_have_no_space_that_a_tokenizer_puts_before_a_text_alone():
    for tokenizer, name in ((cases.Tokenizer.pretrained(PREFIXED), "chatml"), (cases.tokenizer("zephyr"), "zephyr")):
        template = ChatTemplate(tokenizer, cases.chat_format(name), WINDOWS, cases.REQUEST)
        assert tokenizer.encode("red") != template.encode_answer("red")
        assert template.decode_answer(template.encode_answer(" red")) == " red"
        whole = template.format.render(messages_of([("user", "red"), ("assistant", "lamp")]), opening=False)
        x, y, close = (
            template.encode_prompt([Message("user", "red")]),
            template.encode_answer("lamp"),
            template.closings,
        )
        ids = tokenizer.encode_format(whole)
        assert ids[: len(x) + len(close.input) + len(y) + 1] == [*x, *close.input, *y, close.eos]


def test_a_space_that_the_format_puts_before_contents_belongs_to_them():
    template = cases.chat_template("mistral")
    pieces = [template.tokenizer.added.get(token) for token in template.closings.reference]
    assert (pieces[0], pieces[1], pieces[-1]) == ("</s>", "[INST]", "[/INST]")
    y = template.encode_answer("red")
    assert template.tokenizer.decode(y) == "red", "the decoder drops the space too"
    inner = json.loads(template.tokenizer.to_json())["model"]["vocab"]
    assert {text: number for text, number in inner.items() if number == y[0]}.popitem()[0].startswith("\u2581")
    # A model may leave the space out; the next turn shows it.
    bare = template.tokenizer.without_prefix().encode("red")
    assert bare != y
    assert template.decode_answer(bare) == "red"
    assert template.served(Tokens.of([bare])).rows() == [y]


@pytest.mark.parametrize("prefix", ["none", "first", "all"])
def test_the_space_of_a_format_and_that_of_a_tokenizer_are_told_apart(prefix):
    tokenizer = cases.Tokenizer.pretrained(cases.sentence_level(cases.MISTRAL, prefix).to_str())
    template = ChatTemplate(tokenizer, cases.chat_format("mistral"), WINDOWS, cases.REQUEST)
    for text in ("red", " red", "  ", "two  three"):
        x = template.encode_prompt([Message("user", text)])
        whole = template.format.render([Message("user", text)], opening=True)
        assert [*x, *template.closings.input] == tokenizer.encode_format(whole)
        assert template.decode_prompt(x) == (Message("user", text),)
    # Other programs drop the space that a tokenizer adds, and leave the format's.
    y = template.encode_answer("red")
    assert tokenizer.decode(y) == template.lead + "red"
    assert template.lead == ("" if prefix == "first" else " ")


def test_a_tokenizer_that_adds_spaces_to_some_contents_alone_is_refused():
    # A user's content stands right after a special token, an answer after a line end.
    opening = "'<|im_start|>' + ('' if turn['role'] == 'user' else turn['role'] + '\\n') +"
    _, *arguments = changed("chatml", "'<|im_start|>' + turn['role'] + '\\n' +", opening)
    with pytest.raises(
        DataError, match="this tokenizer joins the text of the chat format with contents such as 'red lamp'"
    ):
        ChatTemplate(cases.Tokenizer.pretrained(PREFIXED), *arguments)


def test_a_prompt_ends_in_a_users_message():
    template = cases.chat_template("chatml")
    with pytest.raises(DataError, match="must end with a user's message, the last one is of role 'assistant'"):
        template.encode_prompt([Message("user", "a"), Message("assistant", "b")])
    with pytest.raises(DataError, match="at least one message"):
        template.encode_prompt([])
    with pytest.raises(DataError, match="an input must begin with the opening of its chat format"):
        template.decode_prompt(template.encode_answer("red"))


# The format.


def test_a_format_comes_back_from_its_file(tmp_path):
    format = cases.chat_format("llama3")
    format.save(tmp_path / "template.json")
    again = ChatFormat.load(tmp_path / "template.json")
    assert (again, again.hash) == (format, format.hash)
    (tmp_path / "template.json").write_text('{"source": "x"}')
    with pytest.raises(DataError, match=r"template\.json: is not a chat format"):
        ChatFormat.load(tmp_path / "template.json")


def test_a_template_renders_as_transformers_does():
    source = (
        "{% for turn in messages %}\n    {% generation %}\n{{ turn.content | tojson }}{% endgeneration %}\n"
        "    {% if loop.index0 == 1 %}{% break %}{% endif %}\n{% endfor %}\n"
        "{{ strftime_now('%Y') }}{{ bos_token }}{{ absent }}{{ tools }}"
    )
    format = ChatFormat(source, {"bos_token": "<s>"}, (), "2024-07-26")
    turns = [Message("user", "<é>"), Message("assistant", "b"), Message("user", "c")]
    assert format.render(turns, opening=False) == '"<é>""b"2024<s>None'
    with pytest.raises(DataError, match="access to attribute '__class__' of 'str' object is unsafe"):
        ChatFormat("{{ ''.__class__.mro() }}", {}, ()).render(turns, opening=False)
    with pytest.raises(DataError, match="access to attribute 'append' of 'list' object is unsafe"):
        ChatFormat("{{ messages.append(1) }}", {}, ()).render(turns, opening=False)


def test_another_request_makes_another_tree_of_the_same_contents():
    one, two = cases.chat_template("chatml"), cases.chat_template("chatml", request="Once more.")
    assert one.hash == two.hash
    assert one.facts != two.facts
    assert one.closings.reference != two.closings.reference
    assert one.closings.input == two.closings.input
    assert leaf_paths(quality(), [[[9]], [[8]], [[7]]], 0, one.closings) == leaf_paths(
        quality(), [[[9]], [[8]], [[7]]], 0, two.closings
    )
    assert np.isin(one.tokenizer.encode_format(cases.REQUEST), one.closings.reference).all()
