"""Routes beside vLLM's own, as an ASGI middleware for ``--middleware``:

    GET  /lifetime           a page that shows what is predicted and decided, live
    GET  /lifetime/stats     statistics, for ``sage llm lifetime stats --engine URL``; with
                             ``?live=1`` also the present sequences, for the page
    GET  /lifetime/outlook   what is still to do, and when a place is free;
                             ?request=ID&within=SECONDS: when this request ends
    POST /lifetime/mode      {"mode": "off" | "shadow" | "act" | "switchback"}
    GET  /metrics            vLLM's answer, and our metrics after it

The routes need the API key, if there is one; the page asks for it. A mode must be sent as
``application/json``, and from a web page only if the page comes from this server, so that no other
page can switch it.

Answers come from files that the engine cores write once a second; no code here calls an engine.
A fault here, a damaged file or a hanging disk never changes vLLM's answers.
"""

from __future__ import annotations

import asyncio
import gzip
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from threading import Thread
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from sagellm_lifetime.core.errors import LifetimeError, one_line
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.engine_state import (
    MOST_REQUEST_BYTES,
    Published,
    engine_folders,
    finite,
    parse_mode,
    read_published,
    request_mode,
)
from sagellm_lifetime.vllm.live_outlook import answer as outlook_answer
from sagellm_lifetime.vllm.observability.merge import merge
from sagellm_lifetime.vllm.observability.page import send_page
from sagellm_lifetime.vllm.settings import KEY, SWITCHBACK, StartMode
from sagellm_lifetime.vllm.switchback import switchback_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Answer = tuple[int, dict[str, Any]]

METRICS: Final = "/metrics"
PAGE: Final = "/lifetime"
STATS: Final = "/lifetime/stats"
MODE: Final = "/lifetime/mode"
OUTLOOK: Final = "/lifetime/outlook"
_READ: Final = ("GET", "HEAD", "OPTIONS")
_METHODS: Final = {PAGE: _READ, STATS: _READ, OUTLOOK: _READ, MODE: ("POST", "OPTIONS")}
_BODY_S: Final = 10.0
"""Time limit for a client to send a request for a mode."""
_LONGEST_S: Final = 1e9
"""Upper bound on a deadline, seconds from now."""
_DISK_S: Final = 3.0
"""Time limit for a disk to read or write the files of an answer."""
_CHALLENGE: Final = (b"www-authenticate", b"Bearer")
_SITE: Final = b"sec-fetch-site"
_LONGEST: Final = 100
"""Characters of a header in an error."""
_MOST_HANGING: Final = 8
"""Largest number of threads that a hanging disk may block."""
_PATH: Final = re.compile(r"""(?<![\w/])/[^\s/:;,"'()]+(?:/[^\s/:;,"'()]*)*""")


