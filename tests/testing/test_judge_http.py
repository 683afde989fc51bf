"""`pit check URL` over sockets: both orders, an unfair judge, replies that say nothing, errors, stalls, no server."""

import contextlib
import http.server
import json
import re
import threading

import pytest
from click.testing import CliRunner

from pit import chat_client
from pit.chat_client import ChatClient, ChatError
from pit.testing import judge
from pit.testing.command import check

PAIRS = [
    ("Why?", "Because of the long night.", "So."),
    ("How?", "With a small lamp.", "No."),
    ("Who?", "It was I.", "X"),
]
WORDS = ["--data", "pairs.jsonl", "--examples", "1", "--invariant", "deterministic", "--invariant", "accuracy"]


def longer(a, b):
    return json.dumps({"better": "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"})


class Judge:
    """A chat server; `reply` is a function of A, B and the number of the request, and returns a text or a status.

    seen: pairs (A, B) in the order of their requests.
    held: requests that were left without an answer until the end.
    """

    def __init__(self, reply):
        self.reply, self.seen, self.over, self.held = reply, [], threading.Event(), 0

    @contextlib.contextmanager
    def serving(self):
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(200, {"data": [{"id": "judge-1"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert (body["model"], body["temperature"]) == ("judge-1", 0)
                shown = json.loads(body["messages"][1]["content"])
                owner.seen.append((shown["A"], shown["B"]))
                reply = owner.reply(shown["A"], shown["B"], len(owner.seen))
                if reply is None:
                    owner.held += 1
                    owner.over.wait(20)
                elif isinstance(reply, int):
                    self.answer(reply, {"error": {"message": "out of order"}})
                else:
                    self.answer(200, {"choices": [{"message": {"content": reply}}], "usage": {}})

            def answer(self, status, value):
                content = json.dumps(value).encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
            thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"http://127.0.0.1:{listener.server_address[1]}/v1"
            finally:
                self.over.set()
                listener.shutdown()
                thread.join()


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Work in a folder with pairs, with a client that waits for little."""
    lines = [json.dumps({"prompt": p, "chosen": c, "rejected": r}) for p, c, r in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(chat_client, "_FIRST_WAIT_S", 0.0)

    class Impatient(ChatClient):
        def __init__(self, *words, **more):
            super().__init__(*words, **{"timeout_s": 0.5, "attempts": 2, **more})

    monkeypatch.setattr(judge, "ChatClient", Impatient)


def checked(server):
    with server.serving() as url:
        return CliRunner().invoke(check, [url, *WORDS])


def test_a_fair_judge_is_shown_each_pair_in_both_orders():
    server = Judge(lambda a, b, number: longer(a, b))
    result = checked(server)
    assert result.exit_code == 0, result.output
    assert re.search(r"accuracy .* 1\.000 \[", result.output)
    for _, better, worse in PAIRS:
        assert {(better, worse), (worse, better)} <= set(server.seen)


def test_a_judge_that_prefers_a_place_knows_nothing():
    result = checked(Judge(lambda a, b, number: '{"better": "A"}'))
    assert re.search(r"accuracy .* 0\.500 \[", result.output), result.output


def test_replies_that_say_nothing_are_ties_and_counted():
    result = checked(Judge(lambda a, b, number: "Both have their merits."))
    assert re.search(r"accuracy .* 0\.500 \[", result.output), result.output
    assert re.search(r"(\d+) of \1 replies of the judge could not be read, and count as ties", result.output)


def test_an_error_of_the_server_is_tried_again():
    server = Judge(lambda a, b, number: 500 if server.seen.count((a, b)) == 1 else longer(a, b))
    result = checked(server)
    assert result.exit_code == 0, result.exception
    assert re.search(r"accuracy .* 1\.000 \[", result.output)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [(500, r"status 500.*out of order.*\(2 attempts\)"), (None, r"0\.5 s.*\(2 attempts\)"), (401, r"status 401")],
)
def test_a_server_that_gives_no_answer_ends_the_check_with_one_error(reply, reason):
    """Errors and stalls say nothing about the judge, so they are no verdict."""
    server = Judge(lambda a, b, number: reply)
    result = checked(server)
    assert isinstance(result.exception, ChatError)
    assert re.search(reason, str(result.exception)), str(result.exception)
    assert "\n" not in str(result.exception)
    assert "accuracy" not in result.output
    assert bool(server.held) == (reply is None)


def test_nobody_listens():
    result = CliRunner().invoke(check, ["http://127.0.0.1:9/v1", *WORDS])
    assert isinstance(result.exception, ChatError)
    assert "refused" in str(result.exception)
