"""Histories from a database: a PostgreSQL server that the tests start, and SQLite."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from history_help import refused

from sagellm_lifetime.cli.main import run
from sagellm_lifetime.core.errors import HistoryError, MissingExtraError
from sagellm_lifetime.history import HistorySummary, read_history
from sagellm_lifetime.history.databases import read_query, shown_source

PASSWORD = "s3cr:t/@x"
QUOTED = "s3cr%3At%2F%40x"
SPEND_LOGS = """
CREATE TABLE "LiteLLM_SpendLogs" (
    "request_id" TEXT NOT NULL,
    "call_type" TEXT NOT NULL,
    "api_key" TEXT NOT NULL DEFAULT '',
    "spend" DOUBLE PRECISION NOT NULL DEFAULT 0.0,
    "total_tokens" INTEGER NOT NULL DEFAULT 0,
    "prompt_tokens" INTEGER NOT NULL DEFAULT 0,
    "completion_tokens" INTEGER NOT NULL DEFAULT 0,
    "startTime" TIMESTAMP(3) NOT NULL,
    "endTime" TIMESTAMP(3) NOT NULL,
    "completionStartTime" TIMESTAMP(3),
    "model" TEXT NOT NULL DEFAULT '',
    "model_id" TEXT DEFAULT '',
    "model_group" TEXT DEFAULT '',
    "custom_llm_provider" TEXT DEFAULT '',
    "api_base" TEXT DEFAULT '',
    "user" TEXT DEFAULT '',
    "metadata" JSONB DEFAULT '{}',
    "cache_hit" TEXT DEFAULT '',
    "cache_key" TEXT DEFAULT '',
    "request_tags" JSONB DEFAULT '[]',
    "team_id" TEXT,
    "end_user" TEXT,
    "requester_ip_address" TEXT,
    "messages" JSONB DEFAULT '{}',
    "response" JSONB DEFAULT '{}',
    CONSTRAINT "LiteLLM_SpendLogs_pkey" PRIMARY KEY ("request_id")
);
ALTER TABLE "LiteLLM_SpendLogs" ADD COLUMN "session_id" TEXT, ADD COLUMN "status" TEXT,
    ADD COLUMN "proxy_server_request" JSONB DEFAULT '{}',
    ADD COLUMN "mcp_namespaced_tool_name" TEXT, ADD COLUMN "organization_id" TEXT,
    ADD COLUMN "agent_id" TEXT, ADD COLUMN "request_duration_ms" INTEGER,
    ADD COLUMN "litellm_call_id" TEXT;
CREATE INDEX "LiteLLM_SpendLogs_startTime_idx" ON "LiteLLM_SpendLogs"("startTime");
INSERT INTO "LiteLLM_SpendLogs"
    (request_id, call_type, prompt_tokens, completion_tokens, "startTime", "endTime", model,
     "user", metadata, end_user, session_id, status, response, proxy_server_request)
VALUES
    ('r0', 'acompletion', 100, 12, '2026-02-03 04:05:00.5', '2026-02-03 04:05:02', 'qwen', 'u',
     '{"team": "blue"}', 'acme', 's', 'success', '{}', '{}'),
    ('r1', 'acompletion', 50, 64, '2026-02-03 04:05:01', '2026-02-03 04:05:05', 'qwen', 'u',
     '{"team": "red"}', '', 's', 'success', '{"choices": [{"finish_reason": "length"}]}',
     '{"max_tokens": 64}'),
    ('r2', 'aembedding', 9, 0, '2026-02-03 04:05:01', '2026-02-03 04:05:02', 'emb', 'u',
     '{}', '', 's', 'success', '{}', '{}'),
    ('r3', 'anthropic_messages', 40, 9, '2026-02-03 04:05:03', '2026-02-03 04:05:04', 'qwen', 'u',
     NULL, NULL, NULL, NULL, NULL, NULL);
