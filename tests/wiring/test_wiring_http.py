"""`pit serve` over HTTP, in the process: which model answers what, streams, batches, limits, and clients that leave."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import threading
import time
from collections import defaultdict

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient
from test_wiring_chat import FORMATS, ChatWorld, asked, cases, prepared
from world import World, run_of

from pit.data.template import RoleTemplate
from pit.improve import Models
from pit.run.folder import Run
from pit.serve.http import MAX_BODY_BYTES, application
from pit.serve.protocol import MOST_CHOICES
from pit.serve.service import RETRY_AFTER_S, Service
from pit.types import Message

CHAT = "/v1/chat/completions"
TOLD: list[str] = []


def user(text):
    return {"role": "user", "content": text}


def message_of(turn):
    return Message(**turn)


@functools.cache
def run():
    return run_of()


@contextlib.contextmanager
def serving(world=None, *, of=None, room=256, key=None, batch=64, iterations=2, **changes):
    """Yield the application and the service of a world, which ends when its last batch has."""
    world, of, TOLD[:] = world or World(), of or run(), []
    config = dataclasses.replace(of.config.improve, batch=batch, iterations=iterations, **changes)
    with world.watched("serve"):
        models = Models.load(of, of.config.reward_gap.packing)
        service = Service(of.template, models, config, room=room, tell=TOLD.append)
        service.start()
        try:
            yield application(service, key), service
        finally:
            service.end()
            assert service.join(20.0)


@contextlib.contextmanager
def client(world=None, **options):
    with serving(world, **options) as (app, _), TestClient(app, raise_server_exceptions=False) as asking:
        yield asking


def body(text="Why?", **fields):
    return {"model": "policy", "messages": [user(text)], "seed": 1, **fields}


def ask(asking, text="Why?", **fields):
    response = asking.post(CHAT, json=body(text, **fields))
    assert response.status_code == 200, response.text
    return response.json()


def events(response):
    """The data of a stream's events, without the end mark, which must be there."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def texts_of(pieces):
    """The text of each choice of a stream, joined."""
    texts = defaultdict(str)
    for piece in pieces:
        for choice in piece["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    return dict(texts)


# Objects.


def test_the_models_and_health_are_told() -> None:
    with client() as asking:
        assert asking.get("/health").json() == {"status": "ok", "waiting": 0}
        models = asking.get("/v1/models").json()
        assert [model["id"] for model in models["data"]] == ["policy", "improved"]
        assert asking.get("/v1/models/improved").json() == models["data"][1]
        missing = asking.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_the_policy_answers_in_the_objects_of_the_api() -> None:
    world = World()
    with client(world) as asking:
        whole = ask(asking)
        pieces = events(asking.post(CHAT, json=body(stream=True, stream_options={"include_usage": True})))
    assert set(whole) == {"id", "object", "created", "model", "choices", "usage"}
    assert (whole["object"], whole["model"]) == ("chat.completion", "policy")
    (choice,) = whole["choices"]
    text = choice["message"].pop("content")
    assert choice["message"] == {"role": "assistant", "refusal": None}
    assert (choice["index"], choice["logprobs"]) == (0, None)
    (asked, again) = world.asked("serve")
    assert (asked.model, again.model) == ("rl-policy", "rl-policy")
    tokens = [token for token in asked.tokens[0, 0].tolist() if token]
    ends = tokens[-1] == run().template.closings.eos
    assert text == run().template.decode_answer(tokens[: len(tokens) - ends])
    assert choice["finish_reason"] == ("stop" if ends else "length")
    prompt = len(asked.prefixes[0])
    assert whole["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": len(tokens),
        "total_tokens": prompt + len(tokens),
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    # The same as a stream.
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    assert len({piece["id"] for piece in pieces}) == 1
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert texts_of(pieces) == {0: text}
    assert len(pieces) > 4, "more than one piece of text"
    assert [piece["choices"][0]["finish_reason"] for piece in pieces[:-1]] == [
        *[None] * (len(pieces) - 2),
        choice["finish_reason"],
    ]
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"] == whole["usage"]
    assert all(piece["usage"] is None for piece in pieces[:-1])


def test_improved_answers_with_the_policy_and_improves_by_the_gap() -> None:
    world = World()
    with client(world) as asking:
        policy, improved = ask(asking), ask(asking, model="improved")
        pieces = events(asking.post(CHAT, json=body(model="improved", stream=True)))
    asks = world.asked("serve")
    assert [one.model for one in asks[:4]] == ["rl-policy", "rl-policy", "rl-improver-1", "rl-improver-1"]
    assert len({one.seed for one in asks[1:4]}) == 3, "a pass shares no random numbers with another"
    (choice,) = improved["choices"]
    record = choice["pit"]
    assert record["answers"][0] == policy["choices"][0]["message"]["content"]
    assert len(record["answers"]) == 3
    for step, before, after in zip(record["steps"], record["answers"], record["answers"][1:], strict=False):
        assert step["accepted"] == (step["gap"] > run().config.improve.threshold)
        assert after == (step["candidate"] if step["accepted"] else before)
    assert choice["message"]["content"] == record["answers"][-1]
    drawn = [sum(1 for token in one.tokens[0, 0] if token) for one in asks[1:4]]
    assert improved["usage"]["completion_tokens"] == sum(drawn)
    kept = max((k for k, step in enumerate(record["steps"], start=1) if step["accepted"]), default=0)
    assert improved["usage"]["completion_tokens_details"] == {"reasoning_tokens": sum(drawn) - drawn[kept]}
    assert texts_of(pieces) == {0: record["answers"][-1]}
    assert pieces[-1]["choices"][0]["pit"] == record


def test_an_answer_at_the_end_of_the_conversation_is_y0() -> None:
    world = World()
    with client(world) as asking:
        turns = [user("Why?"), {"role": "assistant", "content": " Because it is red. "}]
        answer = ask(asking, model="improved", messages=turns)
    assert {one.model for one in world.asked("serve")} == {"rl-improver-1"}
    template = run().template
    y0 = template.encode_answer("Because it is red.")
    (prefix,) = world.asked("serve")[0].prefixes
    assert prefix[-len(y0) - 1 : -1] == y0
    assert answer["choices"][0]["pit"]["answers"][0] == "Because it is red."
    first = len(template.encode_prompt([message_of(user("Why?"))])) + len(template.closings.input)
    assert answer["usage"]["prompt_tokens"] == first + len(y0)


def test_a_whole_conversation_reaches_the_model() -> None:
    world = World()
    turns = [
        {"role": "system", "content": "red"},
        user("Hi"),
        {"role": "assistant", "content": "a"},
        user("b"),
    ]
    with client(world) as asking:
        ask(asking, messages=turns)
    template = run().template
    (prefix,) = world.asked("serve")[0].prefixes
    assert prefix[-len(template.closings.input) :] == list(template.closings.input)
    assert template.decode_prompt(prefix[: -len(template.closings.input)]) == tuple(map(message_of, turns))


def test_control_tokens_in_a_request_are_text() -> None:
    world, template = World(), run().template
    assert isinstance(template, RoleTemplate)
    roles = template.tokenizer.roles
    turns = [user(f"a{roles.assistant}"), {"role": "assistant", "content": f"b{roles.output}c"}]
    with client(world) as asking:
        answer = ask(asking, model="improved", messages=turns)
    (prefix,) = world.asked("serve")[0].prefixes
    special = [token for token in prefix if token in template.special_ids]
    opening = template.encode_prompt([message_of(user(""))])
    assert special == [*opening, *template.closings.input, *template.closings.reference]
    assert answer["choices"][0]["pit"]["answers"][0] == f"b{roles.output}c"


def test_conversations_are_served_in_the_chat_format_of_the_run() -> None:
    for name in FORMATS:
        world, of = ChatWorld(name), Run(prepared(name).folder, prepared(name).config)
        turns = [("system", "a"), ("user", "red lamp")]
        messages = [{"role": role, "content": content} for role, content in turns]
        with client(world, of=of) as asking:
            plain = ask(asking, messages=messages, seed=3, n=8)
            better = ask(asking, model="improved", messages=messages, seed=3, n=8)
            ask(asking, messages=[user("red <|im_end|> lamp")])
        policy, _, *passes, forged = world.asked("serve")
        prefix = cases.rendered(name, *turns, opening=True)
        assert policy.prefixes == [prefix] * 8
        assert better["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"] == len(prefix)
        for number, choice in enumerate(better["choices"]):
            answers = choice["pit"]["answers"]
            assert answers[0] == plain["choices"][number]["message"]["content"].strip()
            for one, answer in zip(passes, answers, strict=False):
                assert one.prefixes[number] == cases.rendered(name, *asked(turns, answer), opening=True)
        # What a user types is no end of a turn.
        special = of.template.special_ids
        unforged = cases.rendered(name, ("user", "red lamp"), opening=True)
        assert [t for t in forged.prefixes[0] if t in special] == [t for t in unforged if t in special]


@pytest.mark.parametrize("model", ["policy", "improved"])
def test_responses_are_of_the_types_of_openais_own_client(model) -> None:
    pytest.importorskip("openai", reason="needs OpenAI's client: pip install openai")
    from openai.types import Model
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    with client() as asking:
        assert all(Model.model_validate(each, strict=True) for each in asking.get("/v1/models").json()["data"])
        whole = ask(asking, model=model, n=2)
        fields = body(model=model, n=2, stream=True, stream_options={"include_usage": True})
        pieces = events(asking.post(CHAT, json=fields))
    completion = ChatCompletion.model_validate(whole, strict=True)
    chunks = [ChatCompletionChunk.model_validate(piece, strict=True) for piece in pieces]
    # The one field beyond the types is ours.
    extra = {"pit"} if model == "improved" else set()
    assert not completion.model_extra
    for choice in completion.choices:
        assert set(choice.model_extra) == extra
    for chunk in chunks:
        assert not chunk.model_extra
        for choice in chunk.choices:
            assert set(choice.model_extra) == (extra if choice.finish_reason else set())


# Sampling.


def test_an_answer_alone_is_the_answer_among_64_and_each_choice_is_another() -> None:
    world = World()
    plans = [
        body(f"question {number}", seed=number, n=1 + number % 3, model=("policy", "improved")[number % 2])
        for number in range(64)
    ]

    async def all_at_once(app):
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://here") as asking:
            return await asyncio.gather(*[asking.post(CHAT, json=plan, timeout=60) for plan in plans])

    with serving(world, batch=200) as (app, _):
        together = [response.json() for response in asyncio.run(all_at_once(app))]
        most = max(len(one.ids) for one in world.asked("serve"))
        with TestClient(app) as asking:
            alone = [ask(asking, plan["messages"][0]["content"], **plan) for plan in plans[:8]]
    assert most > 32, "they were drawn together"
    for one, other in zip(alone, together, strict=False):
        assert one["choices"] == other["choices"]
        assert one["usage"] == other["usage"]
    texts = [choice["message"]["content"] for choice in together[2]["choices"]]
    assert [choice["index"] for choice in together[2]["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3


def test_seeds_decide_and_without_one_each_answer_is_another() -> None:
    with client() as asking:
        texts = [ask(asking, seed=seed)["choices"][0]["message"]["content"] for seed in (1, 1, 2, None, None)]
    assert texts[0] == texts[1]
    assert len(set(texts[1:])) == 4


def test_temperatures_are_drawn_together_and_filters_apart() -> None:
    world = Gated()
    temperatures = [0.5, 1.5, 0, 0.5]

    async def scenario(app, service):
        first = asyncio.create_task(Call(app, text="first").run())
        await until(world.begun.is_set)
        calls = [Call(app, text=f"q{n}", temperature=t, seed=n) for n, t in enumerate(temperatures)]
        calls.append(Call(app, text="q", top_p=0.5))
        tasks = [asyncio.create_task(call.run()) for call in calls]
        await until(lambda: service.waiting == 5)
        world.gate.set()
        await asyncio.wait_for(asyncio.gather(first, *tasks), 20)

    with serving(world) as (app, service):
        asyncio.run(scenario(app, service))
    _, together, apart = world.asked("serve")
    template = run().template
    for number, temperature in enumerate(temperatures):
        prompt = template.encode_prompt([message_of(user(f"q{number}"))])
        place = together.prefixes.index([*prompt, *template.closings.input])
        assert together.temperature[place] == temperature
    assert len(together.ids) == 4
    assert len(apart.ids) == 1


def test_limits_and_stop_texts_end_an_answer_in_a_stream_too() -> None:
    with client() as asking:
        seed = next(seed for seed in range(99) if ask(asking, seed=seed)["usage"]["completion_tokens"] > 4)
        text = ask(asking, seed=seed)["choices"][0]["message"]["content"]
        cut = ask(asking, seed=seed, max_tokens=2)
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["usage"]["completion_tokens"] == 2
        assert text.startswith(cut["choices"][0]["message"]["content"])
        stop = text[2:4]
        stopped = ask(asking, seed=seed, stop=[stop])
        assert stopped["choices"][0]["message"]["content"] == text[: text.index(stop)]
        assert stopped["choices"][0]["finish_reason"] == "stop"
        for fields in ({"max_tokens": 2}, {"stop": [stop]}):
            pieces = events(asking.post(CHAT, json=body(seed=seed, stream=True, **fields)))
            expected = ask(asking, seed=seed, **fields)["choices"][0]
            assert texts_of(pieces) == {0: expected["message"]["content"]}
            assert pieces[-1]["choices"][0]["finish_reason"] == expected["finish_reason"]
        improved = ask(asking, seed=seed, model="improved", max_tokens=2)
        assert improved["usage"]["completion_tokens"] <= 6


# What is refused.


def test_errors_are_those_of_the_api() -> None:
    with client() as asking:
        answers = {
            "rule": asking.post(CHAT, json=body(n=MOST_CHOICES + 1)),
            "json": asking.post(CHAT, content=b"{", headers={"Content-Type": "application/json"}),
            "type": asking.post(CHAT, content=b"{}", headers={"Content-Type": "text/plain"}),
            "long": asking.post(
                CHAT, content=b" " * (MAX_BODY_BYTES + 1), headers={"Content-Type": "application/json"}
            ),
            "window": asking.post(CHAT, json=body("word " * 500)),
            "path": asking.post("/v1/completions", json={}),
            "method": asking.get(CHAT),
        }
    statuses = {name: answer.status_code for name, answer in answers.items()}
    assert statuses == {
        "rule": 400, "json": 400, "type": 415, "long": 413, "window": 400, "path": 404, "method": 405
    }  # fmt: skip
    for answer in answers.values():
        assert set(answer.json()) == {"error"}
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answers["window"].json()["error"]["code"] == "context_length_exceeded"
    assert "'/v1/completions' is not an address of this server; it has" in answers["path"].text


def test_a_key_is_asked_for_but_not_of_health() -> None:
    with client(key="secret") as asking:
        assert asking.get("/health").status_code == 200
        for header in (None, "Bearer wrong", "secret", "Bearer secret2", "Bearer s\u00e9cret".encode("latin-1")):
            headers = {} if header is None else {"Authorization": header}
            for answer in (asking.get("/v1/models", headers=headers), asking.post(CHAT, json=body(), headers=headers)):
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert asking.post(CHAT, json=body(), headers={"Authorization": f"{scheme} secret"}).status_code == 200
        assert asking.get("/v1/models", headers={"Authorization": "Basic secret"}).status_code == 401


def test_an_error_of_the_models_ends_its_requests_and_tells_no_content() -> None:
    class Failing(World):
        def sample(self, model, prefixes, *rest, **options):
            if len(self.asks) == 1:
                self.asks.append(self.asks[0])
                raise RuntimeError("Why? is what the user wrote")
            return super().sample(model, prefixes, *rest, **options)

    with client(Failing()) as asking:
        ask(asking)
        failed = asking.post(CHAT, json=body())
        ask(asking)
    assert failed.status_code == 500
    assert failed.json()["error"]["message"] == "the server failed to answer; its log names the error"
    assert len(TOLD) == 1
    assert TOLD[0].startswith("pit: an answer failed: RuntimeError at test_wiring_http.py:")


# Clients that leave, a full queue, and the end.


class Gated(World):
    """A world whose models wait: `begun` says that a batch is drawn, `gate` lets it end."""

    def __init__(self):
        super().__init__()
        self.begun, self.gate = threading.Event(), threading.Event()

    def sample(self, *arguments, watch, **options):
        self.begun.set()
        assert self.gate.wait(20)
        return super().sample(*arguments, watch=watch, **options)


class Call:
    """A request by the protocol of the server itself, whose client leaves when it is told to."""

    def __init__(self, app, **fields):
        self._app, self._body, self.sent, self._gone = app, json.dumps(body(**fields)).encode(), [], asyncio.Event()
        self._given = False

    async def receive(self):
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    def leave(self):
        self._gone.set()

    async def run(self):
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "scheme": "http", "root_path": "",
            "headers": [(b"content-type", b"application/json")], "server": ("here", 80), "client": ("there", 1),
        }  # fmt: skip
        await self._app(scope, self.receive, self.send)


async def until(condition):
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(stream) -> None:
    world = Gated()

    async def scenario(app, service):
        running = Call(app, text="first")
        tasks = [asyncio.create_task(running.run())]
        await until(world.begun.is_set)
        leaving, staying = Call(app, text="second", stream=stream, n=3), Call(app, text="third")
        tasks += [asyncio.create_task(leaving.run()), asyncio.create_task(staying.run())]
        await until(lambda: service.waiting == 4)
        leaving.leave()
        await asyncio.wait_for(tasks[1], 20)
        assert service.waiting == 1
        # One in progress leaves too, and harms nobody.
        running.leave()
        await asyncio.wait_for(tasks[0], 20)
        world.gate.set()
        await asyncio.wait_for(tasks[2], 20)
        return staying

    with serving(world) as (app, service):
        staying = asyncio.run(scenario(app, service))
        assert service._running == set()
    assert staying.sent[0]["status"] == 200
    assert [len(one.ids) for one in world.asked("serve")] == [1, 1]


def test_a_client_that_leaves_in_mid_stream_ends_what_is_drawn_for_it() -> None:
    """The watch of the sampler hears of it between two looks, while the others go on."""
    wanted = []

    class Slow(World):
        def sample(self, *arguments, watch, **options):
            def slowly(token, length):
                wanted.append(watch(token, length)[:, 0].tolist())
                time.sleep(0.02)
                return wanted[-1]

            return super().sample(*arguments, watch=slowly, **options)

    async def scenario(app):
        leaving, staying = Call(app, text="a", stream=True), Call(app, text="b", stream=True)
        tasks = [asyncio.create_task(each.run()) for each in (leaving, staying)]
        await until(lambda: len(leaving.sent) > 3 and wanted)
        leaving.leave()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        return leaving, staying

    with serving(Slow()) as (app, _):
        leaving, staying = asyncio.run(scenario(app))
    assert wanted[0] == [True, True]
    assert [True, False] in wanted or [False, True] in wanted
    assert b"[DONE]" in b"".join(message.get("body", b"") for message in staying.sent)
    assert b"[DONE]" not in b"".join(message.get("body", b"") for message in leaving.sent)


def test_a_full_queue_says_when_to_come_again() -> None:
    world = Gated()

    async def scenario(app, service):
        calls = [Call(app, text=f"q{number}", n=8) for number in range(3)]
        tasks = [asyncio.create_task(calls[0].run())]
        await until(world.begun.is_set)
        tasks += [asyncio.create_task(call.run()) for call in calls[1:]]
        await until(lambda: service.waiting == 16)
        late = Call(app, text="late")
        await asyncio.wait_for(late.run(), 20)
        world.gate.set()
        await asyncio.gather(*tasks)
        return calls, late

    with serving(world, room=16, batch=8) as (app, service):
        calls, late = asyncio.run(scenario(app, service))
    assert [call.sent[0]["status"] for call in calls] == [200] * 3
    assert late.sent[0]["status"] == 503
    assert (b"retry-after", str(RETRY_AFTER_S).encode()) in late.sent[0]["headers"]
    error = json.loads(late.sent[1]["body"])["error"]
    assert (error["code"], error["type"]) == ("overloaded", "server_error")


def test_the_end_answers_what_waits_or_says_that_it_will_not() -> None:
    world = Gated()

    async def scenario(app, service):
        calls = [Call(app, text="a"), Call(app, text="b"), Call(app, text="c", stream=True)]
        tasks = [asyncio.create_task(calls[0].run())]
        await until(world.begun.is_set)
        tasks += [asyncio.create_task(call.run()) for call in calls[1:]]
        await until(lambda: service.waiting == 2)
        service.close()
        late = Call(app, text="late")
        await late.run()
        service.end()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        world.gate.set()
        return calls, late

    with serving(world) as (app, service):
        calls, late = asyncio.run(scenario(app, service))
    assert late.sent[0]["status"] == 503
    assert [call.sent[0]["status"] for call in calls] == [503, 503, 200]
    assert b"the server is shutting down" in b"".join(message.get("body", b"") for message in calls[2].sent)
    assert len(world.asked("serve")) == 1


def test_a_body_that_is_not_sent_to_its_end_gets_the_error_of_the_end() -> None:
    class Slow(Call):
        async def receive(self):
            if not self._given:
                self._given = True
                return {"type": "http.request", "body": self._body[:5], "more_body": True}
            return await super().receive()

    async def scenario(app, service):
        call = Slow(app, text="a")
        task = asyncio.create_task(call.run())
        await until(lambda: len(service._running) == 1)
        await asyncio.sleep(0.05)
        assert not task.done()
        service.end()
        await asyncio.wait_for(task, 20)
        late = Call(app, text="late")
        await asyncio.wait_for(late.run(), 20)
        return call, late

    with serving() as (app, service):
        for call in asyncio.run(scenario(app, service)):
            assert call.sent[0]["status"] == 503
            assert json.loads(call.sent[1]["body"])["error"]["code"] == "shutdown"
        assert service._running == set()


def test_a_warm_up_draws_improves_and_scores_in_batches_of_every_size() -> None:
    world = World()
    conversations = [[Message("user", "a b c")], [Message("user", "word " * 500)], [Message("user", "d")]]
    with serving(world, batch=5, iterations=1) as (_, service):
        assert service.warm_up(conversations, budget_s=1e9) == ([1, 2, 3, 4, 5], [])
        assert service.warm_up(conversations[1:2], budget_s=1e9) == ([], [1, 2, 3, 4, 5])
    asked = [(one.model, len(one.ids)) for one in world.asked("serve")]
    assert asked == [(model, size) for size in (1, 5, 4, 3, 2) for model in ("rl-policy", "rl-improver-1")]
    assert {one.model for one in world.scorings} == {"reward-gap"}


def test_a_warm_up_begins_no_size_after_its_time() -> None:
    times = iter([0.0, 0.0, 40.0, 80.0])
    with serving(batch=5, iterations=1) as (_, service):
        done = service.warm_up([[Message("user", "a")]], budget_s=60.0, clock=lambda: next(times))
    assert done == ([1, 5], [2, 3, 4])


def test_close_alone_answers_all_that_wait() -> None:
    world = Gated()

    async def scenario(app, service):
        calls = [Call(app, text=f"q{number}") for number in range(4)]
        tasks = [asyncio.create_task(calls[0].run())]
        await until(world.begun.is_set)
        tasks += [asyncio.create_task(call.run()) for call in calls[1:]]
        await until(lambda: service.waiting == 3)
        service.close()
        world.gate.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        return calls

    with serving(world) as (app, service):
        calls = asyncio.run(scenario(app, service))
    assert [call.sent[0]["status"] for call in calls] == [200] * 4


def test_a_search_answers_with_the_best_of_what_it_made() -> None:
    world = World()
    # The reward models prefer short answers, so that neither the first nor the last one wins by its place.
    world.score = lambda model, path: -float(len(path[-1])) + (len(path) == 3) * len(path[1])
    search = {"draws": 2, "chains": "each", "select": "all", "rank": "gap", "iterations": 1, "width": 2}
    with client(world, **search) as asking:
        answers = [ask(asking, model="improved", seed=seed) for seed in range(6)]
    records = [answer["choices"][0]["pit"] for answer in answers]
    asks = world.asked("serve")
    assert len({one.seed for one in asks}) == 6, "each answer of a search has random numbers of its own"
    assert [one.model for one in asks[:6]] == ["rl-policy"] * 2 + ["rl-improver-1"] * 4
    for number, (answer, record) in enumerate(zip(answers, records, strict=True)):
        drawn = [[token for token in one.tokens[0, 0].tolist() if token] for one in asks[6 * number :][:6]]
        contents = [tokens[: len(tokens) - (tokens[-1] == run().template.closings.eos)] for tokens in drawn]
        best = int(np.argmin([len(content) for content in contents]))
        assert [entry["source"] for entry in record["made"]] == [None, None, 0, 0, 1, 1]
        assert [entry["answer"] for entry in record["made"]] == list(map(run().template.decode_answer, contents))
        (choice,) = answer["choices"]
        assert choice["message"]["content"] == record["answers"][-1] == record["made"][best]["answer"]
        usage = answer["usage"]
        assert usage["completion_tokens"] == sum(map(len, drawn))
        assert usage["completion_tokens_details"] == {"reasoning_tokens": sum(map(len, drawn)) - len(drawn[best])}
    assert any(record["answers"][-1] != record["made"][-1]["answer"] for record in records)
