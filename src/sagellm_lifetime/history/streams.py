"""Log files as bytes, whatever compression they are in: gzip, zstd, bzip2 or xz, by content."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final, cast

import polars as pl

from sagellm_lifetime.core.errors import HistoryError

_MAGIC: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
}
PACKED: Final = (".gz", ".zst", ".bz2", ".xz")
"""Suffixes of files that are unpacked while they are read."""
_NO_SEPARATOR = "\x1f"  # a character that text files do not have: a line stays one cell


def packing(path: Path) -> str | None:
    """Return how a file is compressed, by its first bytes; None where it is not."""
    with path.open("rb") as stream:
        start = stream.read(8)
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


@contextmanager
def open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, unpacked on the way.

    Raises:
        HistoryError: the compressed file is truncated or damaged, found while it is read.
    """
    how = packing(path)
    try:
        with _opened(path, how) as stream:
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise HistoryError(f"{path}: damaged or truncated ({how}): copy it again") from error
    except OSError as error:
        if how == "bzip2" and error.errno is None:
            raise HistoryError(f"{path}: damaged or truncated ({how}): copy it again") from error
        raise


def _opened(path: Path, how: str | None) -> IO[bytes]:
    if how == "gzip":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if how == "bzip2":
        return bz2.open(path, "rb")
    if how == "xz":
        return lzma.open(path, "rb")
    if how == "zstd":
        return _zstd(path)
    return path.open("rb")


def _zstd(path: Path) -> IO[bytes]:
    """Unpack zstd: by the ``zstandard`` package where it is installed, else by polars, whole."""
    if find_spec("zstandard") is not None:
        return cast("IO[bytes]", import_module("zstandard").open(str(path), "rb"))
    try:
        # Python has no zstd before 3.14. Polars unpacks what it reads as CSV: one cell a line.
        lines = pl.read_csv(
            path,
            has_header=False,
            separator=_NO_SEPARATOR,
            quote_char=None,
            infer_schema=False,
            new_columns=["line"],
            truncate_ragged_lines=True,
        )["line"]
    except pl.exceptions.NoDataError:
        return io.BytesIO()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        message = f"{path}: zstd that cannot be unpacked here: unpack it first (zstd -d)"
        raise HistoryError(message) from error
    text: str = lines.fill_null("").str.join("\n").item()
    return io.BytesIO(text.encode())
