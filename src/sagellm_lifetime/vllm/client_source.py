"""The client of a request, from something that the request body cannot forge.

By default a request names its client itself (``vllm_xargs``), so it may name any. With the setting
``client_from`` the API server takes the client from the API key, from OpenAI's
``safety_identifier`` or ``user``, or from a header that the operator names; what ``vllm_xargs``
says about the client is then ignored.

    --middleware sagellm_lifetime.vllm.client_source.ClientMiddleware

The middleware keeps the client in a context variable while the request is handled, and puts it into
the sampling parameters of each call of ``generate``, from where the scheduler's request adapter
takes it. It is put there as bytes, which no JSON of a request can hold, so the adapter ignores a
client that did not come from here: without the middleware no request has a client.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from functools import wraps
from hashlib import blake2b
from typing import Any, Final

from sagellm_lifetime.core.errors import one_line
from sagellm_lifetime.vllm.circuit_breaker import LOG

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API_KEY: Final = "api-key"
USER: Final = "user"
HEADER: Final = "header:"
EXTRA: Final = "lifetime_client"
"""Key of the client in the extra arguments of sampling parameters."""
SOURCES: Final = f"{API_KEY}, {USER} or {HEADER}NAME"
LONGEST: Final = 256
"""Characters of a name that are used."""
_HEADER: Final = re.compile(r"header:[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SECRET: Final = ("authorization", "proxy-authorization", "cookie")
"""Headers whose value must not be recorded; the first is ``api-key``, which is hashed."""
_CLIENT: Final[ContextVar[str | None]] = ContextVar("lifetime_client", default=None)


def is_source(text: str) -> bool:
    """Return True for a source of clients, and for an empty text (the request body).

    >>> [is_source(text) for text in ("api-key", "header:X-Tenant", "header:Cookie", "ip")]
    [True, True, False, False]
    """
    if text in ("", API_KEY, USER):
        return True
    return bool(_HEADER.fullmatch(text)) and text[len(HEADER) :].lower() not in _SECRET


def client_of(headers: list[tuple[bytes, bytes]], source: str) -> str | None:
    """Return the client that the headers of a request tell, ``None`` for none.

    A header that comes twice tells none, since one of the two may be the client's own.

    Args:
        headers: names in lower case, and values.
        source: ``api-key`` or ``header:NAME``.
    """
    name = "authorization" if source == API_KEY else source[len(HEADER) :].lower()
    found = [value for key, value in headers if key == name.encode("latin-1")]
    if len(found) != 1:
        return None
    value = found[0].decode("utf-8", "replace").strip()
    if source != API_KEY:
        return value[:LONGEST] or None
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        return None
    # Hashed at once: the key itself is never kept, logged or recorded.
    return f"key:{blake2b(token.strip().encode(), digest_size=16).hexdigest()}"


def user_of(body: bytes) -> str | None:
    """Return OpenAI's ``safety_identifier``, or else ``user``, of a request body."""
    import msgspec  # a dependency of vLLM; it builds no objects of what is not asked for

    try:
        said = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        names = [
            msgspec.json.decode(said[key]) for key in ("safety_identifier", USER) if key in said
        ]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None  # vLLM refuses the body itself
    return next((name[:LONGEST] for name in names if isinstance(name, str) and name), None)


def named_client(extra: dict[str, Any]) -> str | None:
    """Return the client that the middleware has put into extra arguments, ``None`` for none."""
    value = extra.get(EXTRA)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None


class ClientMiddleware:
    """An ASGI middleware that tells the scheduler the client of each request.

    Args:
        app: vLLM's.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._has_complained = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        client = None
        if scope["type"] in ("http", "websocket"):
            try:
                client, receive = await self._client(scope, receive)
            except Exception as error:  # noqa: BLE001  # the request is answered without a client
                self._complain(type(error).__name__)
        token = _CLIENT.set(client)
        try:
            await self._app(scope, receive, send)
        finally:
            _CLIENT.reset(token)

    async def _client(self, scope: Scope, receive: Receive) -> tuple[str | None, Receive]:
        """Return the client of a request, and what its body is received from."""
        state = scope["app"].state
        config = getattr(getattr(state, "args", None), "additional_config", None)
        settings = config.get("lifetime") if isinstance(config, dict) else None
        source = settings.get("client_from") if isinstance(settings, dict) else None
        if not isinstance(source, str) or not source or not is_source(source):
            return None, receive
        engine = getattr(state, "engine_client", None)
        if engine is None:  # before the engine is up
            return None, receive
        pass_clients(engine)
        if source != USER:
            return client_of(scope["headers"], source), receive
        if scope["type"] != "http" or scope["method"] != "POST":
            return None, receive
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        return user_of(b"".join(message.get("body", b"") for message in messages)), again(
            messages, receive
        )

    def _complain(self, reason: str) -> None:
        if not self._has_complained:
            LOG.error("the clients of requests are not known: %s", one_line(reason))
        self._has_complained = True


def again(messages: list[Message], receive: Receive) -> Receive:
    """Return a function that receives messages once more, and then further ones."""
    waiting = iter(messages)

    async def next_message() -> Message:
        for message in waiting:
            return message
        return await receive()

    return next_message


def pass_clients(engine: Any) -> None:
    """Let ``engine.generate`` put the client of the present request into sampling parameters.

    Args:
        engine: client of vLLM's engine in the API server; it is changed once.
    """
    plain = engine.generate
    if getattr(plain, "passes_clients", False):
        return

    @wraps(plain)
    def generate(*args: Any, **options: Any) -> Any:
        params = options.get("sampling_params", args[1] if len(args) > 1 else None)
        if params is not None:
            extra = {k: v for k, v in (params.extra_args or {}).items() if k != EXTRA}
            client = _CLIENT.get()
            if client is not None:
                extra[EXTRA] = client.encode("utf-8", "replace")
            params.extra_args = extra or None
        return plain(*args, **options)

    generate.passes_clients = True  # type: ignore[attr-defined]
    engine.generate = generate