class LifetimeMiddleware:
    """An ASGI middleware with the lifetime routes and metrics; it forwards all other requests.

    Args:
        app: vLLM's.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._disk = Disk()
        self._logged = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http" and path == METRICS and scope["method"] == "GET":
            await self._metrics(scope, receive, send)
        elif scope["type"] == "http" and path == f"{PAGE}/" and scope["method"] in _READ:
            # Relative, since a proxy may have put something before the path.
            await _answer(send, 308, None, [(b"location", b".." + PAGE.encode())])
        elif scope["type"] == "http" and (path == PAGE or path.startswith(f"{PAGE}/")):
            await self._route(path, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _route(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a route under ``/lifetime/``; an error becomes an answer too."""
        method, state = scope["method"], state_of(scope)
        allowed = _METHODS.get(path)
        head = method == "HEAD"
        if allowed is None:
            error = {"error": f"no such route; there are {', '.join(_METHODS)}"}
            await _answer(send, 404, error, head=head)
        elif method not in allowed:
            error = {"error": f"{path} takes {' and '.join(allowed)}"}
            await _answer(send, 405, error, [_allow(allowed)], head=head)
        elif method == "OPTIONS":  # without a permission for other origins
            await _answer(send, 204, None, [_allow(allowed)])
        elif path == PAGE:
            # Without the key it is the same page, as there is no data in it: a browser sends no key
            # by itself, so the page asks for it.
            status, more = (200, []) if is_allowed(scope) else (401, [_CHALLENGE])
            await send_page(send, status, more, head=head)
        elif not is_allowed(scope):
            await _answer(send, 401, {"error": "Unauthorized"}, [_CHALLENGE], head=head)
        elif state is None:
            error = {"error": f"no state folder: additional_config has no {KEY}.state"}
            await _answer(send, 404, error, head=head)
        elif path == STATS:
            await _answer(send, *await self._from_disk(stats, state, _is_live(scope)), head=head)
        elif path == OUTLOOK:
            query = scope.get("query_string", b"")
            await _answer(send, *await self._from_disk(outlook, state, query), head=head)
        elif refusal := refuse_origin(scope) or refuse_type(scope):
            await _answer(send, *refusal)
        else:
            body = await _body(receive)
            if body is None:
                return  # the client has gone
            if isinstance(body, bytes):
                body = await self._from_disk(change_mode, state, body)
            await _answer(send, *body)

    async def _from_disk(self, function: Callable[..., Answer], *args: Any) -> Answer:
        try:
            return await self._disk(function, *args)
        except TimeoutError:
            return 503, {"error": "the disk of the state folder does not answer"}
        except Exception as error:  # noqa: BLE001  # an error must not stop the server
            self._log_change(error)
            return 500, {"error": f"internal error ({type(error).__name__})"}

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with vLLM's metrics, and ours after them unless something is unexpected."""
        state = state_of(scope)
        if state is None:
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []

        async def hold(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, hold)
        try:
            messages = await self._disk(with_metrics, messages, state, scope)
        except Exception as error:  # noqa: BLE001  # vLLM's metrics are sent anyway
            self._log_change(error)
        for message in messages:
            await send(message)

    def _log_change(self, error: Exception) -> None:
        text = str(error) if isinstance(error, LifetimeError) else type(error).__name__
        if text != self._logged:
            LOG.error("statistics of lifetime prediction cannot be answered: %s", text)
        self._logged = text


