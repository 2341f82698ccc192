"""The live page, the metrics and the stop of a real server, with a model of random weights."""

import json
import re
import signal
import threading
from pathlib import Path

import pytest
import yaml
from headless import Browser, chromium_path
from test_end_to_end import LEARNED, ONLY_A, Server, lessons_in
from tiny_model import make_model

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
METRIC = re.compile(r"(?:lifetime_predictor_|vllm:)\w+")
HOSTILE = "<script>alert(1)</script>"
pytestmark = [pytest.mark.server, pytest.mark.usefixtures("vllm")]


@pytest.fixture(scope="module")
def server(vllm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    make_model(folder / "model")
    # What was learned is saved by itself after a day: only a stop saves it sooner.
    rare = json.dumps({"lifetime": {"learn_every_s": 86_400.0}})
    made = Server(
        folder, "--enable-lifetime-prediction", "--enable-online-learning",
        "--additional-config", rare,
        # Another test in this process may have asked vLLM to be quiet.
        env={"VLLM_LOGGING_LEVEL": "INFO"},
    )  # fmt: skip
    made.folder = folder
    try:
        yield made.wait()
    finally:
        made.stop()


@pytest.fixture
def load(server):
    """Ask for more than runs at once, until the test is over."""
    is_over = threading.Event()

    def ask():
        while not is_over.is_set():
            server.complete(max_tokens=150, ignore_eos=True, vllm_xargs={"client_id": HOSTILE})

    threads = [threading.Thread(target=ask) for _ in range(14)]
    for thread in threads:
        thread.start()
    yield
    is_over.set()
    for thread in threads:
        thread.join()


def samples(text):
    return {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[:1] != "#"}


def test_counters_are_there_before_the_first_request(server):
    ours = [line for line in server.get("/metrics").splitlines() if "lifetime_predictor_" in line]
    counts = [line for line in ours if re.match(r"lifetime_predictor_\w+_total\{", line)]
    assert len(counts) > 25
    still = [line for line in counts if "steps" not in line and "seconds" not in line]
    assert all(line.endswith(" 0.0") for line in still)
    assert all('model_name="model"' in line for line in ours if line[:1] != "#")


def test_one_line_of_the_log_says_what_is_on(server):
    lines = [x for x in server.log.read_text().splitlines() if "lifetime prediction: pred" in x]
    assert len(lines) == 1
    assert "predictor auto (0 completions), learning; policy lifetime in mode shadow" in lines[0]


def test_the_page_shows_what_runs_in_the_server(server, load):
    path = chromium_path()
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with Browser(path) as browser:
        browser.look(1100, 900)
        browser.open(f"{server.url}/lifetime")
        browser.until("document.querySelectorAll('#running tr').length >= 4")
        browser.until("document.querySelectorAll('#queue tr').length >= 2")
        names = browser.value("document.querySelector('#running tr').textContent")
        assert HOSTILE in names
        assert browser.value("document.querySelectorAll('main script').length") == 0
        assert browser.value("document.getElementById('state').textContent") == "model, as of now"
        assert all(url.startswith((server.url, "data:")) for url in browser.requested)
        assert browser.errors == []


def test_every_metric_of_dashboard_and_alerts_is_in_the_answer(server):
    server.complete(**ONLY_A)
    there = samples(server.get("/metrics"))
    panels = json.loads((DASHBOARDS / "lifetime.json").read_text())["panels"]
    (group,) = yaml.safe_load((DASHBOARDS / "alerts.yml").read_text())["groups"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    asked += [rule["expr"] for rule in group["rules"]]
    used = {name for expr in asked for name in METRIC.findall(expr)}
    # Only where statistics are damaged, an experiment was started, or something runs.
    seldom = re.compile("lifetime_predictor_(stats_unreadable|switchback_|outlook_)")
    assert {name for name in used if not seldom.match(name)} <= there
    text = server.get("/metrics")
    labels = re.search(r"^vllm:num_requests_running\{([^}]*)\}", text, re.M)[1]
    assert labels == 'engine="0",model_name="model"'
    assert f"lifetime_predictor_steps_total{{{labels}}}" in text


def test_a_stop_saves_what_was_learned(server):
    """Even where vLLM kills the engine core, with all its processes, before its shutdown."""
    taken = server.until(lambda found: found["running"] == 0)["lessons_taken"]
    assert taken > 5
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(120)  # in a container all other processes end now
    # An answer may have ended after the statistics were written that were read above.
    assert lessons_in(server.folder / LEARNED) >= taken
