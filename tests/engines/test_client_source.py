"""The client of a request, from what its body cannot forge."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.vllm.client_source import (
    EXTRA,
    ClientMiddleware,
    client_of,
    named_client,
    user_of,
)
from sagellm_lifetime.vllm.request_adapter import RequestAdapter
from sagellm_lifetime.vllm.settings import LiveSettings

FORGED = {"client_id": "victim", EXTRA: "victim", "turn": 3}


class Engine:
    """vLLM's client of the engine, as far as the middleware sees it."""

    def __init__(self):
        self.extra = []

    def generate(self, prompt, sampling_params, request_id):
        self.extra.append(sampling_params.extra_args)


def served(source, body=b"", headers=(), *, pieces=1, extra=FORGED, engine=None, kind="http"):
    """The extra arguments with which one request reaches the engine, and the body that came."""
    engine = engine or Engine()
    came = []

    async def app(scope, receive, send):
        more = kind == "http"
        while more:
            message = await receive()
            came.append(message["body"])
            more = message["more_body"]
        params = SimpleNamespace(extra_args=None if extra is None else dict(extra))
        # As in vLLM, where a handler runs in a task of its own.
        await asyncio.create_task(answer(scope["app"].state.engine_client, params))

    async def answer(client, params):
        client.generate("prompt", params, "id")

    size = -(-len(body) // pieces) or 1
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    waiting = [
        {"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts
    ]

    async def receive():
        return waiting.pop(0)

    args = SimpleNamespace(additional_config={"lifetime": {"client_from": source}})
    state = SimpleNamespace(args=args, engine_client=engine)
    scope = {
        "type": kind,
        "method": "POST",
        "headers": [(name.lower(), value) for name, value in headers],
        "app": SimpleNamespace(state=state),
    }
    asyncio.run(ClientMiddleware(app)(scope, receive, None))
    return engine.extra[-1] or {}, b"".join(came)


def bearer(key):
    return [(b"Authorization", f"Bearer {key}".encode())]


def test_the_api_key_names_the_client_and_is_not_kept():
    one, _ = served("api-key", headers=bearer("sk-one"))
    other, _ = served("api-key", headers=bearer("sk-other"))
    again, _ = served("api-key", headers=bearer("sk-one"))
    assert named_client(one) == named_client(again) != named_client(other)
    assert b"sk-one" not in one[EXTRA]
    assert one["turn"] == 3


@pytest.mark.parametrize(
    ("source", "headers"),
    [
        ("api-key", ()),
        ("api-key", [(b"authorization", b"Basic abc")]),
        ("api-key", [*bearer("a"), *bearer("b")]),
        ("header:X-Tenant", ()),
        ("header:X-Tenant", [(b"x-tenant", b"a"), (b"x-tenant", b"b")]),
        ("user", ()),
        ("nonsense", ()),
    ],
)
def test_without_a_client_nothing_of_the_body_counts(source, headers):
    if source == "user":
        pytest.importorskip("msgspec", reason="reads bodies, and comes with vLLM")
    extra, _ = served(source, headers=headers)
    assert named_client(extra) is None


def test_a_header_of_the_operator():
    extra, _ = served("header:X-Tenant", headers=[(b"X-Tenant", "Zoë ".encode())])
    assert named_client(extra) == "Zoë"
    extra, _ = served("header:X-Tenant", headers=[(b"X-Tenant", b"ws")], kind="websocket")
    assert named_client(extra) == "ws"
    assert client_of([(b"x-tenant", b"x" * 999)], "header:X-Tenant") == "x" * 256


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_user_of_the_body_which_arrives_whole(pieces):
    pytest.importorskip("msgspec", reason="reads bodies, and comes with vLLM")
    body = json.dumps(
        {"user": "u", "messages": [{"role": "user", "content": '"user": "forged"'}]}
    ).encode()
    extra, came = served("user", body, pieces=pieces)
    assert named_client(extra) == "u"
    assert came == body
    assert user_of(b'{"user": "u", "safety_identifier": "s"}') == "s"
    for odd in (b"", b"[1]", b"{", b'{"user": 5}', b'{"user": ""}', b'{"user": {"user": "x"}}'):
        assert user_of(odd) is None


def test_requests_at_the_same_time_keep_their_own_client():
    engine = Engine()
    for i in range(3):
        extra, _ = served("header:t", headers=[(b"t", b"%d" % i)], extra=None, engine=engine)
        assert named_client(extra) == str(i)
    assert served("header:t", extra=None, engine=engine)[0] == {}


def asked(extra):
    return SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args=extra),
        lora_request=None,
        session_id=None,
        block_hashes=[],
    )


def test_the_adapter_believes_the_middleware_alone():
    adapter = RequestAdapter("m", 512, 16, trusts_body=False)
    assert "client_id" not in adapter.who(asked(FORGED))
    assert "client_id" not in adapter.who(asked({EXTRA: [1, 2]}))
    assert adapter.who(asked({**FORGED, EXTRA: b"real"}))["client_id"] == "real"
    assert RequestAdapter("m", 512, 16).who(asked({**FORGED, EXTRA: b"x"}))["client_id"] == "victim"


def test_a_fault_leaves_the_request_without_a_client():
    async def app(scope, receive, send):
        scope["answered"] = True

    scope = {"type": "http", "method": "POST", "headers": []}  # no "app"
    asyncio.run(ClientMiddleware(app)(scope, None, None))
    assert scope["answered"]


@pytest.mark.parametrize("source", ["key", "header:", "header:a b", "header:Authorization", 5])
def test_other_sources_are_refused(source):
    with pytest.raises(RequestError, match="client_from"):
        LiveSettings(client_from=source)


def test_vllm_carries_the_client_to_the_scheduler(vllm):
    """Through the sampling parameters, and the encoding between server and engine core."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    engine = Engine()
    params = SamplingParams(extra_args={"client_id": "victim"})

    async def app(scope, receive, send):
        scope["app"].state.engine_client.generate("p", sampling_params=params, request_id="r")

    args = SimpleNamespace(additional_config={"lifetime": {"client_from": "header:t"}})
    state = SimpleNamespace(args=args, engine_client=engine)
    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(b"t", b"real")],
        "app": SimpleNamespace(state=state),
    }
    asyncio.run(ClientMiddleware(app)(scope, None, None))
    parts = MsgpackEncoder().encode(params.__class__(extra_args=params.extra_args))
    decoded = MsgpackDecoder(SamplingParams).decode(parts)
    assert named_client(decoded.extra_args) == "real"
    assert EngineCoreRequest.__struct_fields__.index("sampling_params") >= 0