class Disk:
    """A runner of disk calls in threads, so that the server's event loop does not wait."""

    def __init__(self) -> None:
        self._running = 0

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return ``function(*args)``.

        Raises:
            TimeoutError: if it takes too long, or too many other calls hang already.
        """
        if self._running >= _MOST_HANGING:
            raise TimeoutError
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def set_outcome(result: Any, error: BaseException | None) -> None:
            self._running -= 1
            if done.done():  # timed out
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        def work() -> None:
            result, error = None, None
            try:
                result = function(*args)
            except Exception as raised:  # noqa: BLE001  # raised again by the awaiting caller
                error = raised
            try:
                loop.call_soon_threadsafe(set_outcome, result, error)
            except RuntimeError:  # the server has ended in the meantime
                LOG.debug("an answer came after the end")

        self._running += 1
        # Daemon threads, so that a hanging disk does not keep the server from ending.
        Thread(target=work, name="lifetime-disk", daemon=True).start()
        return await asyncio.wait_for(done, _DISK_S)


def state_of(scope: Scope) -> Path | None:
    """Return the state folder that the server was configured with, if any."""
    args = getattr(getattr(scope.get("app"), "state", None), "args", None)
    config = getattr(args, "additional_config", None)
    settings = config.get(KEY) if isinstance(config, dict) else None
    state = settings.get("state") if isinstance(settings, dict) else None
    return Path(state) if isinstance(state, str) and state else None


def stats(state: Path, live: bool = False) -> Answer:
    """Return status and answer of ``GET /lifetime/stats``, with the present sequences if wanted."""
    published = read_published(state)
    if not published.engines:
        return 503, {"error": _why_none(published.unreadable)}
    views = [engine.pop("live") for engine in published.engines]
    experiment = switchback_of(state, published)  # before the unreadable files are listed
    merged = {**merge(published.engines, published.unreadable), "switchback": experiment}
    answer: dict[str, Any] = without_paths(merged, state)
    if live:  # as it is: names of clients may look like paths
        for engine, view in zip(answer["engines"], views, strict=True):
            engine["live"] = view
    return 200, answer


def _is_live(scope: Scope) -> bool:
    """Return True if the present sequences are wanted."""
    return parse_qs(scope.get("query_string", b"").decode("latin-1")).get("live") == ["1"]


def outlook(state: Path, query: bytes) -> Answer:
    """Return status and answer of ``GET /lifetime/outlook``."""
    asked = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    unknown = sorted(set(asked) - {"request", "within"})
    if unknown or any(len(values) > 1 for values in asked.values()):
        return 400, {"error": "the query takes request=ID and within=SECONDS, once each"}
    request, within = (asked.get(name, [None])[0] for name in ("request", "within"))
    if within is not None and request is None:
        return 400, {"error": "within=SECONDS needs request=ID"}
    try:
        seconds = None if within is None else float(within)
    except ValueError:
        seconds = -1.0
    if seconds is not None and not 0.0 <= seconds < _LONGEST_S:
        return 400, {"error": "within must be a number of seconds"}
    published = read_published(state)
    found = [engine["outlook"] for engine in published.engines if engine["outlook"]]
    return outlook_answer([folder for folder, _ in engine_folders(state)], found, request, seconds)


def change_mode(state: Path, body: bytes) -> Answer:
    """Return status and answer of ``POST /lifetime/mode``."""
    try:
        mode = parse_mode(body)
    except ValueError as error:
        return 400, {"error": f"the body is {error}"}
    published = read_published(state)
    refusal = _refuse_mode(mode, published)
    if refusal is not None:
        return refusal[0], {"error": without_paths(refusal[1], state)}
    try:
        count = request_mode(state, mode)
    except LifetimeError as error:
        LOG.error("the mode cannot be changed: %s", error)
        return 503, {"error": without_paths(str(error), state)}
    if not count:
        return 503, {"error": _why_none(published.unreadable)}
    return 202, {"mode": mode, "engines": count}


def _refuse_mode(mode: StartMode, published: Published) -> tuple[int, str] | None:
    """Return status and reason if the engine cores cannot be in a mode, else None."""
    if mode == "off":
        return None
    if published.unreadable:  # their abilities are unknown
        return 503, _why_none(published.unreadable)
    refusals = [engine["cannot_act"] for engine in published.engines if engine["cannot_act"]]
    if mode in ("act", SWITCHBACK) and refusals:
        return 409, refusals[0]
    if any(engine["predictor"] is None for engine in published.engines):
        return 409, "started without --enable-lifetime-prediction"
    return None


def _why_none(unreadable: list[str]) -> str:
    if unreadable:
        return f"statistics that cannot be read: {unreadable[0]}"
    return "no engine core has written statistics yet"


def without_paths(value: Any, state: Path) -> Any:
    """Return an answer without absolute paths; the state folder becomes ``STATE``."""
    if isinstance(value, dict):
        return {key: without_paths(item, state) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item, state) for item in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    for folder in (state.absolute(), state.resolve()):
        value = value.replace(f"{folder}/", "STATE/")
    return _PATH.sub(lambda path: f"…/{path[0].rstrip('/').rpartition('/')[2]}", value)


def with_metrics(messages: list[Message], state: Path, scope: Scope) -> list[Message]:
    """Return vLLM's answer to a request for metrics with ours added.

    Args:
        messages: of vLLM's whole answer; an answer of unknown form is returned unchanged.
        state: folder the engine cores publish to.
        scope: of the request.
    """
    from sagellm_lifetime.vllm.observability.metrics import PREFIX, exposition

    start, *parts = messages
    headers = {name.lower(): value for name, value in start.get("headers", ())}
    content_type = headers.get(b"content-type", b"").partition(b";")[0].strip()
    encoding = headers.get(b"content-encoding", b"identity")
    names = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("name[]", [])
    if (
        start.get("status") != 200
        or content_type not in (b"text/plain", b"application/openmetrics-text")
        or encoding not in (b"identity", b"gzip")
        or any(part["type"] != "http.response.body" for part in parts)
        or (names and not any(name.startswith(PREFIX) for name in names))
    ):
        return messages
    body = b"".join(part.get("body", b"") for part in parts)
    if encoding == b"gzip":
        body = gzip.decompress(body)
    ours = exposition(state, names, openmetrics=content_type != b"text/plain")
    if content_type != b"text/plain":
        body = body.removesuffix(b"# EOF\n")
    elif not body.endswith(b"\n") and body:
        body += b"\n"
    body += ours
    if encoding == b"gzip":
        body = gzip.compress(body)
    kept = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
    start = {**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]}
    return [start, {"type": "http.response.body", "body": body}]


def is_allowed(scope: Scope) -> bool:
    """Return True if a request has the API key, read as vLLM does.

    The check is needed here because vLLM's own covers ``/v1`` only.
    """
    args = getattr(getattr(scope.get("app"), "state", None), "args", None)
    given = getattr(args, "api_key", None) or [os.environ.get("VLLM_API_KEY")]
    keys = [key for key in ([given] if isinstance(given, str) else given) if key]
    if not keys:
        return True
    scheme, _, token = (_header(scope, b"authorization") or "").partition(" ")
    matches = [hmac.compare_digest(token.encode(), key.encode()) for key in keys]
    return scheme.lower() == "bearer" and any(matches)


def refuse_origin(scope: Scope) -> Answer | None:
    """Return the refusal of a request from a page of another origin, else None.

    Browsers send the origin of a page; other clients send none, and are not refused. A browser's
    ``Sec-Fetch-Site: same-origin`` is trusted even if ``Host`` differs, as a proxy may change it.
    """
    refusal = 403, {"error": "sent by a web page of another origin"}
    sites = {value.decode("latin-1") for name, value in scope["headers"] if name == _SITE}
    if not sites <= {"same-origin", "none"}:
        return refusal
    origins = [value for name, value in scope["headers"] if name == b"origin"]
    if not origins or (sites == {"same-origin"} and len(origins) == 1 and origins != [b"null"]):
        return None
    host = _header(scope, b"host")
    if len(origins) > 1 or host is None:
        return refusal
    try:
        origin = urlsplit(origins[0].decode("latin-1"))
        port = {"http": 80, "https": 443}[origin.scheme]
        server = urlsplit(f"//{host}")
        same = (origin.hostname, origin.port or port) == (server.hostname, server.port or port)
    except (ValueError, KeyError):  # "null", say
        return refusal
    if same and origin.hostname:
        return None
    shown = one_line(origins[0].decode("latin-1")[:_LONGEST]), one_line(host[:_LONGEST])
    return 403, {
        "error": f"Origin {shown[0]} is not Host {shown[1]}: sent by a web page of another origin, "
        "or through a proxy that changes the Host header, which then must pass it on"
    }


def refuse_type(scope: Scope) -> Answer | None:
    """Return the refusal of a body that is not declared as JSON, else None.

    A page of another origin may send the other types without a preflight request.
    """
    content_type = _header(scope, b"content-type") or ""
    if content_type.partition(";")[0].strip().lower() == "application/json":
        return None
    return 415, {"error": "the content type must be application/json"}


def _header(scope: Scope, name: bytes) -> str | None:
    """Return the first header of that name, or None."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