"""
"""The table as LiteLLM's migrations make it: the baseline of March 2025 and what was added until
September 2026 (``litellm_call_id``)."""
OBSERVATIONS = """
CREATE TYPE "ObservationType" AS ENUM ('SPAN', 'EVENT', 'GENERATION');
CREATE TYPE "ObservationLevel" AS ENUM ('DEBUG', 'DEFAULT', 'WARNING', 'ERROR');
CREATE TABLE "traces" (
    "id" TEXT NOT NULL, "external_id" TEXT,
    "timestamp" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, "name" TEXT, "user_id" TEXT,
    "metadata" JSONB, "release" TEXT, "version" TEXT, "project_id" TEXT NOT NULL,
    "public" BOOLEAN NOT NULL DEFAULT false, "bookmarked" BOOLEAN NOT NULL DEFAULT false,
    "tags" TEXT[] DEFAULT ARRAY[]::TEXT[], "input" JSONB, "output" JSONB, "session_id" TEXT,
    "created_at" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "traces_pkey" PRIMARY KEY ("id")
);
CREATE TABLE "observations" (
    "id" TEXT NOT NULL, "trace_id" TEXT, "project_id" TEXT NOT NULL,
    "type" "ObservationType" NOT NULL,
    "start_time" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, "end_time" TIMESTAMP(3),
    "name" TEXT, "metadata" JSONB, "parent_observation_id" TEXT,
    "level" "ObservationLevel" NOT NULL DEFAULT 'DEFAULT', "status_message" TEXT, "version" TEXT,
    "created_at" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "model" TEXT, "internal_model" TEXT, "internal_model_id" TEXT, "modelParameters" JSONB,
    "input" JSONB, "output" JSONB, "prompt_tokens" INTEGER NOT NULL DEFAULT 0,
    "completion_tokens" INTEGER NOT NULL DEFAULT 0, "total_tokens" INTEGER NOT NULL DEFAULT 0,
    "unit" TEXT, "input_cost" DECIMAL(65,30), "output_cost" DECIMAL(65,30),
    "total_cost" DECIMAL(65,30), "calculated_input_cost" DECIMAL(65,30),
    "calculated_output_cost" DECIMAL(65,30), "calculated_total_cost" DECIMAL(65,30),
    "completion_start_time" TIMESTAMP(3), "prompt_id" TEXT,
    CONSTRAINT "observations_pkey" PRIMARY KEY ("id")
);
INSERT INTO traces (id, project_id, user_id, session_id, tags) VALUES
    ('t', 'p', 'ann', 'chat-1', '{a,b}'), ('t2', 'p', NULL, NULL, '{}');
INSERT INTO observations (id, trace_id, project_id, type, start_time, end_time, level, model,
    "modelParameters", input, prompt_tokens, completion_tokens, total_tokens, unit, input_cost)
VALUES
    ('o1', 't', 'p', 'GENERATION', '2026-02-02 02:40:00.5', '2026-02-02 02:40:02', 'DEFAULT',
     'gpt', '{"max_tokens": 64, "temperature": 0.2}', '"a secret"', 100, 30, 130, 'TOKENS', 0.001),
    ('o2', 't2', 'p', 'GENERATION', '2026-02-02 02:40:03', '2026-02-02 02:40:04', 'ERROR',
     'gpt', '{}', '"a secret"', 100, 3, 103, NULL, NULL),
    ('o3', 't', 'p', 'SPAN', '2026-02-02 02:40:00', NULL, 'DEFAULT', NULL, NULL, NULL, 0, 0, 0,
     NULL, NULL),
    ('o4', 't', 'p', 'GENERATION', '2026-02-02 02:40:05', '2026-02-02 02:40:06', 'DEFAULT',
     'gpt', NULL, NULL, 0, 0, 0, NULL, NULL),
    ('o5', 't', 'p', 'GENERATION', '2026-02-02 02:40:05', '2026-02-02 02:40:06', 'DEFAULT',
     'palm', NULL, NULL, 400, 900, 1300, 'CHARACTERS', NULL);
