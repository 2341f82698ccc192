"""``stats --engine``: keys, refusals, and answers that are no statistics."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

STATS = {"predictor": "survival", "total_predictions": 5, "mode": "shadow"}
KEY = "VLLM_API_KEY"


@contextmanager
def serving(answer):
    """A server; ``answer(headers)`` gives status, headers and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = answer(self.headers)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


def guarded(headers):
    if headers["Authorization"] != "Bearer s3cret":
        return 401, {}, b'{"error": "Unauthorized"}'
    return 200, {}, json.dumps(STATS).encode()


def test_a_key_is_asked_for_and_sent(cli, refused, monkeypatch):
    with serving(guarded) as engine:
        at = ("stats", "--engine", engine)
        line = refused(*at)
        assert line.endswith(f"wants an API key: set {KEY}, or give --api-key KEY\n")
        assert "Total Predictions: 5" in cli(*at, "--api-key", "s3cret").out
        assert refused(*at, "--api-key", "wr0ng").endswith("refuses this API key\n")
        monkeypatch.setenv(KEY, "s3cret")
        assert "Total Predictions: 5" in cli(*at).out
        assert "refuses this" in refused(*at, "--api-key", "wr0ng")  # what is given counts
        monkeypatch.setenv(KEY, "")
        assert "wants an API key" in refused(*at)


@pytest.mark.parametrize("key", ["s3cret\r\nX: y", "s3cret\n", "s3cret\u20ac", "s3cret\x7f"])
def test_a_key_that_cannot_be_sent_is_not_shown(refused, key):
    with serving(guarded) as engine:
        said = refused("stats", "--engine", engine, "--api-key", key)
    assert said.startswith("error: the API key has ")
    assert "s3cret" not in said


def test_a_key_without_an_engine(refused):
    assert "--api-key needs --engine" in refused("stats", "--api-key", "x")


def test_a_key_is_not_sent_to_another_server(cli, monkeypatch):
    monkeypatch.setenv(KEY, "s3cret")
    seen = []

    def other(headers):
        seen.append(headers["Authorization"])
        return 200, {}, json.dumps(STATS).encode()

    with serving(other) as target:
        moved = {"Location": f"{target}/lifetime/stats"}
        with serving(lambda _: (302, moved, b"")) as engine:
            assert cli("stats", "--engine", engine).code == 0
    assert seen == [None]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((503, b'{"error": "no engine core has written\\u001b[2J"}'), "503: no engine core has"),
        ((500, b"<html>"), "answers 500: is lifetime prediction on"),
        ((404, b"[" * 100_000), "answers 404: is lifetime prediction on"),
        ((404, b'{"error": 5}'), "answers 404: is lifetime prediction on"),
        ((404, b'["error"]'), "answers 404: is lifetime prediction on"),
        ((500, json.dumps({"error": "x" * 100_000}).encode()), "answers 500: xxx"),
        ((200, b"[" * 100_000), "does not answer with statistics"),
        ((200, b"null"), "does not answer with statistics"),
        ((200, b""), "does not answer with statistics"),
        ((200, b"{" + b" " * 2_000_000 + b"}"), "does not answer with statistics"),
    ],
)
def test_an_answer_that_is_no_statistics(refused, answer, told):
    status, body = answer
    with serving(lambda _: (status, {}, body)) as engine:
        said = refused("stats", "--engine", engine)
    assert told in said
    assert "\x1b" not in said
    assert len(said) < 500


