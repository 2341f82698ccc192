"""The plug-in under both programs called ``sage``."""

import argparse
import os
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sagellm_lifetime.cli.main import main, run
from sagellm_lifetime.cli.plugin import register
from sagellm_lifetime.vllm.launch import server as launch

MAIN = "from sagellm_lifetime.cli.main import main"


@pytest.fixture
def sage():
    """The parser of ``isage``, and its way of calling what was chosen."""
    parser = argparse.ArgumentParser(prog="sage")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("version")

    def call(*argv):
        args, unknown = parser.parse_known_args(argv)
        assert not unknown
        return args._handler(args)

    return call, commands


def test_under_argparse(sage, capsys, monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: True)  # nothing of vLLM is imported
    call, commands = sage
    register(commands)
    assert call("llm", "lifetime", "--version") == 0
    assert capsys.readouterr().out.strip() == "0.1.0"
    assert call("llm", "lifetime", "train", "--help") == 0
    assert "sage llm lifetime train" in capsys.readouterr().out
    assert call("llm", "lifetime") == 0
    assert "demo" in capsys.readouterr().out
    assert call("llm", "lifetime", "train", "--data-path", "nowhere.csv", "--seed=1") == 2
    assert capsys.readouterr().err == "error: nowhere.csv: no such file or folder\n"
    assert call("llm", "lifetime", "trai") == 2
    assert call("llm") == 0
    assert "lifetime" in capsys.readouterr().out
    assert call("llm", "engine", "start", "--help") == 0
    assert "sage llm engine start" in capsys.readouterr().out
    assert call("llm", "engine", "start", "/nowhere/model", "--", "--port", "1") == 2
    assert "no such folder" in capsys.readouterr().err


def test_under_argparse_beside_another_llm_command(sage, capsys):
    call, commands = sage
    theirs = commands.add_parser("llm").add_subparsers()
    theirs.add_parser("serve").set_defaults(_handler=lambda args: 7)
    register(commands)
    register(commands)
    assert call("llm", "serve") == 7
    assert call("llm", "lifetime", "--version") == 0
    assert call("llm", "engine") == 0


def test_under_typer(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: True)
    app = typer.Typer()
    llm = typer.Typer()
    llm.command("serve")(lambda: print("served"))
    llm.command("status")(lambda: None)
    app.add_typer(typer.Typer(name="other"))
    app.add_typer(llm, name="llm")
    register(app)
    register(app)
    runner = CliRunner()
    assert runner.invoke(app, ["llm", "serve"]).output == "served\n"
    assert runner.invoke(app, ["llm", "lifetime", "--version"]).output == "0.1.0\n"
    done = runner.invoke(app, ["llm", "lifetime", "train", "--data-path", "nowhere.csv"])
    assert done.exit_code == 2
    assert done.output == "error: nowhere.csv: no such file or folder\n"
    done = runner.invoke(app, ["llm", "engine", "start", "/nowhere/model", "--", "--port", "1"])
    assert done.exit_code == 2
    assert "no such folder" in done.output


def test_under_typer_without_an_llm_group():
    app = typer.Typer()
    app.command("status")(lambda: None)
    register(app)
    done = CliRunner().invoke(app, ["llm", "lifetime", "--version"])
    assert done.output == "0.1.0\n"


@pytest.mark.parametrize("target", [None, 3, object(), argparse.ArgumentParser()])
def test_anything_else_leaves_sage_alone(target, capsys):
    register(target)
    assert "not available" in capsys.readouterr().err


def test_registering_is_cheap():
    code = (
        "import argparse, sys\n"
        "from sagellm_lifetime.cli.plugin import register\n"
        "register(argparse.ArgumentParser().add_subparsers())\n"
        "print([m for m in ('typer', 'polars', 'numpy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_entry_points():
    (plugin,) = entry_points(group="sage.cli.plugins", name="lifetime")
    assert plugin.load() is register
    (script,) = entry_points(group="console_scripts", name="sagellm-lifetime")
    assert script.load() is main


def test_under_the_real_sage(tmp_path):
    pytest.importorskip("sage.cli.main", reason="isage is not installed")
    command = [sys.executable, "-m", "sage.cli.main", "llm", "lifetime"]

    def call(*args):
        return subprocess.run(
            [*command, *args], capture_output=True, text=True, cwd=tmp_path, check=False
        )

    assert call("--version").stdout == "0.1.0\n"
    refused = call("train", "--data-path", "nowhere.csv")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: nowhere.csv: no such file or folder\n",
    )


def in_shell(line, tmp_path, **variables):
    code = f"{MAIN}; main()"
    return subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
    )


def test_closed_streams(tmp_path):
    for closed in (">&-", "<&-", ">&- <&- 2>&-"):
        assert in_shell(f'"$@" --help {closed}', tmp_path).returncode == 0
    refused = in_shell('"$@" stats 2>&-', tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")


def test_a_terminal_without_utf8(tmp_path, history):
    done = in_shell(
        f'"$@" evaluate --predictor-type orca --max-rows 20 --data-path "{history}"',
        tmp_path,
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0
    assert "(constant_median)" in done.stdout


def test_interrupted(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", f"{MAIN}; main()", "demo"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stderr.readline().startswith("smollm2-answers:")  # at work
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)  # a busy machine
        finally:
            process.kill()
    assert process.returncode == 130
    assert err == "interrupted\n"


def test_installing_it_activates_nothing_in_vllm():
    """vLLM loads its own group in every process; that entry does nothing unless it is asked for.

    See `tests/engines/test_plugin.py`.
    """
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    installed = {each.group for each in distribution(project["name"]).entry_points}
    groups = {*project["entry-points"], *installed}
    assert "sage.cli.plugins" in groups
    of_vllm = [group for group in groups if group.split(".")[0] == "vllm"]
    assert of_vllm == ["vllm.general_plugins"]
    entries = project["entry-points"]["vllm.general_plugins"]
    assert entries == {"sagellm_lifetime": "sagellm_lifetime.vllm.launch.plugin:register"}


def test_the_group_engine_alone_shows_its_commands(capsys):
    assert run(["engine"], "sage llm") == 0
    shown = capsys.readouterr()
    assert "sage llm engine" in shown.out
    assert {"start", "vllm"} <= set(shown.out.split())
    assert shown.err == ""
