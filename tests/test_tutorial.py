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


def test_every_block_says_where_it_runs():
    found = blocks(PAGE)
    assert {block.kind for block in found} <= set(KINDS)
    assert {block.kind for block in found} >= {"", "vllm", "server start", "server", "server stop"}
    assert all(block.about for block in found if block.kind == "no")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """After the commands that need neither vLLM nor a server."""
    folder = folder_for(PAGE, tmp_path_factory.mktemp("tutorial"))
    (folder / "said").write_text(run_page(PAGE, folder), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_from_a_log_to_a_prediction(folder):
    said = (folder / "said").read_text(encoding="utf-8")
    errors = {name: float(mae) for name, mae in re.findall(r"^ \(?(\w+)\)? +([\d.]+) ", said, re.M)}
    assert errors["survival"] < 0.6 * errors["constant_median"], "the page says that it halves it"
    told = " ".join(said.split())
    assert "prediction pays: survival" in told
    assert "The baseline lightgbm" in told
    answer = json.loads(said.strip().splitlines()[-1])
    assert answer["estimated_remaining_tokens"] >= 1
    assert load_predictor(folder / "trained").name == "survival"


def test_the_client_that_is_asked_for_is_one_of_the_log(folder):
    (asked,) = (
        line for block in blocks(PAGE) for line in block.text.splitlines() if "echo" in line
    )
    features = json.loads(asked[asked.index("{") : asked.rindex("}") + 1])["prompt_features"]
    assert features["client_id"] in read_history(folder / "log.csv").frame["client_id"].to_list()


def test_the_server_starts_where_most_memory_is_taken():
    (start,) = (block.text for block in blocks(PAGE) if block.kind == "server start")
    assert "--gpu-memory-utilization 0.2" in start.partition(" -- ")[2]


def test_replay(vllm, folder):
    said = run_page(PAGE, folder, kinds=("vllm",))
    for policy in ("fcfs", "lifetime"):
        assert re.search(rf"^ {policy} +[\d.]+", said, re.M)


@pytest.mark.server
def test_a_server_from_start_to_the_next_training(vllm, folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = folder / "models" / "smollm2"
    model.parent.mkdir()
    make_model(model)
    config = {**CONFIG, "max_position_embeddings": 1024}
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(model)
    (start,) = (block.text for block in blocks(PAGE) if block.kind == "server start")
    asked = [block.text for block in blocks(PAGE) if block.kind == "server"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = folder / "server.log"
    with log.open("wb") as written:
        server = subprocess.Popen(
            ["bash", "-c", f"exec {start.replace('8000', port)}"],
            cwd=folder,
            env={**environment(), **ENVIRONMENT},
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    try:
        ends = time.monotonic() + PATIENCE_S
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < ends, log.read_text()[-3000:]
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.5)
        said = [run_sh(text.replace("8000", port), folder) for text in asked]
        server.send_signal(signal.SIGINT)
        server.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    assert re.search(r"Predictions: +20\b", said[0], re.I), said[0]
    assert '"act"' in said[1]
    assert '"shadow"' in said[1]
    assert len(read_history(folder / "served").frame) == 20
    run_page(PAGE, folder, kinds=("server stop",))
    assert load_predictor(folder / "trained-again").get_metrics()["lessons"] == 20