"""
"""The tables of Langfuse's version 2, before its observations moved to ClickHouse."""
LANGFUSE_QUERY = """
SELECT o.id, o.trace_id, o.type, o.level, o.start_time, o.end_time, o.model, o."modelParameters",
    o.prompt_tokens, o.completion_tokens, o.unit, t.user_id, t.session_id
FROM observations o
LEFT JOIN traces t ON t.id = o.trace_id AND t.project_id = o.project_id
WHERE o.type = 'GENERATION' ORDER BY o.id
"""
"""The query of docs/how-to/read-a-log.md: users and sessions are those of the traces."""
GATEWAY = """
CREATE TABLE gateway (
    id UUID DEFAULT gen_random_uuid(), began TIMESTAMPTZ, took INTERVAL, ms NUMERIC(12, 3),
    tokens BIGINT, usage JSON, tags TEXT[]
);
INSERT INTO gateway (began, took, ms, tokens, usage, tags) VALUES
    ('2026-01-01 02:00:00+02', '2.5 s', 2500, 120, '{"out": {"all": 130}}', '{a}'),
    ('2026-01-01 00:00:04+00', '1.5 s', 1500, 80, '{"out": {"all": 90}}', '{b}');
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Start a PostgreSQL server, and return the address of its database."""
    pytest.importorskip("adbc_driver_postgresql", reason="needs the extra sql")
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    programs = Path(found[-1] if found else shutil.which("initdb") or "").parent
    if not (programs / "initdb").is_file():
        pytest.skip("needs PostgreSQL's server: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        owner = {}
        if os.geteuid() == 0:  # the server does not run as root
            try:
                account = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("needs the account postgres, since the tests run as root")
            os.chown(folder, account.pw_uid, account.pw_gid)
            owner = {"user": "postgres", "group": "postgres", "extra_groups": []}
        secret = folder / "password"
        secret.write_text(f"{PASSWORD}\n")
        secret.chmod(0o644)

        def call(program: str, *args: object) -> None:
            command = [str(programs / program), "-D", str(folder / "data"), *map(str, args)]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run(command, check=True, cwd="/", **quiet, **owner)

        locale = ("-E", "UTF8", "--locale=C", "--no-sync")
        call("initdb", "-U", "reader", "--pwfile", secret, "-A", "scram-sha-256", *locale)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={port} -c fsync=off "
            f"-c unix_socket_directories={folder}"
        )
        call("pg_ctl", "-w", "-o", options, "-l", folder / "log", "start")
        address = f"postgresql://reader:{QUOTED}@127.0.0.1:{port}/postgres"
        try:
            from adbc_driver_postgresql import dbapi

            with dbapi.connect(address) as connection, connection.cursor() as cursor:
                for statements in (SPEND_LOGS, OBSERVATIONS, GATEWAY):
                    for statement in filter(str.strip, statements.split(";\n")):
                        cursor.execute(statement)
                connection.commit()
            yield address
        finally:
            call("pg_ctl", "-m", "immediate", "stop")


@pytest.mark.server
def test_tables_of_litellm_and_langfuse(server: str) -> None:
    history = read_history(server, query='SELECT * FROM "LiteLLM_SpendLogs" ORDER BY request_id')
    assert history.formats == ["a LiteLLM spend log"]
    columns = ("request_id", "client_id", "arrival_time", "actual_length", "actual_time")
    assert history.frame.select(columns).rows() == [
        ("r0", "acme", 1_770_091_500.5, 12, 1.5),
        ("r1", "u", 1_770_091_501.0, 64, 4.0),
        ("r3", "u", 1_770_091_503.0, 9, 1.0),
    ]
    assert history.frame["finish_reason"].to_list() == ["stop", "length", "stop"]
    assert history.frame["max_length"].to_list() == [None, 64, None]
    assert sum(history.left_out.values()) == 1
    for query in ("SELECT * FROM observations ORDER BY id", LANGFUSE_QUERY):
        history = read_history(server, query=query)
        assert history.formats == ["a Langfuse export"]
        columns = ("prompt_length", "max_length", "actual_length", "actual_time", "finish_reason")
        assert history.frame.select(columns).rows() == [
            (100, 64, 30, 1.5, "stop"),
            (100, None, 3, 1.0, "error"),
        ]
        assert history.left_out["generations without a count of tokens"] == 1
        assert history.left_out["generations that are not counted in tokens"] == 1
        assert "secret" not in f"{history}"
    assert history.frame.select("client_id", "session_id").rows() == [
        ("ann", "chat-1"),
        (None, None),
    ]
    assert history.ignored == []  # the query of the page takes nothing that is not understood


@pytest.mark.server
def test_a_table_of_any_form(server: str) -> None:
    own = "SELECT id AS request_id, began AS arrival_time, tokens AS actual_length, "
    own += "ms / 1000 AS actual_time FROM gateway ORDER BY began"
    history = read_history(server, query=own)
    assert history.frame["arrival_time"].to_list() == [1_767_225_600.0, 1_767_225_604.0]
    assert history.frame["actual_time"].to_list() == [2.5, 1.5]
    assert len(history.frame["request_id"][0]) == 36
    mapping = {"actual_length": "usage.out.all", "arrival_time": "began", "actual_time": "ms@ms"}
    query = "SELECT began, ms, usage FROM gateway ORDER BY began"
    history = read_history(server, query=query, mapping=mapping)
    assert history.frame["actual_length"].to_list() == [130, 90]
    assert history.frame["actual_time"].to_list() == [2.5, 1.5]
    summary = HistorySummary.of(history)
    assert (summary.format, summary.span_s) == ("a mapped log", 4.0)


