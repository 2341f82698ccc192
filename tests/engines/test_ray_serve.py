"""Ray Serve LLM hands ``engine_kwargs`` to vLLM, and so our settings, in a real deployment."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from plain_server import install_plugin
from tiny_model import make_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.usefixtures("vllm"),
    pytest.mark.skipif(
        find_spec("ray") is None or find_spec("grpc_reflection") is None,
        reason="needs Ray Serve: pip install 'ray[serve]'",
    ),
]
DEPLOY = """
import json, os, socket, time
from pathlib import Path
from urllib.request import Request, urlopen

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from sagellm_lifetime.vllm.engine_state import read_stats

here = Path.cwd()
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
ray.init(num_cpus=4, num_gpus=0, include_dashboard=False, object_store_memory=200 * 2**20)
serve.start(http_options={"port": port})
lifetime = {"mode": "act", "learn": True, "state": str(here / "state")}
config = LLMConfig(
    model_loading_config={"model_id": "model", "model_source": str(here / "model")},
    engine_kwargs={
        "load_format": "dummy", "dtype": "float32", "enforce_eager": True, "max_model_len": 256,
        "max_num_seqs": 8, "block_size": 32, "num_gpu_blocks_override": 64,
        "distributed_executor_backend": "uni",
        "additional_config": {"lifetime": lifetime},
    },
    placement_group_config={"bundles": [{"CPU": 1}]},
    log_engine_metrics=False,
)
serve.run(build_openai_app({"llm_configs": [config]}))
body = {"model": "model", "prompt": "hello", "max_tokens": 4, "ignore_eos": True}
for _ in range(3):
    request = Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    assert json.load(urlopen(request, timeout=120))["usage"]["completion_tokens"] == 4
ends = time.monotonic() + 60
while time.monotonic() < ends:
    stats = read_stats(here / "state")
    if stats and stats[0]["completions"] + stats[0]["censored"] == 3:
        break
    time.sleep(0.5)
(here / "stats.json").write_text(json.dumps(stats))
serve.shutdown()
ray.shutdown()
"""


def test_engine_arguments_reach_the_engine_of_a_deployment(tmp_path):
    make_model(tmp_path / "model")
    env = {**install_plugin(tmp_path), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    # On a busy machine a proxy is not ready within the 5 s after which Ray kills it.
    for name in ("READY_CHECK", "HEALTH_CHECK"):
        env[f"RAY_SERVE_PROXY_{name}_TIMEOUT_S"] = "120"
    env.pop("RAY_ADDRESS", None)
    log = tmp_path / "ray.log"
    with log.open("wb") as file:
        program = subprocess.Popen(
            [sys.executable, "-c", DEPLOY],
            cwd=tmp_path,
            env=env,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        assert program.wait(900) == 0, log.read_text(errors="replace")[-3000:]
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
    (stats,) = json.loads((tmp_path / "stats.json").read_text())
    assert stats["mode"] == "act"
    assert stats["total_predictions"] == 3
