"""The scripts of examples/ run, stay short, and print what their pages promise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from sagellm_lifetime import read_history
from sagellm_lifetime.core.errors import HistoryError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MOST_LINES = 60


def run(name, *arguments, cwd):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here():
    here = Path(__file__).read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert f'"{script.name}"' in here, script.name


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.stem)
def test_an_example_is_short_and_says_how_to_run_it(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert f"\n\npython examples/{script.name}" in text


def test_predict_and_learn(tmp_path):
    said = run("predict_and_learn.py", cwd=tmp_path).split("After 200")
    estimates = [[int(n) for n in re.findall(r"about +(\d+) to go", part)] for part in said]
    before, after = estimates
    assert len(set(before)) == 1  # nothing is known of anybody
    classifier, summaries, agent, *later = after
    assert 8 <= classifier <= 16
    assert 250 <= summaries <= 360
    assert 1200 <= agent <= 1800
    assert later == sorted(later, reverse=True)


def test_make_a_log_and_train_on_it(tmp_path):
    assert "Wrote 1,000 finished requests" in run("make_log.py", "log.csv", 1000, cwd=tmp_path)
    assert len(read_history(tmp_path / "log.csv").frame) == 1000
    said = run("train_on_a_log.py", "log.csv", "trained", cwd=tmp_path)
    assert "1,000 requests; trained on 700, scored on 300" in said
    assert (tmp_path / "trained" / "manifest.json").exists()
    errors = {
        name: [float(number) for number in numbers.split()]
        for name, numbers in re.findall(r"^ +(\w+) +([\d.]+ +[\d.]+)$", said, re.M)
    }
    assert set(errors) == {"survival", "constant_median", "residual_life"}
    assert errors["survival"][0] < errors["constant_median"][0]
    assert 80 <= int(re.search(r"held (\d+) %", said)[1]) <= 98


def test_a_log_of_a_profile_that_is_none(tmp_path):
    with pytest.raises(AssertionError, match="no profile nonsense: choose among"):
        run("make_log.py", "log.csv", 10, "nonsense", cwd=tmp_path)


def test_a_log_of_a_company_has_names_that_no_format_has(tmp_path):
    assert "Wrote 200 requests" in run("company_log.py", "requests.csv", 200, cwd=tmp_path)
    names = ("client_id=team", "prompt_length=tokens_in", "actual_length=tokens_out")
    more = ("arrival_time=received", "actual_time=took_ms", "finish_reason=outcome")
    columns = dict(pair.split("=") for pair in (*names, *more))
    read = read_history(tmp_path / "requests.csv", mapping=columns).frame
    assert len(read) == 200
    assert read["actual_time"].max() < 200
    with pytest.raises(HistoryError, match="actual_length"):
        read_history(tmp_path / "requests.csv")


class Answering(BaseHTTPRequestHandler):
    """A server that answers every request at once."""

    def do_GET(self):
        self._send({"data": [{"id": "toy"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (body["model"], body["ignore_eos"]) == ("toy", True)
        time.sleep(0.01)
        self._send({"choices": []})

    def _send(self, what):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(what).encode())

    def log_message(self, *_):
        """Say nothing."""


def test_load(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = run("load.py", f"http://127.0.0.1:{server.server_port}", 0.3, cwd=tmp_path)
        server.shutdown()
    answers = {name: int(n) for name, n in re.findall(r"(\w+): (\d+) answers, [\d.]+ s", said)}
    assert set(answers) == {"reports", "chat"}
    assert min(answers.values()) >= 6


def test_train_without_a_log_uses_one_of_its_own(tmp_path):
    assert "2,000 requests" in run("train_on_a_log.py", cwd=tmp_path)


def test_step_loop(tmp_path):
    said = run("step_loop.py", cwd=tmp_path)
    assert "64 running sequences" in said
    assert 3 <= int(re.search(r"(\d+) % were longer", said)[1]) <= 25
    median, high = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:tokens|if)", said))
    assert median < high


def test_own_engine(tmp_path):
    said = run("own_engine.py", cwd=tmp_path)
    arrival, shortest = (float(n) for n in re.findall(r"mean +([\d.]+) s", said))
    assert shortest < arrival


def test_sagellm_adapters_without_the_packages_is_one_line(tmp_path):
    if all(find_spec(module) for module in ("sagellm_kv_cache", "sagellm_control")):
        pytest.skip("the packages are there")
    done = subprocess.run([sys.executable, str(EXAMPLES / "sagellm_adapters.py")],
                          capture_output=True, text=True, check=False, cwd=tmp_path)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: .* needs: pip install 'isagellm-lifetime\[sagellm\]'\n", done.stderr
    )


def test_sagellm_adapters(tmp_path):
    for module in ("sagellm_kv_cache", "sagellm_control"):
        pytest.importorskip(module, reason="needs the extra sagellm", exc_type=ImportError)
    said = re.sub(
        r"unused for [\d.]+ s", "unused for 0.0 s", run("sagellm_adapters.py", cwd=tmp_path)
    )
    assert (
        said
        == """\
control plane starts: chat-b chat-d report-a report-c
optimizer starts: chat-b chat-d report-a report-c
  chat-b: about 60 tokens to go
  chat-d: about 60 tokens to go
  report-a: about 800 tokens to go
  report-c: about 800 tokens to go
chat-e needs memory, chat-1 goes: no sequence runs on it, unused for 0.0 s, 0 reuses seen
report-f needs memory, report-c goes: its sequence has generated 0 tokens and has about 800 to go
"""
    )
