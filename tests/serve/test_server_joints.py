"""What `pit serve` is told reaches the parts that obey it: the key, the queue, the time after a signal."""

from types import SimpleNamespace
from unittest import mock

import pytest

from pit.run.folder import Run
from pit.serve import server


@pytest.mark.parametrize(("key", "room", "drain_s", "warm"), [("secret", 17, 2.5, False), (None, 300, 0.0, True)])
def test_guards_reach_the_parts_that_obey_them(monkeypatch, key, room, drain_s, warm):
    """Only a server that others can reach shows a dropped key, so it is watched here."""
    made = {}
    run = mock.MagicMock(spec=Run)
    run.template, run.config, run.folder = object(), SimpleNamespace(reward_gap=SimpleNamespace(packing=None)), "runs/a"
    service = SimpleNamespace(start=lambda: None, close=lambda: None, join=lambda seconds: True)
    config = SimpleNamespace(batch=4)

    class Listening:
        def __init__(self, *parts):
            made["server"] = parts

        def run(self, sockets):
            self.on_start()

    monkeypatch.setattr(server, "config_of", lambda *parts: config)
    monkeypatch.setattr(server.Models, "load", lambda *parts, **more: "models")
    monkeypatch.setattr(server, "Service", lambda *parts, **more: made.update(service=(parts, more)) or service)
    monkeypatch.setattr(server, "application", lambda *parts: made.update(application=parts) or "app")
    monkeypatch.setattr(server, "_Server", Listening)
    monkeypatch.setattr(server, "_warm_up", lambda *parts: made.update(warmed=parts))
    lines = []
    server.serve(run, {}, server.Address("127.0.0.1", 0, key, room, drain_s), warm=warm, tell=lines.append)
    parts, more = made["service"]
    assert (*parts, more["room"]) == (run.template, "models", config, room)
    assert made["application"] == (service, key)
    assert made["server"] == (service, "app", drain_s)
    assert ("warmed" in made) == warm
    assert len(lines) == 1
    assert lines[0].startswith("serves runs/a at http://127.0.0.1:")
