"""Write a history file, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl

from sagellm_lifetime.core.atomic import check_place, replacing
from sagellm_lifetime.core.errors import HistoryError, HistoryHeaderError
from sagellm_lifetime.history.files import SUFFIXES, SUPPORTED


def check_target(path: str | os.PathLike[str]) -> Path:
    """Return the target as a path, checked before hours of work are spent on its content.

    Raises:
        HistoryError: it could not be written.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise HistoryError(
            f"{target}: cannot write {target.suffix or 'no suffix'}: use {SUPPORTED}"
        )
    if not target.parent.is_dir():
        raise HistoryError(f"{target}: the folder {target.parent} does not exist: make it first")
    try:
        if target.is_dir():
            raise HistoryError(f"{target}: a folder of that name is in the way")
        if target.exists() and not target.is_file():
            raise HistoryError(f"{target}: a device or a pipe is in the way")
        check_place(target)
    except OSError as error:
        raise HistoryError(f"{target}: cannot be written: {_reason(error)}") from error
    return target


def write_history(
    frame: pl.DataFrame | pl.LazyFrame, path: str | os.PathLike[str], *, private: bool = False
) -> None:
    """Write ``frame`` as CSV, JSONL or Parquet (by suffix), under a temporary name, then rename.

    A reader never gets a partial file, and after a failure the old file is unchanged.

    Args:
        frame: rows in the history format.
        path: the file.
        private: make the file readable by its owner only; otherwise it keeps the mode of the file
            it replaces, or follows the umask.

    Raises:
        HistoryError: it cannot be written; the message is one line.

    >>> import tempfile, polars
    >>> from sagellm_lifetime import read_history
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_history(polars.DataFrame({"actual_length": [120, 80]}), f"{folder}/new.parquet")
    ...     len(read_history(f"{folder}/new.parquet").frame)
    2
    """
    target = check_target(path)
    kind = SUFFIXES[target.suffix.lower()]
    lazy = frame.lazy()
    try:
        if kind == "csv":
            for name, dtype in lazy.collect_schema().items():
                if dtype.is_nested():
                    raise HistoryHeaderError(
                        f"{target}: the column {name!r} holds lists, which CSV cannot: "
                        "use .jsonl or .parquet"
                    )
        # Opened here and not by polars: when a sink fails, polars may create the file later, in
        # another thread, and so leave it behind.
        with replacing(target, private=private) as stream:
            if kind == "csv":
                lazy.sink_csv(stream)
            elif kind == "jsonl":
                lazy.sink_ndjson(stream)
            else:
                lazy.sink_parquet(stream)
    except OSError as error:
        raise HistoryError(f"{target}: cannot be written: {_reason(error)}") from error
    except pl.exceptions.PolarsError as error:
        message = f"{target}: cannot be written ({type(error).__name__})"
        raise HistoryError(message) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error).split(":", maxsplit=1)[0].splitlines()[0]
