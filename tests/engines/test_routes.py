"""The routes beside vLLM's under what anybody may send, and over files that are damaged."""

import gzip
import json
import os
import stat
import threading
from types import SimpleNamespace

import pytest
from route_help import JSON, STATS, ask, request

from sagellm_lifetime.core.errors import CheckpointError, LifetimeError
from sagellm_lifetime.vllm import engine_state as state
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.engine_state import EngineState, check_free, read_published, request_mode
from sagellm_lifetime.vllm.launch.server import MIDDLEWARE
from sagellm_lifetime.vllm.observability import http
from sagellm_lifetime.vllm.observability.http import LifetimeMiddleware

ACT = b'{"mode": "act"}'
PATHS = ("/lifetime/stats", "/lifetime/mode")


@pytest.fixture
def engine(tmp_path):
    """The state of an engine core that has published."""
    made = EngineState(tmp_path / "state", 0)
    made.write(STATS)
    yield made
    made.close()


@pytest.fixture
def folder(engine):
    return engine.folder.parent


def header(**named):
    return [JSON, *((name.replace("_", "-").encode(), value) for name, value in named.items())]


# -- who may switch ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 415),
        ([(b"content-type", b"text/plain")], 415),
        ([(b"content-type", b"application/x-www-form-urlencoded")], 415),
        ([(b"content-type", b"multipart/form-data; boundary=application/json")], 415),
        ([(b"content-type", b"text/plain; application/json")], 415),
        ([(b"content-type", b"Application/JSON; charset=utf-8")], 202),
        (header(), 202),
        (header(host=b"x:8000", origin=b"http://x:8000"), 202),
        (header(host=b"X", origin=b"https://x"), 202),
        (header(host=b"x:443", origin=b"https://x"), 202),
        (header(host=b"[::1]:8000", origin=b"http://[::1]:8000"), 202),
        (header(host=b"x:8000", origin=b"http://x:8001"), 403),
        (header(host=b"x:8000", origin=b"http://x"), 403),
        (header(host=b"x", origin=b"http://x.evil.example"), 403),
        (header(host=b"x", origin=b"http://evil.example/x"), 403),
        (header(host=b"x", origin=b"null"), 403),
        (header(host=b"x", origin=b""), 403),
        (header(host=b"x", origin=b"file://x"), 403),
        (header(host=b"x", origin=b"http://x:port"), 403),
        (header(host=b"", origin=b"http://"), 403),
        (header(origin=b"http://x"), 403),
        ([*header(host=b"x", origin=b"http://x"), (b"origin", b"http://evil.example")], 403),
        (header(sec_fetch_site=b"same-origin"), 202),
        (header(sec_fetch_site=b"none"), 202),
        (header(host=b"10.1.2.3:9000", origin=b"https://a.b", sec_fetch_site=b"same-origin"), 202),
        (header(host=b"10.1.2.3:9000", origin=b"null", sec_fetch_site=b"same-origin"), 403),
        (header(host=b"10.1.2.3:9000", origin=b"https://a.b", sec_fetch_site=b"none"), 403),
        ([*header(sec_fetch_site=b"same-origin"), (b"sec-fetch-site", b"cross-site")], 403),
        (header(sec_fetch_site=b"same-site"), 403),
        (header(sec_fetch_site=b"cross-site"), 403),
        (header(host=b"x", origin=b"http://x", sec_fetch_site=b"cross-site"), 403),
    ],
)
def test_no_other_web_page_can_switch(folder, engine, headers, status):
    assert ask(folder, "POST", "/lifetime/mode", ACT, headers=headers)[0] == status
    assert engine.asked_for() == ("act" if status == 202 else None)


def test_a_proxy_that_changes_the_host_is_named(folder):
    headers = header(host=b"10.1.2.3:9000", origin=b"https://a.b")
    error = json.loads(ask(folder, "POST", "/lifetime/mode", ACT, headers=headers)[1])["error"]
    assert "Origin https://a.b is not Host 10.1.2.3:9000" in error
    assert "proxy" in error


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(
    ("key", "header", "status"),
    [
        ("secret", None, 401),
        ("secret", b"Bearer secret", 200),
        ("secret", b"bearer secret", 200),
        ("secret", b"Basic secret", 401),
        ("secret", b"Bearer other", 401),
        ("secret", b"Bearer ", 401),
        ("secret", b"secret", 401),
        ("é", "Bearer é".encode("latin-1"), 200),
        ("é", "Bearer é".encode(), 401),
    ],
)
def test_keys_are_read_as_vllm_reads_them(folder, key, header, status):
    from starlette.datastructures import Headers
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    headers = [JSON, *([(b"authorization", header)] if header is not None else [])]
    theirs = AuthenticationMiddleware(None, [key]).verify_token(Headers(raw=headers))
    assert theirs == (status == 200)
    found, more, body = request(folder, "GET", "/lifetime/stats", headers=headers, api_key=[key])
    assert found == status
    assert (more.get(b"www-authenticate") == b"Bearer") == (status == 401)
    assert b"predictor" not in body or status == 200
    found, _ = ask(folder, "POST", "/lifetime/mode", ACT, headers=headers, api_key=[key])
    assert found == (202 if status == 200 else 401)


