"""Where things are read from and written to: defaults, and refusals before the work starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sagellm_lifetime.cli.guard import CommandError
from sagellm_lifetime.cli.output import STDOUT
from sagellm_lifetime.core.errors import CheckpointError

RUNS: Final = Path("runs") / "lifetime"
"""Where ``train`` writes by default, and where the other commands look."""


def default_output(predictor: str) -> Path:
    """Where a predictor is saved when nobody says where."""
    return RUNS / predictor


def find_checkpoint(given: Path | None) -> Path:
    """The checkpoint that is meant: the one given, or the newest below ``runs/lifetime``."""
    from sagellm_lifetime.learning.checkpoint import MANIFEST, is_checkpoint

    if given is not None:
        return given
    found = [path for path in RUNS.glob("*") if is_checkpoint(path)] if RUNS.is_dir() else []
    if not found:
        raise CheckpointError(
            f"no checkpoint below {RUNS}: train one (train --data-path FILE) or name one with "
            "--checkpoint"
        )
    return max(found, key=lambda path: ((path / MANIFEST).stat().st_mtime, path.name))


def check_checkpoint_place(path: Path) -> None:
    """Refuse a place where ``save`` would fail."""
    from sagellm_lifetime.learning.checkpoint import is_checkpoint

    if path.exists() and not is_checkpoint(path) and (path.is_file() or any(path.iterdir())):
        raise CheckpointError(f"{path}: exists and is not a checkpoint; choose another directory")
    check_place(path)


def check_json(target: str | None) -> None:
    """Refuse a file that cannot be written; nothing is made yet."""
    if target is not None and target != STDOUT:
        check_file(Path(target))


def check_file(path: Path) -> None:
    """Refuse the path of a file that cannot be written."""
    if path.is_dir():
        raise CommandError(f"{path}: a folder of that name is in the way")
    check_place(path)


def check_folder(path: Path | None) -> None:
    """Refuse a folder that cannot be made or written into."""
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise CommandError(f"{path}: a file of that name is in the way")
    check_place(path / "report.md")


def check_place(path: Path) -> None:
    """Refuse a path whose nearest existing folder cannot be written into."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise CommandError(f"{path}: cannot be written ({folder} is not a folder)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CommandError(f"{path}: cannot be written (no permission to write into {folder})")
