"""vLLM's own server and ``LLM(...)`` with the plug-in: one variable, or one argument."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
from engine_help import adds_up
from plain_server import PlainServer, install_plugin
from test_end_to_end import PATIENCE_S
from tiny_model import make_model

from sagellm_lifetime.vllm.engine_state import read_stats
from sagellm_lifetime.vllm.journal import recover_journals

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("vllm")]
OFFLINE = """
import sys

if __name__ == "__main__":
    from vllm import LLM, SamplingParams

    llm = LLM(
        "model", load_format="dummy", dtype="float32", enforce_eager=True, max_model_len=256,
        max_num_seqs=8, block_size=32, num_gpu_blocks_override=64,
        additional_config={"lifetime": {"mode": "act", "learn": True, "state": "offline"}},
    )
    params = SamplingParams(max_tokens=8, ignore_eos=True, extra_args={"client_id": "batch"})
    print([len(answer.outputs[0].token_ids) for answer in llm.generate(["a", "b", "c"], params)])
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def folder(vllm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    make_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def environment(folder):
    return install_plugin(folder)


def test_one_variable_reaches_two_api_servers_and_two_engine_cores(folder, environment):
    settings = {"mode": "shadow", "learn": True, "record": "rec", "client_from": "user"}
    settings |= {"hidden": True, "content": True}
    env = {**environment, "SAGELLM_LIFETIME": json.dumps(settings)}
    server = PlainServer(folder, "--data-parallel-size", "2", "--api-server-count", "2", env=env)
    try:
        server.wait()
        for i in range(12):
            server.complete(max_tokens=4, ignore_eos=True, user=f"user-{i % 2}")
        found = server.until(lambda s: _ended(s) == 12)
        assert adds_up(found)
        assert found["mode"] == "shadow"
        assert found["learning"]
        assert server.post("/lifetime/mode", {"mode": "act"}) == {"mode": "act", "engines": 2}
        server.until(lambda s: s["mode"] == "act")
        assert len(read_stats(folder / "runs" / "engine")) == 2
        assert "lifetime_predictor_predictions_total" in server.get("/metrics")
    finally:
        server.stop()
    recover_journals(folder / "rec")
    history = pl.concat(pl.read_parquet(file) for file in (folder / "rec").glob("*.parquet"))
    assert sorted(history["client_id"].to_list()) == ["user-0"] * 6 + ["user-1"] * 6
    # Each engine core has readings of its own worker, a process beside it.
    assert [len(state) for state in history["hidden_state"]] == [64] * 12
    assert len(set(history["hidden_source"])) == 1


def test_without_the_variable_nothing_is_active(folder, environment):
    server = PlainServer(folder, "--seed", "1", env=environment)
    try:
        server.wait()
        assert server.complete(max_tokens=4, ignore_eos=True)["usage"]["completion_tokens"] == 4
        with pytest.raises(OSError, match="404"):
            server.get("/lifetime/stats")
        assert "lifetime" not in server.get("/metrics")
    finally:
        server.stop()


def test_a_mistake_ends_it_before_the_model_is_loaded(folder, environment):
    server = PlainServer(folder, "--additional-config.lifetime.mode", "on", env=environment)
    try:
        assert server.process.wait(300) == 2
    finally:
        server.stop()
    last = server.log.read_text().splitlines()[-1]
    assert last.startswith("error: unknown mode 'on'")


def _ended(stats):
    return stats["completions"] + stats["censored"]


def test_an_engine_in_a_program(folder, environment):
    log = folder / "offline.log"
    with log.open("wb") as file:
        program = subprocess.Popen(
            [sys.executable, "-c", OFFLINE],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        ends = time.monotonic() + PATIENCE_S
        while not (stats := read_stats(folder / "offline")) or _ended(stats[0]) < 3:
            assert program.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < ends, log.read_text()[-3000:]
            time.sleep(0.5)
        program.communicate(timeout=PATIENCE_S)  # what it waits for is over
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)  # nothing of it stays behind
    assert "[8, 8, 8]" in log.read_text()
    assert stats[0]["mode"] == "act"
    assert stats[0]["total_predictions"] == 3
    assert adds_up(stats[0])
    assert (folder / "offline" / "engine-0" / "predictor").exists()