# -- what may be sent --------------------------------------------------------------------------

WRONG = {
    "nothing": b"",
    "no object": b'"act"',
    "a list": b'[["mode", "act"]]',
    "no mode": b"{}",
    "another mode": b'{"mode": "on"}',
    "a list as mode": b'{"mode": ["act"]}',
    "an object as mode": b'{"mode": {"mode": "act"}}',
    "a number": b'{"mode": 1}',
    "a huge number": b'{"mode": ' + b"9" * 4080 + b"}",
    "another key besides": b'{"mode": "act", "force": true}',
    "twice": b'{"mode": "off", "mode": "act"}',
    "deep lists": b"[" * 4096,
    "deep objects": b'{"mode":' * 500,
    "a deep mode": b'{"mode":' + b"[" * 2000 + b"]" * 2000 + b"}",
    "UTF-16": '{"mode": "act"}'.encode("utf-16"),
    "no UTF-8": b"\xff\xfe\x00",
    "a lone surrogate": b'{"mode": "\\ud800"}',
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_body_that_is_no_mode(folder, engine, wrong):
    status, body = ask(folder, "POST", "/lifetime/mode", WRONG[wrong])
    assert status == 400
    assert json.loads(body) == {
        "error": 'the body is not {"mode": one of off, shadow, act, switchback}'
    }
    assert engine.asked_for() is None


def test_a_body_is_bounded(folder, engine):
    read = []

    class Pieces(list):
        def __iter__(self):
            for piece in super().__iter__():
                read.append(piece)
                yield piece

    for pieces in ([b"x" * 10_000_000], [b" " * 1000] * 1000, [b""] * 100_000):
        read.clear()
        assert ask(folder, "POST", "/lifetime/mode", Pieces(pieces))[0] == 413
        assert len(read) <= 4100
    assert ask(folder, "POST", "/lifetime/mode", [b'{"mode": ', b'"act"}'])[0] == 202


def test_a_client_that_is_gone_or_slow(folder, engine, monkeypatch):
    class Endless(list):
        """Says that more will come, and goes."""

        def __len__(self):
            return 2

    assert request(folder, "POST", "/lifetime/mode", Endless([ACT])) is None
    assert engine.asked_for() is None
    monkeypatch.setattr(http, "_BODY_S", 0.0)

    async def late(*_):
        await http.asyncio.sleep(60)

    answer = http.asyncio.run(http._body(late))
    assert answer[0] == 408


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_methods(folder, engine, path, method):
    status, headers, body = request(folder, method, path, ACT if method == "POST" else b"")
    allowed = {"/lifetime/stats": "GET, HEAD, OPTIONS", "/lifetime/mode": "POST, OPTIONS"}[path]
    if method == "OPTIONS":
        assert (status, body) == (204, b"")
        assert not any(name.startswith(b"access-control") for name in headers)
    elif method in allowed:
        assert status == (202 if method == "POST" else 200)
    else:
        assert status == 405
        assert method == "HEAD" or "takes" in json.loads(body)["error"]
    assert (headers.get(b"allow") == allowed.encode()) == (status in (204, 405))
    if method == "HEAD":  # as GET would answer, without the body
        assert body == b""
        assert int(headers[b"content-length"]) > 0
    assert (engine.asked_for() == "act") == (status == 202)


def test_the_page_with_a_slash_behind_it_leads_to_the_page(folder):
    status, headers, body = request(folder, "GET", "/lifetime/")
    assert (status, headers[b"location"], body) == (308, b"../lifetime", b"")


def test_no_other_routes(folder):
    for path in (
        "/lifetime//",
        "/lifetime/stats/",
        "/lifetime/../../etc/passwd",
        "/lifetime/mode2",
    ):
        status, body = ask(folder, "GET", path)
        assert status == 404
        assert json.loads(body)["error"].startswith("no such route")
    for path in ("/lifetimes", "/lifetim", "//lifetime/stats"):
        assert ask(folder, "GET", path)[0] == 299


# -- files that are not as they should be ------------------------------------------------------


def deep(levels):
    return b"[" * levels + b"]" * levels


def damaged(**fields):
    return json.dumps({**STATS, **fields}).encode()


DAMAGED = {
    "empty": b"",
    "truncated": json.dumps(STATS).encode()[:-20],
    "a list": b"[1]",
    "an empty object": b"{}",
    "null": b"null",
    "zeros": b"\0" * 400,
    "no UTF-8": b"\xff\xfe\xff",
    "deep": deep(100_000),
    "deep in an unknown field": damaged(later=[[[[[[1]]]]]]),
    "deep, but not too deep for JSON": b'{"x":' + deep(900) + b"}",
    "too large": b" " * (1 << 20) + b"{}",
    "of another engine core": damaged(engine=1),
    "NaN": damaged(running=float("nan")),
    "too large a number": damaged(steps=10**400),
    "infinite": damaged(steps=1).replace(b'"steps": 1', b'"steps": 1e999'),
    "a text as number": damaged(completions="many"),
    "a truth value as number": damaged(completions=True),
    "a number as text": damaged(policy=3),
    "a list as mode": damaged(mode=["act"]),
    "an unknown mode": damaged(mode="on"),
    "a list as reasons": damaged(finish_reasons=["stop"]),
    "texts among reasons": damaged(finish_reasons={"stop": "many"}),
    "texts among sums": damaged(sums={"scored": "many"}),
    "no breaker": damaged(breaker=None),
    "no faults": damaged(breaker={"state": "closed", "reason": None}),
    "a list as reason": damaged(breaker={"state": "open", "reason": [], "faults": {}}),
    "no decisions": damaged(decisions={}),
    "one decision": damaged(decisions={"admission": [1], "preemption": [1, 2]}),
    "unknown decisions": damaged(decisions={"admission": [1, None], "preemption": [1, 2]}),
    "a lone surrogate": damaged(policy="\ud800"),
    "a lone surrogate as key": damaged(sums={"\ud800": 1}),
    "a list as trouble": damaged(learner_trouble=[1]),
    "a number as learning": damaged(learning=1),
}


async def vllms_metrics(scope, receive, send):
    from prometheus_client import CollectorRegistry, Gauge, make_asgi_app

    registry = CollectorRegistry()
    Gauge("vllm_running", "Of vLLM.", registry=registry).set(3)
    await make_asgi_app(registry)(scope, receive, send)


def metrics_of(folder, *, headers=(), query=b"", **options):
    """The samples of ``/metrics``; they must be in the form of Prometheus."""
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
    from prometheus_client.parser import text_string_to_metric_families

    app = LifetimeMiddleware(vllms_metrics)
    status, found, body = request(
        folder, "GET", "/metrics", app=app, headers=headers, query=query, **options
    )
    assert status == 200
    assert int(found.get(b"content-length", len(body))) == len(body)
    if found.get(b"content-encoding") == b"gzip":
        body = gzip.decompress(body)
    is_open = found[b"content-type"].startswith(b"application/openmetrics-text")
    parse = openmetrics if is_open else text_string_to_metric_families
    samples = [s for family in parse(body.decode()) for s in family.samples]
    return {(s.name, *(v for k, v in s.labels.items() if k != "model_name")): s.value
            for s in samples}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_statistics_are_one_clear_line(folder, engine, case):
    (engine.folder / "stats.json").write_bytes(DAMAGED[case])
    status, body = ask(folder, "GET", "/lifetime/stats")
    assert status == 503
    assert json.loads(body)["error"].startswith("statistics that cannot be read: engine-0: ")
    assert ask(folder, "POST", "/lifetime/mode", ACT)[0] == 503
    assert engine.asked_for() is None
    assert ask(folder, "POST", "/lifetime/mode", b'{"mode": "off"}')[0] == 202
    assert engine.asked_for() == "off"
    assert metrics_of(folder) == {
        ("vllm_running",): 3.0,
        ("lifetime_predictor_stats_unreadable", "0"): 1.0,
    }


def test_damaged_statistics_of_one_engine_core_leave_the_others(folder, engine):
    other = EngineState(folder, 1)
    other.write({**STATS, "engine": 1, "running": None, "sums": {}, "later": {"a": [1]}})
    assert json.loads(ask(folder, "GET", "/lifetime/stats")[1])["running"] == 1
    assert ("lifetime_predictor_running_sequences", "1") not in metrics_of(folder)
    (engine.folder / "stats.json").write_bytes(b"[")
    found = json.loads(ask(folder, "GET", "/lifetime/stats")[1])
    assert found["unreadable"] == ["engine-0: not JSON"]
    assert [each["engine"] for each in found["engines"]] == [1]
    assert found["engines"][0]["later"] == {"a": [1]}
    assert (found["completions"], found["mae"]) == (10, None)
    samples = metrics_of(folder)
    assert samples["lifetime_predictor_completions_total", "1"] == 10
    assert samples["lifetime_predictor_stats_unreadable", "0"] == 1
    other.close()


def in_place(path, kind):
    """Put something that is no regular file there."""
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.with_name("elsewhere").write_text('{"mode": "act"}')
        path.symlink_to("elsewhere")
    else:
        path.write_bytes(kind)


@pytest.mark.parametrize(
    "kind",
    [
        *("folder", "pipe", "link", b"", b"null", b"[1]", deep(100_000), b'{"mode": {}}'),
        *(b'{"mode": "\xff"}', b'{"mode": 1}', b" " * 5000 + ACT, b"\0" * 50, b"9" * 4096),
    ],
)
def test_what_somebody_else_puts_in_place_of_the_request(engine, caplog, kind):
    caplog.set_level("WARNING", LOG.name)
    in_place(engine.folder / "control.json", kind)
    assert engine.asked_for() is None
    assert engine.asked_for() is None
    (said,) = [record.message for record in caplog.records]
    assert "control.json is ignored: " in said
    assert "\n" not in said


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_somebody_else_puts_in_place_of_the_statistics(folder, engine, kind):
    in_place(engine.folder / "stats.json", kind)
    assert ask(folder, "GET", "/lifetime/stats")[0] == 503
    assert list(metrics_of(folder).values()) == [3.0, 1.0]


# -- no paths ----------------------------------------------------------------------------------


def test_no_answer_names_a_path(folder, engine, monkeypatch):
    trouble = (
        f"{engine.folder}/predictor: cannot be read ([Errno 5] {folder}/engine-0/a b, '/mnt/x/y'), "
        "/opt/z: 3/4 and/or at http://x/lifetime"
    )
    told = {**STATS, "cannot_act": f"see {folder}/notes", "learner_trouble": trouble}
    engine.write(told)
    status, body = ask(folder, "GET", "/lifetime/stats")
    assert status == 200
    found = json.loads(body)
    assert found["learner_trouble"] == (
        "STATE/engine-0/predictor: cannot be read ([Errno 5] STATE/engine-0/a b, '…/y'), "
        "…/z: 3/4 and/or at http://x/lifetime"
    )
    assert found["engines"][0]["learner_trouble"] == found["learner_trouble"]
    assert json.loads(ask(folder, "POST", "/lifetime/mode", ACT)[1]) == {"error": "see STATE/notes"}
    engine.write(STATS)
    (engine.folder / "control.json").mkdir()
    status, body = ask(folder, "POST", "/lifetime/mode", ACT)
    assert status == 503
    assert json.loads(body)["error"].startswith("STATE/engine-0/control.json: cannot be written")
    assert str(folder.parent).encode() not in body


# -- vLLM's own routes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [{}, {"lifetime": {}}, {"lifetime": {"state": ""}}, {"lifetime": None}, {"lifetime": "x"}, [],
     {"lifetime": {"state": 5}}, {"lifetime": {"state": None}}],
)  # fmt: skip
def test_without_a_state_folder_metrics_are_vllms(config):
    assert metrics_of(None, config=config) == {("vllm_running",): 3.0}
    status, body = ask(None, "GET", "/lifetime/stats", config=config)
    assert status == 404
    assert "no state folder" in json.loads(body)["error"]
    assert ask(None, "POST", "/lifetime/mode", ACT, config=config)[0] == 404
    assert ask(None, "GET", "/health", config=config) == (299, b"vLLM's")


