"""Routes beside vLLM's own, as an ASGI middleware (``--middleware`` names it):

    GET  /lifetime/stats     what ``sage llm lifetime stats --engine URL`` shows
    POST /lifetime/mode      {"mode": "off" | "shadow" | "act"}; needs the API key, if there is one
    GET  /metrics            vLLM's, and ours

Answers come from files that the engine cores write once a second: nothing here talks to an engine.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.engines.vllm.merge import merge
from sagellm_lifetime.engines.vllm.settings import KEY, MODES
from sagellm_lifetime.engines.vllm.state import ask_for, finite, read_stats

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_MOST_BYTES: Final = 4096


class LifetimeMiddleware:
    """Answers its routes and passes everything else on.

    Args:
        app: vLLM's.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._metrics: App | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or not (path == "/metrics" or path.startswith("/lifetime/")):
            await self._app(scope, receive, send)
            return
        args = scope["app"].state.args
        state = Path(args.additional_config[KEY]["state"])
        route = (scope["method"], path)
        if path == "/metrics":
            if self._metrics is None:
                self._metrics = metrics_app(state)
            await self._metrics(scope, receive, send)
        elif route == ("GET", "/lifetime/stats"):
            await _answer(send, *stats(state))
        elif route == ("POST", "/lifetime/mode"):
            if _allowed(scope, args):
                await _answer(send, *change_mode(state, await _body(receive)))
            else:
                await _answer(send, 401, {"error": "Unauthorized"})
        else:
            await _answer(send, 404, {"error": f"no {scope['method']} {path}"})


def stats(state: Path) -> tuple[int, dict[str, Any]]:
    """Status and answer of ``GET /lifetime/stats``."""
    engines = read_stats(state)
    if not engines:
        return 503, {"error": "no engine core has written statistics yet"}
    return 200, merge(engines)


def change_mode(state: Path, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and answer of ``POST /lifetime/mode``."""
    try:
        mode = json.loads(body)["mode"]
        mode = MODES[MODES.index(mode)]
    except (ValueError, KeyError, TypeError):
        return 400, {"error": f'the body must be {{"mode": one of {", ".join(MODES)}}}'}
    engines = read_stats(state)
    refusals = [engine["cannot_act"] for engine in engines if engine["cannot_act"]]
    if mode == "act" and refusals:
        return 409, {"error": refusals[0]}
    if mode != "off" and any(engine["predictor"] is None for engine in engines):
        return 409, {"error": "started without --enable-lifetime-prediction"}
    try:
        count = ask_for(state, mode)
    except LifetimeError as error:
        return 500, {"error": str(error)}
    if not count:
        return 503, {"error": "no engine core has written statistics yet"}
    return 202, {"mode": mode, "engines": count}


def metrics_app(state: Path) -> App:
    """vLLM's metrics and ours in one answer."""
    from prometheus_client import make_asgi_app
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    from sagellm_lifetime.engines.vllm.metrics import LifetimeCollector

    registry = get_prometheus_registry()
    registry.register(LifetimeCollector(state))
    app: App = make_asgi_app(registry=registry)
    return app


def _allowed(scope: Scope, args: Any) -> bool:
    """Whether it bears the key that vLLM asks for; vLLM itself looks at ``/v1`` alone."""
    keys = [key for key in (args.api_key or [os.environ.get("VLLM_API_KEY")]) if key]
    if not keys:
        return True
    said = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, token = said.partition(b" ")
    matches = [hmac.compare_digest(token, key.encode()) for key in keys]
    return scheme.lower() == b"bearer" and any(matches)


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MOST_BYTES or not message.get("more_body"):
            return body[:_MOST_BYTES]


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(finite(content), allow_nan=False).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
