"""The commands and programs of a documentation page, run as a reader would run them.

Shell blocks (```` ```sh ````) run in their order, in one folder for a page, with ``examples/`` and
``dashboards/`` beside them as in a clone. The Python blocks of a page are one program; what it
prints must be the page's text blocks. A comment above a block says where it can run:

    <!-- run: no, REASON -->       not here: it needs the network, or another machine
    <!-- run: vllm -->             where vLLM is installed
    <!-- run: sagellm -->          where sageLLM's packages are installed
    <!-- run: server start -->     starts a server, which serves the blocks that follow
    <!-- run: server -->           asks this server
    <!-- run: server stop -->      after this server was stopped
    <!-- run: file NAME -->        not run: written to a file of that name
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
KINDS = ("", "no", "vllm", "sagellm", "server start", "server", "server stop", "file")
_BLOCK = re.compile(r"(?:<!-- run: ([^>]*) -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, what it says, and where it can run."""

    language: str
    text: str
    kind: str
    about: str


def blocks(page):
    """Return the blocks of ``docs/PAGE`` in their order."""
    found = []
    for marker, language, text in _BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        kind = next((kind for kind in sorted(KINDS, key=len, reverse=True)
                     if kind and re.match(rf"{kind}\b", marker)), marker)  # fmt: skip
        found.append(Block(language, text, kind, marker[len(kind) :].strip(" ,")))
    return found


def folder_for(page, folder):
    """Make ``folder`` look like a clone to the commands of a page."""
    for name in ("examples", "dashboards"):
        (folder / name).symlink_to(ROOT / name)
    for block in blocks(page):
        if block.kind == "file":
            (folder / block.about).write_text(block.text, encoding="utf-8")
    return folder


def environment():
    """Return the environment of a shell in which this Python's commands are found."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path}


def run_sh(text, folder, timeout=600):
    """Run a shell block; the first command that fails ends it."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_page(page, folder, kinds=("",)):
    """Run the blocks of the kinds in the page's order, and return what they printed."""
    chosen = [block for block in blocks(page) if block.kind in kinds]
    programs = [block for block in chosen if block.language == "python"]
    said = []
    for block in chosen:
        if block.language == "sh":
            said.append(run_sh(block.text, folder))
        elif programs and block is programs[0]:
            program = "".join(each.text for each in programs)
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=folder, env=environment(),
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{page}\n{done.stderr}"
            printed = "".join(b.text for b in blocks(page) if b.language == "text")
            assert not printed or done.stdout == printed
            said.append(done.stdout)
    return "".join(said)