@pytest.mark.server
def test_what_a_database_refuses_is_one_line_without_the_password(server: str) -> None:
    tell = {
        "no table": (server, "SELECT * FROM nope", 'relation "nope" does not exist'),
        "a mistake": (server, "SELEC 1", "syntax error"),
        "it only reads": (server, "DELETE FROM gateway RETURNING *", "read-only transaction"),
        "twice": (server, "SELECT 1 AS a, 2 AS a", "two columns 'a'"),
        "an interval": (server, "SELECT took FROM gateway", "EXTRACT(epoch FROM …)"),
        "no query": (server, None, "a database needs a query"),
        "no count": (server, "SELECT 5 AS colour", "no column 'actual_length'"),
        "no rows": (server, "SELECT tokens AS actual_length FROM gateway LIMIT 0", "no rows"),
        "the password": (server.replace(QUOTED, "wr0ng"), "SELECT 1", "authentication failed"),
        "no server": (server.replace("@127.0.0.1:", "@127.0.0.1:1"), "SELECT 1", ""),
    }
    for address, query, told in tell.values():
        message = refused(address, query=query)
        assert told in message
        for secret in (PASSWORD, QUOTED, "s3cr", "wr0ng"):
            assert secret not in message


@pytest.mark.server
def test_commands_read_a_database(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    query = ["--query", "SELECT began, ms, usage FROM gateway"]
    mapping = ["--map", "actual_length=usage.out.all,arrival_time=began,actual_time=ms@ms"]
    train = ["train", "--data-path", server, "--predictor-type", "baseline", "--json"]
    assert run([*train, *query, *mapping], "x") == 0
    out, err = capfd.readouterr()
    assert '"tokens_out": 220' in out
    assert "postgresql://reader@127.0.0.1" in err
    assert run(["convert", server, "out.parquet", *query, *mapping], "x") == 0
    told = "".join(capfd.readouterr())
    for secret in (PASSWORD, QUOTED):
        assert secret not in out + err + told
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert QUOTED.encode() not in path.read_bytes()
    assert len(read_history("out.parquet").frame) == 2


def test_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE r (ts REAL, prompt_tokens, completion_tokens, user)")
        rows = [(float(i), 9, 30 + i, "u") for i in range(4)]
        connection.executemany("INSERT INTO r VALUES (?, ?, ?, ?)", rows)
        connection.commit()
    address = f"sqlite:///{path}"
    history = read_history(address, query="SELECT * FROM r")
    assert history.frame["actual_length"].to_list() == [30, 31, 32, 33]
    assert history.formats == ["a log of requests"]
    assert "no such table: nope" in refused(address, query="SELECT * FROM nope")
    assert "the query found no rows" in refused(address, query="SELECT * FROM r LIMIT 0")
    assert "no such file" in refused("sqlite:///none.db", query="SELECT 1")
    assert "needs a query" in refused(address)


@pytest.mark.parametrize(
    "query",
    [
        "ATTACH 'evil.db' AS e",
        "VACUUM INTO 'evil.db'",
        "DELETE FROM r RETURNING *",
        "PRAGMA user_version",
        "CREATE TEMP TABLE t AS SELECT 1",
        "EXPLAIN DELETE FROM r",
    ],
)
def test_sqlite_only_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect("log.db")) as connection:
        connection.execute("CREATE TABLE r (actual_length)")
        connection.execute("INSERT INTO r VALUES (5)")
        connection.commit()
    before = Path("log.db").read_bytes()
    assert "log.db: a query may only read" in refused("sqlite:///log.db", query=query)
    assert [path.name for path in tmp_path.iterdir()] == ["log.db"]
    assert Path("log.db").read_bytes() == before
    nested = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) "
    nested += "SELECT max(actual_length, i) AS actual_length FROM n, (SELECT * FROM r)"
    assert len(read_history("sqlite:///log.db", query=nested).frame) == 3


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:p@ss@host/db",
        "postgresql://me:p/ss@host/db",
        "postgresql://me:p%40ss@host/db?password=p%40ss",
        "postgresql://host/db?user=me&password=p%40ss&sslmode=require",
        "postgresql://me:pass[@host/db",
        "postgres://me:pass#word@host/db",
    ],
)
def test_no_part_of_a_password_is_shown(address: str) -> None:
    shown = shown_source(address)
    assert not any(part in shown for part in ("p@", "ss@", "p%40", "pass", "p/", "word"))
    with pytest.raises((HistoryError, MissingExtraError)) as caught:
        read_query(address.replace("host", "127.0.0.1:1"), "SELECT 1")
    assert not any(part in str(caught.value) for part in ("p@ss", "ss@", "p%40s", "pass["))


def test_a_query_is_for_a_database(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text("actual_length\n5\n")
    assert "a query is for a database" in refused(path, query="SELECT 1")
    mysql = refused("mysql://me:s3cret@host/db", query="SELECT 1")
    assert "mysql:// is not read" in mysql
    assert "postgresql://" in mysql
    assert "s3cret" not in mysql + shown_source("mysql://me:s3cret@host/db")
    assert "sqlite:///s.db" in refused("s.db", query="SELECT 1")
    assert "sqlite:///s.db with --query" in refused("s.db")
