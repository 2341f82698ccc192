"""``assess --engine URL`` against vLLM's own servers, as they are started by anybody."""

import json

import polars as pl
import pytest
from plain_server import PlainServer, install_plugin
from tiny_model import make_model

from sagellm_lifetime.assessment.assessment import AssessmentSettings
from sagellm_lifetime.assessment.server import ask_server
from sagellm_lifetime.cli.main import run
from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.workloads import generate

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("vllm")]
TOKENS = 64 * 32
"""Of tiny_model.OPTIONS."""


@pytest.fixture(scope="module")
def folder(vllm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("assessed")
    make_model(folder / "model")
    drawn = generate("chat", 400, seed=3, rate_scale=50.0)
    short = (pl.col("prompt_length") < 1500) & (pl.col("actual_length") < 60)
    drawn.filter(short).write_parquet(folder / "log.parquet")
    return folder


@pytest.fixture(scope="module")
def environment(folder):
    return install_plugin(folder)


def test_a_server_with_a_key(folder, environment, capfd, monkeypatch):
    small = AssessmentSettings(
        multiples=(1.0,), windows=1, cpu_s=0.02, predictors=("baseline",), precision=2.0,
        watermarks=(),
    )  # fmt: skip
    monkeypatch.setattr(AssessmentSettings, "of", lambda **_: small)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    log, out = str(folder / "log.parquet"), folder / "out.json"
    server = PlainServer(folder, "--api-key", "s3cret", env=environment)
    line = ["assess", log, "--engine", f"{server.url}/v1", "--gpu", "a100", "--model-size", "7b"]
    try:
        server.wait()
        # vLLM guards /v1 with the key, and not its metrics; its limits stand in no metric.
        assert run([*line, "--json", str(out)], "sagellm-lifetime") == 0, capfd.readouterr().err
        given = [*line, "--max-num-seqs", "8", "--max-num-batched-tokens", "512"]
        assert run([*given, "--json", str(folder / "given.json")], "sagellm-lifetime") == 0
    finally:
        server.stop()
    found = json.loads(out.read_text())
    engine = found["engine"]
    assert (engine["kv_tokens"], engine["block_size"], engine["cores"]) == (TOKENS, 32, 1)
    assert engine["max_num_seqs"] == 256
    assert "so give --max-num-seqs" in " ".join(engine["how"])
    assert found["replay"]["loads"]
    assert f"KV memory of {TOKENS:,} tokens" in capfd.readouterr().out
    engine = json.loads((folder / "given.json").read_text())["engine"]
    assert (engine["max_num_seqs"], engine["max_num_batched_tokens"]) == (8, 512)
    with pytest.raises(LifetimeError, match="no engine answers"):
        ask_server(server.url)


def test_two_engine_cores_of_a_server_that_tells_its_settings(folder, environment):
    from vllm import __version__

    env = {**environment, "VLLM_SERVER_DEV_MODE": "1"}
    server = PlainServer(folder, "--data-parallel-size", "2", "--seed", "1", env=env)
    try:
        server.wait()
        found = ask_server(server.url)
    finally:
        server.stop()
    assert (found.tokens, found.block_size, found.engines) == (TOKENS, 32, 2)
    assert (found.max_num_seqs, found.prefix_caching) == (8, True)
    assert found.max_num_batched_tokens is not None
    assert found.version == __version__


def test_a_server_without_statistics(folder, environment):
    server = PlainServer(folder, "--disable-log-stats", env=environment)
    try:
        server.wait()
        with pytest.raises(LifetimeError, match="one with --disable-log-stats: give --kv-tokens"):
            ask_server(server.url)
    finally:
        server.stop()
