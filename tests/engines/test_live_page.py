"""The live page in a headless browser, over the statistics of a real scheduler."""

import json

import pytest
from engine_help import Engine, fitted, mixed_load
from headless import Browser, chromium_path
from route_help import http_server, request

from sagellm_lifetime.vllm.live_view import MOST, clean

HOSTILE = "<img src=x onerror=alert(1)>\u202e'\"&"
NO_BROWSER = "needs Chromium: apt-get install chromium"
PHONE, DESK = (360, 740), (1200, 900)


@pytest.fixture
def server():
    with http_server() as made:
        yield made


@pytest.fixture
def browser():
    path = chromium_path()
    if path is None:
        pytest.skip(NO_BROWSER)
    with Browser(path) as made:
        yield made


@pytest.fixture
def engine(tmp_path):
    """An engine under load: sequences run and wait, and some have ended."""
    made = Engine().predict_with(fitted(), mode="shadow", state=str(tmp_path))
    made.folder = tmp_path
    yield loaded(made)
    made.scheduler.shutdown()


def loaded(made):
    mixed_load(made, n=30, steps=4)
    made.run(30)
    for i in range(24):
        name = "long" if i % 3 == 0 else "short"
        made.add(120 if i % 3 == 0 else 8, prompt=40, extra_args={"client_id": name})
    made.add(8, prompt=40, name=f"r-{HOSTILE}", extra_args={"client_id": HOSTILE})
    made.run(2)
    made.scheduler._service._jobs.round()
    return made


def live(engine):
    status, _, body = request(engine.folder, "GET", "/lifetime/stats", query=b"live=1")
    assert status == 200
    return json.loads(body)["engines"][0]["live"]


def cells(browser, table):
    """Return the texts of a table's cells, row by row."""
    script = (
        f"[...document.querySelectorAll('#{table} tr')]"
        ".map(r => [...r.cells].map(c => c.textContent))"
    )
    return browser.value(script)


# -- what is published -------------------------------------------------------------------------


def test_the_view_is_the_schedulers(engine):
    shown, scheduler = live(engine), engine.scheduler
    assert shown["running_now"] == len(scheduler.running) > 1
    assert shown["waiting_now"] == len(scheduler.waiting) > 1
    for row, found in zip(shown["running"], scheduler.running, strict=True):
        assert row["id"] == clean(found.request_id)
        assert row["generated"] == found.num_output_tokens
        assert row["low"] <= row["expected"] <= row["high"]
        assert row["expected"] > row["generated"]
    assert len(shown["ended"]) == engine.stats()["scored"]
    assert sum(shown["positions"]) == len(shown["ended"])
    assert sum(group[0] for group in shown["by_confidence"]) == len(shown["ended"])
    text = json.dumps(shown)
    assert "prompt_token_ids" not in text
    assert "token_ids" not in text


def test_the_queue_is_in_our_order_in_either_mode(engine):
    advisor = engine.advisor
    shadow = live(engine)["queue"]
    by_arrival = [row["arrived_as"] for row in shadow]
    assert sorted(by_arrival) == list(range(1, len(by_arrival) + 1))
    assert by_arrival != sorted(by_arrival)  # vLLM's order is another
    advisor.set_mode("act")
    engine.run(1)
    engine.scheduler._service._jobs.round()
    names = [row["id"] for row in live(engine)["queue"]]
    assert names == [clean(waiting.request_id) for waiting in engine.scheduler.waiting][:MOST]


def test_present_sequences_are_shown_only_where_asked_for(engine):
    _, _, body = request(engine.folder, "GET", "/lifetime/stats")
    assert "live" not in json.loads(body)["engines"][0]
    assert b"r-" not in body


def test_an_idle_engine_shows_nothing(engine):
    engine.run()
    engine.scheduler._service._jobs.round()
    shown = live(engine)
    assert (shown["running"], shown["queue"]) == ([], [])


# -- the page --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_page_is_behind_the_key(tmp_path, method):
    for headers, status in (((), 401), ([(b"authorization", b"Bearer k")], 200)):
        found, more, body = request(tmp_path, method, "/lifetime", headers=headers, api_key=["k"])
        assert found == status
        assert more[b"content-type"].startswith(b"text/html")
        assert b"default-src 'none'" in more[b"content-security-policy"]
        assert bool(body) == (method == "GET")
    assert request(tmp_path, "POST", "/lifetime")[0] == 405


