"""Paths of the commands: defaults, and checks before the work starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.output import STDOUT
from sagellm_lifetime.core import atomic
from sagellm_lifetime.core.errors import CheckpointError
from sagellm_lifetime.core.extras import require_plots

RUNS: Final = Path("runs") / "lifetime"
"""Default folder of checkpoints: ``train`` writes there, the other commands read there."""


def default_output(predictor: str) -> Path:
    """Return the folder that a predictor is saved to by default."""
    return RUNS / predictor


def find_checkpoint(given: Path | None) -> Path:
    """Return the checkpoint that is given, or the newest below ``runs/lifetime``.

    Raises:
        CheckpointError: none is given, and there is none below ``runs/lifetime``.
    """
    from sagellm_lifetime.predictor.checkpoint_file import MANIFEST, is_checkpoint

    if given is not None:
        return given
    checkpoints = [path for path in RUNS.glob("*") if is_checkpoint(path)] if RUNS.is_dir() else []
    if not checkpoints:
        raise CheckpointError(
            f"no checkpoint below {RUNS}: train one (train --data-path FILE) or name one with "
            "--checkpoint"
        )
    return max(checkpoints, key=lambda path: ((path / MANIFEST).stat().st_mtime, path.name))


def check_checkpoint_path(path: Path) -> Path:
    """Return the path, links followed, if a checkpoint can be saved there by a rename.

    Raises:
        CheckpointError: saving would fail, or would remove other files.
        CommandError: the path cannot be written.
    """
    from sagellm_lifetime.predictor.checkpoint_file import (
        MANIFEST,
        MODEL,
        check_directory,
        is_checkpoint,
    )

    if path.is_symlink():
        path = path.resolve()
    if path.is_dir():
        others = sorted({file.name for file in path.iterdir()} - {MODEL, MANIFEST})
        if others and is_checkpoint(path):
            raise CheckpointError(
                f"{path}: {others[0]!r} stands beside the checkpoint there, and would be lost: "
                "move it, or choose another directory"
            )
        if path.samefile(os.curdir) or os.path.ismount(path):
            where = "the current directory" if path.samefile(os.curdir) else "a mount point"
            raise CheckpointError(f"{path}: {where}, which cannot be replaced; name one below it")
    check_directory(path)
    check_writable(path)
    return path


def check_json(target: str | None, *others: str | Path | None) -> None:
    """Raise :class:`CommandError` if ``--json`` cannot be written, or is one of the ``others``."""
    if target == "":
        raise CommandError("--json has no name: give a file, or nothing for stdout")
    if target is not None and target != STDOUT:
        check_file(Path(target))
        check_apart(Path(target), others)


def check_apart(target: Path, others: Iterable[str | Path | None]) -> None:
    """Raise :class:`CommandError` if ``target`` is a file that is read, or written for another use.

    Args:
        target: the file to be written.
        others: paths, globs and folders; None is ignored.
    """
    for other in others:
        if other is None:
            continue
        if Path(other).resolve() == target.resolve():
            raise CommandError(f"{target}: named for two things: one would overwrite the other")
        if target.exists() and any(target.samefile(file) for file in _files_of(other)):
            raise CommandError(f"{target}: is read with {other}, and would be overwritten")


def _files_of(source: str | Path) -> list[Path]:
    """Return the files that a path, a glob or a folder names."""
    from sagellm_lifetime.core.errors import HistoryError
    from sagellm_lifetime.history.files import find_files

    try:
        return find_files(source)
    except HistoryError:
        return [path for path in [Path(source)] if path.is_file()]


def check_file(path: Path) -> None:
    """Raise :class:`CommandError` if a file cannot be written, or belongs to a checkpoint."""
    from sagellm_lifetime.predictor.checkpoint_file import MANIFEST, MODEL, is_checkpoint

    if path.is_dir():
        raise CommandError(f"{path}: a folder of that name is in the way")
    if path.exists() and not path.is_file():
        raise CommandError(f"{path}: a device or a pipe is in the way (for stdout say -)")
    if path.name in (MODEL, MANIFEST) and is_checkpoint(path.parent):
        raise CommandError(f"{path}: part of a checkpoint, which it would destroy")
    check_writable(path)


def check_report(folder: Path | None, files: Iterable[str] = ()) -> None:
    """Raise :class:`LifetimeError` if a report cannot be written, or matplotlib is missing."""
    if folder is not None:
        require_plots()
        check_folder(folder, files)


def check_folder(path: Path | None, files: Iterable[str] = ()) -> None:
    """Raise :class:`CommandError` if a folder or one of its files cannot be written."""
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise CommandError(f"{path}: a file of that name is in the way")
    if path.is_symlink() and not path.exists():
        raise CommandError(f"{path}: a link that leads nowhere is in the way")
    _try_to_write(path, path)
    for name in files:
        check_file(path / name)


def check_writable(path: Path) -> None:
    """Raise :class:`CommandError` if a path cannot be written; tried in its nearest folder."""
    _try_to_write(path, path.parent, path.name)


def _try_to_write(path: Path, folder: Path, name: str = "") -> None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise CommandError(f"{path}: cannot be written ({folder} is not a folder)")
    try:
        # A file is made, since the permissions alone always allow root.
        atomic.check_place(folder / (name or "report"))
    except OSError as error:
        raise CommandError(f"{path}: cannot be written ({error.strerror})") from error