def test_an_application_without_arguments():
    scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": []}
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope["query_string"] = b""
    http.asyncio.run(LifetimeMiddleware(vllms_metrics)(scope, receive, send))
    assert b"vllm_running" in sent[1]["body"]


@pytest.mark.parametrize("encoding", [b"identity", b"gzip"])
@pytest.mark.parametrize(
    "accept", [b"*/*", b"application/openmetrics-text; version=1.0.0", b"text/plain;version=0.0.4"]
)
def test_metrics_in_every_form(folder, accept, encoding):
    headers = [(b"accept", accept), (b"accept-encoding", encoding)]
    samples = metrics_of(folder, headers=headers)
    assert samples["vllm_running",] == 3.0
    assert samples["lifetime_predictor_completions_total", "0"] == 10
    assert samples["lifetime_predictor_mode", "0", "shadow"] == 1


def test_metrics_by_name(folder):
    wanted = b"name[]=vllm_running&name[]=lifetime_predictor_steps_total"
    assert metrics_of(folder, query=b"name[]=vllm_running") == {("vllm_running",): 3.0}
    assert metrics_of(folder, query=wanted) == {("vllm_running",): 3.0}
    wanted = b"name[]=lifetime_predictor_completions_total"
    assert metrics_of(folder, query=wanted) == {("lifetime_predictor_completions_total", "0"): 10.0}


