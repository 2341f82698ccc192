"""HTTP requests to the routes beside vLLM's, and the files behind them with damage."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from fuzzing import need
from fuzzing.values import as_json, damaged
from sagellm_lifetime.vllm.engine_state import EngineState
from sagellm_lifetime.vllm.observability.http import LifetimeMiddleware

PASSED = 299
STATS: dict[str, Any] = {
    "engine": 0,
    "predictor": "survival",
    "policy": "lifetime",
    "learning": True,
    "mode": "shadow",
    "cannot_act": "",
    "finish_reasons": {"stop": 3},
    "sums": {},
    "decisions": {"admission": [0, 0], "preemption": [0, 0]},
    "breaker": {"state": "closed", "reason": None, "faults": {}},
    "learner_running": True,
    "learner_trouble": None,
    "running": 0,
}


class Shared:
    """A state folder that an engine holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state"
        self.state = EngineState(self.folder, 0)


def setup(folder: Path) -> Shared:
    """Return a state folder."""
    return Shared(folder)


def close(shared: Shared) -> None:
    """Let go of the state folder."""
    shared.state.close()


async def _pass_on(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": PASSED, "headers": []})
    await send({"type": "http.response.body", "body": b"vllm"})


def attempt(shared: Shared, rng: Random) -> str:
    """Send one request."""
    shared.state.write(STATS)
    stats = shared.folder / "engine-0" / "stats.json"
    if rng.random() < 0.4:
        if rng.random() < 0.5:
            stats.write_bytes(damaged(rng, stats.read_bytes()))
        else:
            wrong = STATS | {rng.choice(list(STATS)): as_json(rng)}
            stats.write_text(json.dumps(rng.choice([wrong, as_json(rng)])), encoding="utf-8")
    path = rng.choice(
        ["/lifetime/mode", "/lifetime/stats", "/metrics", "/v1/models", "/lifetime/x"]
    )
    body = json.dumps({"mode": rng.choice(["act", "off", "shadow", as_json(rng)])}).encode()
    body = damaged(rng, body) if rng.random() < 0.5 else body
    if rng.random() < 0.1:
        body = rng.choice([b"[" * 4000, b'{"mode":' * 500, b"9" * 5000, b"x" * 100_000])
    headers = [
        (b"host", b"localhost:8000"),
        (b"content-type", rng.choice([b"application/json", b"text/plain", b"", b"\xff"])),
    ]
    if rng.random() < 0.3:
        origin = rng.choice([b"http://localhost:8000", b"http://evil.example", b"null", b"\xff"])
        headers.append((b"origin", origin))
    key = rng.choice([None, ["k"]])
    if key and rng.random() < 0.7:
        headers.append((b"authorization", rng.choice([b"Bearer k", b"Bearer x", b"", b"\xff"])))
    scope = {
        "type": "http",
        "method": rng.choice(["GET", "POST", "POST", "DELETE", "HEAD", "OPTIONS", "é"]),
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": headers,
    }
    config: Any = {"lifetime": {"state": str(shared.folder)}}
    args = SimpleNamespace(additional_config=rng.choice([config, config, {}, None]), api_key=key)
    scope["app"] = SimpleNamespace(state=SimpleNamespace(args=args))
    sent = asyncio.run(_call(scope, body))
    status = sent[0]["status"]
    need(200 <= status < 600 and status != 500, f"status {status} for {scope['method']} {path}")
    text = b"".join(message.get("body", b"") for message in sent[1:])
    need(str(shared.folder).encode() not in text, f"a path in the answer: {text[:200]!r}")
    if path == "/v1/models":
        need(status == PASSED, f"vLLM's own route was answered with {status}")
    return "refused" if status >= 400 else "taken"


async def _call(scope: dict[str, Any], body: bytes) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await LifetimeMiddleware(_pass_on)(scope, receive, send)
    return sent
