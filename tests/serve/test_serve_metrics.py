"""Numbers for Prometheus, and the log of requests."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import ColourGallery, ask, photo, post, serving

from persona.cli.serve import _log_request
from persona.serve.metrics import Metrics

RED = photo((200, 40, 40))


def values(text: str) -> dict[str, float]:
    """The samples of a text in Prometheus' format, by name and labels."""
    return {
        sample.name + "".join(f" {label}" for label in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_counted_by_path_and_status_and_nobody_is_named() -> None:
    log: list[tuple[str, int, float]] = []
    with serving(ColourGallery(), log=lambda *seen: log.append(seen)) as port:
        post(port, "/api/enroll", ("name", "Ada Lovelace"), ("photo", RED))
        post(port, "/api/recognise", ("photo", RED))
        refused = post(port, "/api/recognise", ("photo", b"no photo"))
        ask(port, "/api/people/Ada")
        ask(port, "/api/no-such-thing-1")
        answer = ask(port, "/metrics")
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()
    found = values(text)
    assert found["persona_requests_total /api/enroll 200"] == 1
    assert found["persona_requests_total /api/recognise 200"] == 1
    assert found[f"persona_requests_total /api/recognise {refused.status}"] == 1
    assert found["persona_requests_total other 404"] == 2
    assert found["persona_request_seconds_count /api/recognise"] == 2
    assert found["persona_places_taken"] == 0 and found["persona_places"] > 2
    assert not re.search(r"Ada|no-such|127\.0\.0\.1", text)
    known = ["/api/enroll", "/api/recognise", "/api/recognise"]
    assert [path for path, _, _ in log] == [*known, "other", "other", "/metrics"]
    assert all(seconds > 0 for *_, seconds in log)


def test_the_numbers_want_the_token_too() -> None:
    with serving(ColourGallery(), token="right-token") as port:
        assert ask(port, "/metrics").status == 401
        answer = ask(port, "/metrics", authorization="Bearer right-token")
        assert values(answer.body.decode())["persona_requests_total /metrics 401"] == 1


def test_places_are_those_of_the_moment() -> None:
    taken = [0]
    metrics = Metrics(["/a"], taken=lambda: taken[0], places=12)
    assert values(metrics.text().decode())["persona_places_taken"] == 0
    taken[0] = 5
    assert values(metrics.text().decode())["persona_places_taken"] == 5
    metrics.add("/a", 503, 0.2)
    buckets = values(metrics.text().decode())
    assert buckets["persona_request_seconds_bucket 0.1 /a"] == 0
    assert buckets["persona_request_seconds_bucket 0.25 /a"] == 1


def test_a_request_is_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    _log_request("/api/people", 200, 0.01234)
    out, line = capsys.readouterr()
    assert out == "" and line.endswith("\n")
    told = json.loads(line)
    assert (told["path"], told["status"], told["ms"]) == ("/api/people", 200, 12.3)
    assert told["time"].endswith("+00:00")