@pytest.mark.parametrize(
    "answer",
    [
        (500, [(b"content-type", b"text/plain")], b"broken"),
        (200, [(b"content-type", b"text/html")], b"<p>"),
        (200, [(b"content-type", b"text/plain"), (b"content-encoding", b"br")], b"\1"),
        (200, [(b"content-type", b"text/plain"), (b"content-encoding", b"gzip")], b"no gzip"),
        (200, [], b"x"),
        (404, [], b""),
    ],
)
def test_an_answer_of_vllm_that_is_not_known_stays_as_it_is(folder, answer):
    status, headers, body = answer

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    found = request(folder, "GET", "/metrics", app=LifetimeMiddleware(app))
    assert found == (status, dict(headers), body)


def test_a_fault_of_ours_leaves_vllms_metrics(folder, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("a secret")

    monkeypatch.setattr("sagellm_lifetime.vllm.observability.metrics.exposition", broken)
    for _ in range(3):
        assert metrics_of(folder) == {("vllm_running",): 3.0}
    app = LifetimeMiddleware(vllms_metrics)
    for _ in range(3):
        request(folder, "GET", "/metrics", app=app)
    assert len(caplog.records) == 4  # each middleware says it once
    assert "a secret" not in caplog.text
    monkeypatch.setattr(http, "merge", broken)
    status, body = ask(folder, "GET", "/lifetime/stats")
    assert (status, json.loads(body)) == (500, {"error": "internal error (RuntimeError)"})


def test_a_disk_that_hangs_leaves_the_server(folder, monkeypatch):
    free = threading.Event()
    monkeypatch.setattr(http, "_DISK_S", 0.05)
    monkeypatch.setattr(http, "_MOST_HANGING", 3)
    monkeypatch.setattr(
        "sagellm_lifetime.vllm.observability.metrics.read_published", lambda _: free.wait(30)
    )
    monkeypatch.setattr(http, "read_published", lambda _: free.wait(30))
    app = LifetimeMiddleware(vllms_metrics)
    before = threading.active_count()
    try:
        for _ in range(10):
            status, _, body = request(folder, "GET", "/metrics", app=app)
            assert (status, b"lifetime" in body) == (200, False)
            assert ask(folder, "GET", "/lifetime/stats", app=app)[0] == 503
        assert threading.active_count() - before == 3
    finally:
        free.set()


# -- the folder itself -------------------------------------------------------------------------


def modes(folder):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def test_a_state_is_its_owners_only(tmp_path):
    before = os.umask(0)
    try:
        (tmp_path / "own").mkdir(0o755)
        for folder in (tmp_path / "new" / "state", tmp_path / "own"):
            made = EngineState(folder, 0)
            made.write(STATS)
            request_mode(folder, "act")
            made.close()
    finally:
        os.umask(before)
    files = {"lock": 0o600, "stats.json": 0o600, "control.json": 0o600}
    assert modes(tmp_path / "new") == {"state": 0o700, "engine-0": 0o700, **files}
    assert modes(tmp_path / "own") == {"engine-0": 0o700, **files}
    assert modes(tmp_path)["own"] == 0o755


def test_no_planted_link_is_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    folder = tmp_path / "state" / "engine-0"
    folder.mkdir(parents=True)
    (folder / "lock").symlink_to(precious)
    with pytest.raises(LifetimeError, match="engine-0: cannot be used"):
        EngineState(tmp_path / "state", 0)
    with pytest.raises(LifetimeError, match="engine-0: cannot be used"):
        check_free(tmp_path / "state")
    (folder / "lock").unlink()
    for name in ("stats.json", "control.json"):
        (folder / name).symlink_to(precious)
    made = EngineState(tmp_path / "state", 0)
    made.write(STATS)
    request_mode(tmp_path / "state", "act")
    made.close()
    assert precious.read_text() == "precious"


def refuse(*_, **__):
    raise OSError(30, "Read-only file system")


@pytest.mark.parametrize("call", ["make_folder", "open_regular"])
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, monkeypatch, call):
    (tmp_path / "engine-0").mkdir()
    monkeypatch.setattr(state, call, refuse)
    with pytest.raises(LifetimeError, match=r"engine-0: cannot be used \(Read-only file") as caught:
        EngineState(tmp_path, 0)
    assert "\n" not in str(caught.value)


