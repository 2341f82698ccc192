"""Every command of the tutorial is run, in its order, where it can be."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from urllib.request import urlopen

import pytest
from engines.tiny_model import CONFIG, ENVIRONMENT, make_model
from pages_help import KINDS, blocks, environment, folder_for, run_page, run_sh

from sagellm_lifetime import load_predictor, read_history

PAGE = "tutorial.md"
PATIENCE_S = 300
PORT = "8000"
"""The server's port on the page; the test takes one that is free."""


def test_every_block_says_where_it_runs():
    found = blocks(PAGE)
    assert {block.kind for block in found} <= set(KINDS)
    assert {block.kind for block in found} >= {"", "vllm", "server start", "server", "server stop"}
    assert all(block.about for block in found if block.kind == "no")


def test_the_blocks_can_be_run_in_their_order_kind_by_kind():
    kinds = [block.kind for block in blocks(PAGE) if block.language == "sh" and block.kind != "no"]
    first_server = kinds.index("server start")
    assert set(kinds[:first_server]) == {"", "vllm"}
    assert {"", "vllm"}.isdisjoint(kinds[first_server:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """After the commands that need neither vLLM nor a server."""
    folder = folder_for(PAGE, tmp_path_factory.mktemp("tutorial"))
    (folder / "said").write_text(run_page(PAGE, folder), encoding="utf-8")
    return folder


def test_the_log_is_read_as_the_page_says(folder):
    (shown,) = (block.text for block in blocks(PAGE) if block.language == "console")
    (convert,) = (block.text for block in blocks(PAGE) if " convert " in block.text)
    done = subprocess.run(
        ["bash", "-c", convert.replace("log.parquet", "log.parquet --force")],
        cwd=folder, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == shown
    assert read_history(folder / "log.parquet").frame.equals(
        read_history(folder / "requests.csv", mapping=folder / "columns.toml").frame
    )


@pytest.mark.slow
def test_from_a_log_to_a_prediction(folder):
    said = (folder / "said").read_text(encoding="utf-8")
    errors = {name: float(mae) for name, mae in re.findall(r"^ \(?(\w+)\)? +([\d.]+)", said, re.M)}
    half = 0.6 * errors["constant_median"]
    assert errors["survival"] < half, "the page says that it halves it"
    assert "lightgbm (157.4) is ahead" in " ".join(said.split())
    answer = json.loads(said.strip().splitlines()[-1])
    assert answer["estimated_remaining_tokens"] >= 1
    assert load_predictor(folder / "trained").name == "survival"


def test_the_client_that_is_asked_for_is_one_of_the_log(folder):
    (asked,) = (
        line for block in blocks(PAGE) for line in block.text.splitlines() if "echo" in line
    )
    features = json.loads(asked[asked.index("{") : asked.rindex("}") + 1])["prompt_features"]
    assert features["client_id"] in read_history(folder / "log.parquet").frame["client_id"]


def test_the_server_starts_where_most_memory_is_taken():
    for start in (block.text for block in blocks(PAGE) if block.kind == "server start"):
        assert "--gpu-memory-utilization 0.2" in start.partition(" -- ")[2]


@pytest.mark.slow
def test_the_verdict_on_the_page_is_the_one_that_is_printed(vllm, folder):
    said = run_page(PAGE, folder, kinds=("vllm",))
    (shown,) = (block.text for block in blocks(PAGE) if block.language == "text")
    assert shown in said
    assert "<html" in (folder / "verdict.html").read_text(encoding="utf-8")


class PageServer:
    """A server that a block starts, on a port that is free."""

    def __init__(self, start, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self._folder = folder
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f"exec {start.replace(PORT, self.port)}"],
                cwd=folder,
                # Another test of this process may have silenced vLLM.
                env={**environment(), **ENVIRONMENT, "VLLM_LOGGING_LEVEL": "INFO"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self):
        ends = time.monotonic() + PATIENCE_S
        while True:
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < ends, self.log.read_text()[-3000:]
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/health"):
                return self
            time.sleep(0.5)

    def run(self, text):
        return run_sh(text.replace(PORT, self.port), self._folder)

    def interrupt(self):
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(60)


@pytest.mark.server
def test_from_a_server_that_watches_to_a_switchback(vllm, folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = folder / "models" / "smollm2"
    model.parent.mkdir()
    make_model(model)
    config = {**CONFIG, "max_position_embeddings": 1024}
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(model)
    server, said = None, []
    try:
        for block in blocks(PAGE):
            if block.kind == "server start":
                server = PageServer(block.text, folder).wait()
            elif block.kind == "server":
                said.append(server.run(block.text))
            elif block.kind == "server stop":
                server.interrupt()
                said.append(run_sh(block.text, folder))
    finally:
        if server is not None:
            server.kill()
    watched, acted, trained, proof = said
    answers = sum(int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) answers", watched))
    predictions = re.search(r"Predictions: +([\d,]+)", watched, re.I)
    assert int(predictions[1].replace(",", "")) == answers, watched
    assert '"act"' in acted
    assert '"shadow"' in acted
    assert len(read_history(folder / "served").frame) > answers
    assert load_predictor(folder / "trained-again").get_metrics()["lessons"] > answers
    assert "Saved to" in trained
    assert "goes on with what was learned" in server.log.read_text()
    assert "blocks of 8 s" in proof
    for name in ("latency", "first token", "throughput", "preemptions"):
        assert re.search(rf"{name}: off \S+, act .* difference .*95 %", proof), proof
