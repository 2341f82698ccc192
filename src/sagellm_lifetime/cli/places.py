"""Where things are read from and written to: defaults, and refusals before the work starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sagellm_lifetime.cli.guard import CommandError
from sagellm_lifetime.cli.output import STDOUT
from sagellm_lifetime.core import atomic
from sagellm_lifetime.core.errors import CheckpointError
from sagellm_lifetime.core.extras import require_plots

RUNS: Final = Path("runs") / "lifetime"
"""Where ``train`` writes by default, and where the other commands look."""


def default_output(predictor: str) -> Path:
    """Where a predictor is saved when nobody says where."""
    return RUNS / predictor


def find_checkpoint(given: Path | None) -> Path:
    """The checkpoint that is meant: the one given, or the newest below ``runs/lifetime``."""
    from sagellm_lifetime.predictor.checkpoint_file import MANIFEST, is_checkpoint

    if given is not None:
        return given
    found = [path for path in RUNS.glob("*") if is_checkpoint(path)] if RUNS.is_dir() else []
    if not found:
        raise CheckpointError(
            f"no checkpoint below {RUNS}: train one (train --data-path FILE) or name one with "
            "--checkpoint"
        )
    return max(found, key=lambda path: ((path / MANIFEST).stat().st_mtime, path.name))


def check_checkpoint_place(path: Path) -> Path:
    """Refuse a place where ``save`` would fail, or would take other files away.

    Returns:
        The place, links followed: a checkpoint is put there by a rename.
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
        others = sorted({each.name for each in path.iterdir()} - {MODEL, MANIFEST})
        if others and is_checkpoint(path):
            raise CheckpointError(
                f"{path}: {others[0]!r} stands beside the checkpoint there, and would be lost: "
                "move it, or choose another directory"
            )
        if path.samefile(os.curdir) or os.path.ismount(path):
            where = "the current directory" if path.samefile(os.curdir) else "a mount point"
            raise CheckpointError(f"{path}: {where}, which cannot be replaced; name one below it")
    check_directory(path)
    check_place(path)
    return path


def check_json(target: str | None, *others: str | Path | None) -> None:
    """Refuse a file that cannot be written, or is one of the ``others``; nothing is made yet."""
    if target == "":
        raise CommandError("--json has no name: give a file, or nothing for stdout")
    if target is not None and target != STDOUT:
        check_file(Path(target))
        check_apart(Path(target), others)


def check_apart(target: Path, others: Iterable[str | Path | None]) -> None:
    """Refuse to write over what is read, or written besides.

    Args:
        target: the file to be written.
        others: paths, globs and folders; ``None`` among them is passed over.
    """
    for other in others:
        if other is None:
            continue
        if Path(other).resolve() == target.resolve():
            raise CommandError(f"{target}: named for two things: one would overwrite the other")
        if target.exists() and any(target.samefile(each) for each in _held(other)):
            raise CommandError(f"{target}: is read with {other}, and would be overwritten")


def _held(source: str | Path) -> list[Path]:
    """The files behind a path, a glob or a folder, as far as there are any."""
    from sagellm_lifetime.core.errors import HistoryError
    from sagellm_lifetime.history.files import find_files

    try:
        return find_files(source)
    except HistoryError:
        return [path for path in [Path(source)] if path.is_file()]


def check_file(path: Path) -> None:
    """Refuse the path of a file that cannot be written, or belongs to a checkpoint."""
    from sagellm_lifetime.predictor.checkpoint_file import MANIFEST, MODEL, is_checkpoint

    if path.is_dir():
        raise CommandError(f"{path}: a folder of that name is in the way")
    if path.exists() and not path.is_file():
        raise CommandError(f"{path}: a device or a pipe is in the way (for stdout say -)")
    if path.name in (MODEL, MANIFEST) and is_checkpoint(path.parent):
        raise CommandError(f"{path}: part of a checkpoint, which it would destroy")
    check_place(path)


def check_report(folder: Path | None, files: Iterable[str] = ()) -> None:
    """Refuse a report that cannot be written, or cannot be drawn without the extra ``report``."""
    if folder is not None:
        require_plots()
        check_folder(folder, files)


def check_folder(path: Path | None, files: Iterable[str] = ()) -> None:
    """Refuse a folder that cannot be made or written into, or in which one of its files cannot."""
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise CommandError(f"{path}: a file of that name is in the way")
    if path.is_symlink() and not path.exists():
        raise CommandError(f"{path}: a link that leads nowhere is in the way")
    _try(path, path)
    for each in files:
        check_file(path / each)


def check_place(path: Path) -> None:
    """Refuse a path that cannot be written, by trying in its nearest existing folder."""
    _try(path, path.parent, path.name)


def _try(path: Path, folder: Path, name: str = "") -> None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise CommandError(f"{path}: cannot be written ({folder} is not a folder)")
    try:
        # Asking for the permission is not enough: it says yes to root everywhere.
        atomic.check_place(folder / (name or "report"))
    except OSError as error:
        raise CommandError(f"{path}: cannot be written ({error.strerror})") from error