def test_what_lies_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LifetimeError, match="cannot be used"):
        EngineState(tmp_path / "file", 0)
    (tmp_path / "engine-1" / "control.json").mkdir(parents=True)
    with pytest.raises(LifetimeError, match="engine-1: cannot be used"):
        EngineState(tmp_path, 1)
    check_free(tmp_path)  # its lock is free again
    (tmp_path / "engine-1" / "stats.json").mkdir()
    with pytest.raises(LifetimeError, match="engine-1: cannot be used"):
        check_free(tmp_path)


def test_other_names_are_no_engine_cores(tmp_path):
    for name in ("engine-x", "engine-01", "engine--1", "engine-²", "engine-9999999999"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stats.json").write_text(json.dumps(STATS))
    (tmp_path / "engine-3").write_text("a file")
    assert read_published(tmp_path).engines == []
    assert read_published(tmp_path).unreadable == []
    check_free(tmp_path)


def test_statistics_that_cannot_be_written(engine, monkeypatch):
    (engine.folder / "stats.json").unlink()
    (engine.folder / "stats.json").mkdir()
    with pytest.raises(CheckpointError, match=r"stats.json: cannot be written"):
        engine.write(STATS)


# -- in vLLM's own application -----------------------------------------------------------------


@pytest.fixture
def application(vllm):
    """vLLM's application with its middlewares and metrics and ours, without an engine."""
    from fastapi import FastAPI
    from starlette.testclient import TestClient
    from vllm.entrypoints.serve.instrumentator.metrics import attach_router
    from vllm.entrypoints.serve.middleware.register import init_entrypoints_middleware

    def make(config, api_key=None):
        app = FastAPI()
        app.state.args = args = SimpleNamespace(
            additional_config=config,
            api_key=api_key,
            middleware=[MIDDLEWARE],
            enable_request_id_headers=False,
            **{f"allowed_{name}": ["*"] for name in ("origins", "methods", "headers")},
            allow_credentials=False,
        )
        init_entrypoints_middleware(args, app, ())
        attach_router(app)
        return TestClient(app)

    return make


@pytest.mark.parametrize("config", [{}, {"lifetime": {"record": "somewhere"}}])
def test_vllm_with_the_middleware_alone(application, config):
    client = application(config)
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert "python_info" in answer.text
    assert "lifetime_predictor" not in answer.text
    assert client.get("/lifetime/stats").status_code == 404


def test_vllm_with_the_middleware_and_a_state(application, engine, folder):
    client = application({"lifetime": {"state": str(folder)}}, ["secret"])
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "python_info" in answer.text
    assert 'lifetime_predictor_completions_total{engine="0",model_name="m"} 10.0' in answer.text
    assert client.get("/lifetime/stats").status_code == 401
    key = {"Authorization": "Bearer secret"}
    assert client.get("/lifetime/stats", headers=key).json()["completions"] == 10
    evil = {**key, "Origin": "http://evil.example"}
    assert client.post("/lifetime/mode", json={"mode": "act"}, headers=evil).status_code == 403
    assert "access-control-allow-origin" not in client.options("/lifetime/mode").headers
    assert client.post("/lifetime/mode", json={"mode": "act"}, headers=key).status_code == 202
    assert engine.asked_for() == "act"
    (engine.folder / "stats.json").write_bytes(b"[1]")
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert 'lifetime_predictor_stats_unreadable{engine="0",model_name=""} 1.0' in answer.text
