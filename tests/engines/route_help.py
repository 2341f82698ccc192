"""Requests to the routes beside vLLM's, without a server; and statistics of an engine core."""

import asyncio
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

from sagellm_lifetime.vllm.observability.http import LifetimeMiddleware

JSON = (b"content-type", b"application/json")
STATS = {
    "engine": 0,
    "predictor": "survival",
    "model_name": "m",
    "policy": "lifetime",
    "learning": True,
    "mode": "shadow",
    "cannot_act": "",
    "total_predictions": 12,
    "completions": 10,
    "censored": 1,
    "running": 1,
    "lessons_on_the_way": 2,
    "finish_reasons": {"stop": 10, "abort": 1},
    "sums": {"scored": 10, "absolute_error": 35.0, "tokens": 400, "seconds": 8.0},
    "decisions": {"admission": [8, 2], "preemption": [0, 0]},
    "breaker": {"state": "closed", "reason": "", "faults": {"slow": 1}},
    "learner_running": True,
    "learner_trouble": None,
}


async def theirs(scope, receive, send):
    """What vLLM answers."""
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"vLLM's"})


def request(
    state,
    method,
    path,
    body=b"",
    *,
    headers=(JSON,),
    api_key=None,
    app=None,
    config=None,
    query=b"",
):
    """One request to the middleware: status, headers and body; ``body`` may come in pieces."""
    if config is None:
        config = {"lifetime": {"state": str(state)}}
    args = SimpleNamespace(additional_config=config, api_key=api_key)
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": query,
        "headers": list(headers),
        "app": SimpleNamespace(state=SimpleNamespace(args=args)),
    }
    sent = []
    pieces = [body] if isinstance(body, bytes) else body
    messages = iter(
        {"type": "http.request", "body": piece, "more_body": i < len(pieces)}
        for i, piece in enumerate(pieces, start=1)
    )

    async def receive():
        return next(messages, {"type": "http.disconnect"})

    async def send(message):
        sent.append(message)

    asyncio.run((app or LifetimeMiddleware(theirs))(scope, receive, send))
    if not sent:
        return None
    text = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], {n.lower(): value for n, value in sent[0]["headers"]}, text


def ask(*args, **options):
    """Status and body of one request."""
    status, _, body = request(*args, **options)
    return status, body


@contextmanager
def http_server():
    """The routes over HTTP, at ``url``; ``folder`` and ``key`` are to be set.

    ``change`` may change the body of an answer.
    """
    settings = SimpleNamespace(folder=None, key=None, change=lambda body: body)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, query = self.path.partition("?")
            headers = [JSON, *((k.lower().encode(), v.encode()) for k, v in self.headers.items())]
            status, more, body = request(
                settings.folder, "GET", path,
                headers=headers, api_key=settings.key, query=query.encode(),
            )  # fmt: skip
            body = settings.change(body)
            more[b"content-length"] = str(len(body)).encode()
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name.decode(), value.decode())
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    settings.url = f"http://127.0.0.1:{http.server_address[1]}/lifetime"
    try:
        yield settings
    finally:
        http.shutdown()
        http.server_close()
