"""Tiny histories and checkpoints, and the command line run in this process."""

import io
import json
import re
from types import SimpleNamespace

import pytest

from sagellm_lifetime import create_predictor
from sagellm_lifetime import workloads as profiles
from sagellm_lifetime.cli.main import run

UNDERSTOOD = re.compile(
    r"(log|skipped|left out|columns|not read|span|pace|lengths|who|note|warning) {2,}| {10}"
)
"""How a line begins that says what was understood of a log."""


@pytest.fixture(scope="session")
def frame():
    return profiles.generate("chat", 240, seed=1)


@pytest.fixture(scope="session")
def history(frame, tmp_path_factory):
    path = tmp_path_factory.mktemp("history") / "history.parquet"
    frame.write_parquet(path)
    return path


@pytest.fixture(scope="session")
def later(tmp_path_factory):
    path = tmp_path_factory.mktemp("later") / "later.jsonl"
    profiles.generate("chat", 160, seed=2).write_ndjson(path)
    return path


@pytest.fixture(scope="session")
def survival(frame, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "survival"
    create_predictor("survival").fit(frame).save(path)
    return path


@pytest.fixture(scope="session")
def lstm(frame, tmp_path_factory):
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("checkpoint") / "lstm"
    create_predictor("lstm", hidden_size=8, epochs=1).fit(frame).save(path)
    return path


@pytest.fixture
def cli(capfd, monkeypatch, tmp_path):
    """Run a command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*args, stdin=b""):
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        code = run([str(arg) for arg in args], "sagellm-lifetime")
        out, err = capfd.readouterr()
        told = [line for line in err.splitlines(keepends=True) if not UNDERSTOOD.match(line)]
        return SimpleNamespace(
            code=code,
            out=out,
            err=err,
            json=lambda: json.loads(out),
            words=" ".join(err.split()),  # what is wrapped stays findable
            told="".join(told),  # without what was understood of the log
        )

    return call


@pytest.fixture
def refused(cli, tmp_path):
    """Run a command line that must be refused: one line, exit code 2, nothing written."""

    def call(*args, **options):
        before = sorted(tmp_path.rglob("*"))
        done = cli(*args, **options)
        assert done.code == 2, done
        assert done.out == ""
        assert done.told.startswith("error: ")
        assert done.told.count("\n") == 1
        assert "Traceback" not in done.err
        assert sorted(tmp_path.rglob("*")) == before
        return done.told

    return call
