"""Open log files as uncompressed bytes: gzip, zstd, bzip2 and xz are recognised by content."""

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
from typing import IO, Any, Final, cast

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
    """Return how a file is compressed, by its first bytes; None if it is not."""
    with path.open("rb") as stream:
        start = stream.read(8)
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


@contextmanager
def open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, uncompressed on the way.

    Raises:
        HistoryError: the compressed file is truncated or damaged, noticed while it is read.
    """
    compression = packing(path)
    try:
        with _opened(path, compression) as stream:
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(path, compression) from error
    except OSError as error:
        if compression == "bzip2" and error.errno is None:
            raise _damaged(path, compression) from error
        raise


def _damaged(path: Path, compression: str | None) -> HistoryError:
    return HistoryError(f"{path}: damaged or truncated ({compression}): copy it again")


def _opened(path: Path, compression: str | None) -> IO[bytes]:
    if compression == "gzip":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if compression == "bzip2":
        return bz2.open(path, "rb")
    if compression == "xz":
        return lzma.open(path, "rb")
    if compression == "zstd":
        return _zstd(path)
    return path.open("rb")


class _ZstdReader(io.RawIOBase):
    """Raw stream of a zstd file of one or more frames; its end inside of one is an error.

    The readers of the package ``zstandard`` take a truncated file for a whole one.
    """

    def __init__(self, path: Path) -> None:
        self._package: Any = import_module("zstandard")
        self._file = path.open("rb")
        self._frame = self._new_frame()
        self._out, self._in = b"", b""

    def _new_frame(self) -> Any:
        return self._package.ZstdDecompressor().decompressobj()

    def readable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` and return the number of bytes, 0 at the end.

        Raises:
            EOFError: the file is damaged, or ends within a frame.
        """
        while not self._out:
            chunk = self._in or self._file.read(io.DEFAULT_BUFFER_SIZE)
            self._in = b""
            if not chunk:
                if not self._frame.eof:
                    raise EOFError
                return 0
            if self._frame.eof:
                self._frame = self._new_frame()
            try:
                self._out = self._frame.decompress(chunk)
            except self._package.ZstdError as error:
                raise EOFError from error
            if self._frame.eof:
                self._in = self._frame.unused_data
        size = min(len(buffer), len(self._out))
        buffer[:size] = self._out[:size]
        self._out = self._out[size:]
        return size


def _zstd(path: Path) -> IO[bytes]:
    """Open a zstd file: with the package ``zstandard`` if installed, else whole with polars."""
    if find_spec("zstandard") is not None:
        return cast("IO[bytes]", io.BufferedReader(_ZstdReader(path)))
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