@pytest.mark.parametrize(
    "fields",
    [
        {"breaker_reason": "slow"},
        {"overhead_seconds": 1.0, "steps": "many", "step_seconds": [1]},
        {"overhead_seconds": 10**400, "steps": 10**400, "step_seconds": True},
        {"recorded": {}, "record_lost": [], "record_waiting": "x", "record_replaced": 10**400},
        {"unreadable": 5, "faults": {"a": "b"}, "decisions": {"x": [1]}},
        {"mode": {}, "policy": [1], "breaker": None, "learning": True},
        {"decisions": {"act": {"admissions": "x", "overtaken": 0}, "shadow": [1]}},
        {"decisions": {"act": 5, "shadow": {"recomputed_tokens": 10**400}}},
        {"switchback": {"running": 1, "period_s": [], "effects": {"a": 1, "b": {"low": "x"}}}},
        {"switchback": [], "outlook": {"running_tokens": 5, "waiting_tokens": {}}},
        {"switchback": {"effects": []}, "outlook": "x"},
    ],
)
def test_fields_of_another_type(cli, fields):
    with serving(lambda _: (200, {}, json.dumps({**STATS, **fields}).encode())) as engine:
        done = cli("stats", "--engine", engine)
    assert done.code == 0
    assert "Total Predictions: 5" in done.out


def test_what_was_done_and_what_it_bought_is_shown(cli):
    act = {"admissions": 1200, "admissions_reordered": 300, "overtaken": 40,
           "overtaken_seconds": 60,
           "longest_overtaken_seconds": 4.25, "preemptions": 9, "preemptions_differing": 7,
           "recomputed_tokens": 4000, "held_back_block_seconds": 12.5}  # fmt: skip
    effect = {"unit": "s", "off": 4.0, "act": 3.5, "difference": -0.5, "low": -0.75, "high": -0.25,
              "p_value": 0.01, "pairs": 9}  # fmt: skip
    shadow = {"recomputed_tokens": 10, "held_back_block_seconds": 0}
    more = {
        "decisions": {"act": act, "shadow": shadow},
        "switchback": {"running": True, "arm": "act", "period_s": 600.0, "pairs": 9,
                       "effects": {"latency": effect,
                                   "throughput": {**effect, "unit": "tokens/s", "off": 3490.4,
                                                  "act": 10_250.2},
                                   "first_token": {**effect, "low": None, "high": None}}},
        "outlook": {"running_tokens": {"expected": 2040.0, "p90": 2410.0},
                    "waiting_tokens": {"expected": 0.0, "p90": 0.0}, "retry_after_s": 5},
    }  # fmt: skip
    with serving(lambda _: (200, {}, json.dumps({**STATS, **more}).encode())) as engine:
        lines = cli("stats", "--engine", engine).out.splitlines()
    assert {
        "  Act Admissions: 1,200, 300 before an earlier one",
        "  Act Overtaken: 40, by 1.5 s on average, 4.2 s at most",
        "  Act Preemptions: 9, 7 not vLLM's choice",
        "  Act Costs: 4,000 tokens recomputed, 12 block-seconds held back",
        "  Shadow Costs: 10 tokens recomputed, 0 block-seconds would be held back",
        "  Switchback: act now, blocks of 600 s, 9 pairs",
        "    latency: off 4, act 3.5 s; difference -0.5 (95 % -0.75 to -0.25)",
        "    throughput: off 3,490, act 10,250 tokens/s; difference -0.5 (95 % -0.75 to -0.25)",
        "    first token: off 4, act 3.5 s; difference -0.5 (an interval needs 6 pairs)",
        "  Outlook: 2,040 tokens of what is running (p90 2,410), "
        "0 tokens of what is waiting (p90 0), a place within 5 s (p90)",
    } <= set(lines)


def test_what_waits_and_what_cannot_be_read_is_shown(cli):
    more = {"recorded": 7, "record_lost": 0, "record_waiting": 3, "record_replaced": 1,
            "unreadable": ["engine-1: not JSON"]}  # fmt: skip
    with serving(lambda _: (200, {}, json.dumps({**STATS, **more}).encode())) as engine:
        lines = cli("stats", "--engine", engine).out.splitlines()
    assert "  Recorded: 7 (0 lost, 3 waiting, 1 values left out)" in lines
    assert "  Unreadable Statistics: engine-1: not JSON" in lines