async def _body(receive: Receive) -> bytes | Answer | None:
    """Return the body, its refusal, or None if the client has disconnected."""
    body = b""
    try:
        async with asyncio.timeout(_BODY_S):
            # Every part has a byte or more, or a client could send empty ones for ever.
            for _ in range(MOST_REQUEST_BYTES + 1):
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > MOST_REQUEST_BYTES:
                    break
                if not message.get("more_body"):
                    return body
    except TimeoutError:
        return 408, {"error": f"the body did not come within {_BODY_S:g} s"}
    return 413, {"error": f"the body is longer than {MOST_REQUEST_BYTES} bytes"}


def _allow(methods: tuple[str, ...]) -> tuple[bytes, bytes]:
    return b"allow", ", ".join(methods).encode()


async def _answer(
    send: Send,
    status: int,
    content: dict[str, Any] | None,
    more: list[tuple[bytes, bytes]] | None = None,
    *,
    head: bool = False,
) -> None:
    """Send an answer of JSON, or without a body if ``content`` is None.

    Args:
        send: of the request.
        status: of HTTP.
        content: the JSON object.
        more: further headers.
        head: True to send the headers alone.
    """
    body = b""
    headers = [(b"cache-control", b"no-store"), *(more or ())]
    if content is not None:
        body = json.dumps(finite(content), allow_nan=False).encode()
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})