@pytest.mark.slow
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_shows_what_there_is(server, browser, engine, size, dark):
    server.folder = engine.folder
    browser.look(*size, dark=dark)
    browser.open(server.url)
    browser.until("document.querySelectorAll('#running tr').length > 1")
    shown = live(engine)
    for table in ("running", "queue"):
        found = cells(browser, table)
        names = [row[0 if table == "running" else 2] for row in found]
        assert names == [row["id"] for row in shown[table]]
    assert len(cells(browser, "decisions")) >= 4
    dots = browser.value("document.querySelectorAll('#actual circle').length")
    assert dots == len(shown["ended"])
    assert browser.value("document.querySelectorAll('#positions rect').length") == 10
    # Nothing of a client's became an element, and nothing came from anywhere else.
    assert clean(HOSTILE) in browser.value("document.getElementById('main').textContent")
    assert browser.value("document.images.length") == 0
    assert all(url.startswith((server.url, "data:")) for url in browser.requested)
    wide = "document.documentElement.scrollWidth"
    assert browser.value(wide) == size[0]
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") != dark
    assert browser.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_follows_without_a_shift(server, browser, engine, size):
    server.folder = engine.folder
    browser.look(*size)
    browser.open(server.url)
    browser.until("document.querySelectorAll('#running tr').length > 1")
    browser.value(
        "window.moved = 0; new PerformanceObserver(l => l.getEntries().forEach("
        "e => window.moved += e.value)).observe({type: 'layout-shift', buffered: true}), 0"
    )
    for steps in (3, 10_000):
        engine.run(steps)
        engine.scheduler._service._jobs.round()
        waiting = len(live(engine)["queue"]) or "Nobody waits."
        browser.until(
            f"document.querySelectorAll('#queue tr').length == '{waiting}' || "
            f"document.getElementById('queue').textContent == '{waiting}'"
        )
    loaded(engine)
    browser.until("document.querySelectorAll('#running tr').length > 1")
    assert browser.value("window.moved") == 0
    assert browser.errors == []


MORE = {
    "decisions": {
        "admission": [8, 2],
        "preemption": [0, 0],
        "act": {"admissions": 1200, "admissions_reordered": 300, "held_back_block_seconds": 12.5},
        "shadow": {"recomputed_tokens": 77, "held_back_block_seconds": 3.0},
    },
    "switchback": {
        "running": True, "period_s": 600.0, "arm": "act", "block_ends": 4e9, "pairs": 12,
        "effects": {
            "latency": {"unit": "s", "off": 4.2, "act": 3.7, "difference": -0.5,
                        "low": -0.8, "high": 0.2, "p_value": 0.002, "pairs": 12},
            "first_token": {},
            "throughput": {"unit": HOSTILE, "off": 1, "act": 2, "difference": 1,
                           "low": None, "high": None},
        },
    },
    "outlook": {
        "time": 1.0, "seconds_per_step": 0.02, "retry_after_s": 3,
        "running_tokens": {"expected": 1500.5, "p90": 2000.0},
        "done_s": {"p50": 4.0, "p95": 9.25},
        "place_within": {"1": 0.25, "5": 0.9},
    },
}  # fmt: skip
"""What a server also may answer."""


@pytest.mark.slow
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_shows_decisions_switchback_and_outlook(server, browser, engine, size):
    server.folder = engine.folder
    server.change = lambda body: (
        json.dumps({**json.loads(body), **MORE}).encode() if body[:1] == b"{" else body
    )
    browser.look(*size)
    browser.open(server.url)
    browser.until("document.querySelectorAll('#switchback tr').length == 2")
    assert ["admissions", "1,200", "–"] in cells(browser, "decisions")
    assert ["KV blocks held back × s", "12.50", "3"] in cells(browser, "decisions")
    assert cells(browser, "switchback") == [
        ["latency, s", "4.20", "3.70", "-0.500 (-0.800 … +0.200)"],
        [f"throughput, {HOSTILE}", "1", "2", "+1"],
    ]
    note = browser.value("document.getElementById('switchback-note').textContent")
    assert note.startswith("12 pairs of blocks so far; act is due for")
    assert ["tokens to generate, of what runs", "1,501", "2,000"] in cells(browser, "ahead")
    assert ["a newcomer runs within 5 s", "90 %", ""] in cells(browser, "ahead")
    assert browser.value("document.documentElement.scrollWidth") == size[0]
    assert browser.errors == []


@pytest.mark.slow
def test_the_page_survives_figures_that_are_not_as_they_should_be(server, browser, engine):
    server.folder = engine.folder
    wrong = {"decisions": [], "switchback": "x", "outlook": 3, "breaker": None, "mae": "1",
             "engines": [None, {"live": {"running": 3, "ended": [[None, 1]], "positions": "x"}}],
             "unreadable": "x"}  # fmt: skip
    server.change = lambda body: (
        json.dumps({**json.loads(body), **wrong}).encode() if body[:1] == b"{" else body
    )
    browser.open(server.url)
    browser.until("document.getElementById('main')?.hidden === false")
    assert cells(browser, "running") == [["Nothing runs."]]
    assert browser.errors == []


@pytest.mark.slow
def test_the_page_asks_for_the_key(server, browser, engine):
    server.folder, server.key = engine.folder, ["secret"]
    browser.open(server.url)
    browser.until("document.getElementById('key')?.hidden === false")
    enter = (
        "document.getElementById('token').value = '{}'; document.querySelector('button').click()"
    )
    browser.value(enter.format("wrong"))
    browser.until("document.getElementById('state').textContent == 'This is not the key.'")
    assert browser.value("document.getElementById('main').hidden")
    browser.value(enter.format("secret"))
    browser.until("document.getElementById('main')?.hidden === false")
    assert browser.value("document.getElementById('key').hidden")
    assert browser.value("location.href") == server.url


@pytest.mark.slow
def test_the_page_says_when_the_server_is_gone(server, browser, engine, tmp_path_factory):
    server.folder = engine.folder
    browser.open(server.url)
    browser.until("document.getElementById('main')?.hidden === false")
    server.folder = tmp_path_factory.mktemp("empty")
    browser.until("document.getElementById('state').className == 'bad'")
    assert "no engine core" in browser.value("document.getElementById('state').textContent")
    server.folder = engine.folder
    browser.until("document.getElementById('state').className == ''")
