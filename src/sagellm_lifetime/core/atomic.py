"""Atomic writes of files and folders.

New content is written under a random name beside its target, ``.NAME.RANDOM.tmp``, flushed to the
disk and renamed. Its writer holds a lock on it until then. The next writer of the same target
removes temporary files without a lock: their writers were killed.

Modes: a file that replaces another keeps its mode; a new one follows the umask, or is readable by
its owner only if ``private`` (records, states, content).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from sagellm_lifetime.core.errors import LifetimeError

_SUFFIX: Final = ".tmp"
_RANDOM_BYTES: Final = 6
_LONGEST_NAME: Final = 200
"""Bytes of the target's name in a temporary one; file systems allow 255 in all."""
_TRIES: Final = 100
_CANNOT_LOCK: Final = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.EBADF, errno.ENOSYS)
_CANNOT_SYNC: Final = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
PRIVATE_FILE: Final = 0o600
PRIVATE_FOLDER: Final = 0o700


def write_atomically(
    path: Path, data: bytes, *, private: bool = False, error: type[LifetimeError] = LifetimeError
) -> None:
    """Write ``data`` to ``path``; a reader sees the old file or the new one, never a part.

    Missing parent folders are made. A link at ``path`` is replaced and not followed.

    Args:
        path: the file.
        data: its whole content.
        private: readable by its owner only; also the folders that are made.
        error: class of the one-line error.

    Raises:
        LifetimeError: as ``error``; the file cannot be written and is as it was before.
    """
    try:
        make_folder(path.parent, private=private)
        with replacing(path, private=private) as file:
            file.write(data)
    except OSError as failure:
        raise error(f"{path}: cannot be written ({failure.strerror or failure})") from failure


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` if the block ends without an exception.

    Raises:
        OSError: the file cannot be written, or ``path`` is a device or a pipe.
    """
    remove_leftovers(path)
    old_mode = _mode_of(path)
    temporary, descriptor = _create(path, lambda name: _new_file(name, private=private))
    try:
        with open(descriptor, "wb") as file:
            if old_mode is not None and not private:
                os.fchmod(descriptor, old_mode)
            yield file
            file.flush()
            os.fsync(descriptor)
            os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside ``path``, to be filled and renamed; remove it if it is still there.

    Only its owner can read the folder. Raise :class:`OSError` if it cannot be made.
    """
    remove_leftovers(path)
    folder, descriptor = _create(path, _new_folder)
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


@contextmanager
def held_exclusively(path: Path) -> Iterator[bool]:
    """Lock a file or folder for the block; yield True if no other process holds it.

    Yield False also if it was removed, is another user's, or is on a file system without locks.
    """
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
        # Locks of network file systems are for writers only; a folder cannot be opened as such.
        access = os.O_RDONLY if is_folder else os.O_RDWR
        descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        yield bool(_lock(descriptor)) and _is_at(descriptor, path)
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files and folders of ``path`` whose writers have ended."""
    pattern = re.compile(rf"\.{re.escape(_stem(path))}\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}{_SUFFIX}")
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_unheld(Path(entry.path))


def check_place(path: Path) -> None:
    """Raise :class:`OSError` if no file of that name can be written; leave nothing behind."""
    with suppress(FileNotFoundError):
        os.lstat(path)  # a name too long for the file system
    temporary, descriptor = _create(path, lambda name: _new_file(name, private=True))
    try:
        temporary.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def make_folder(path: Path, *, private: bool = False) -> None:
    """Make a folder and its missing parents, readable by the owner only if ``private``.

    Existing folders keep their modes. Raise :class:`OSError` if one cannot be made.
    """
    mode = PRIVATE_FOLDER if private else 0o777
    missing = [path]
    while not missing[-1].exists() and missing[-1].parent != missing[-1]:
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        folder.mkdir(mode, exist_ok=True)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def _mode_of(path: Path) -> int | None:
    """Return the permissions of the file at ``path``, or ``None`` if there is none."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return stat.S_IMODE(mode) & 0o777
    if stat.S_ISLNK(mode):
        return None
    # A rename would put a file in the place of a device or a pipe.
    raise OSError(errno.EINVAL, "not a regular file")


def _stem(path: Path) -> str:
    return os.fsdecode(os.fsencode(path.name)[:_LONGEST_NAME])


def _create(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Make a temporary file or folder beside ``path`` and lock it; return name and descriptor."""
    for _ in range(_TRIES):
        name = f".{_stem(path)}.{secrets.token_hex(_RANDOM_BYTES)}{_SUFFIX}"
        temporary = path.with_name(name)
        try:
            descriptor = make(temporary)
        except FileExistsError:
            continue
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise
            continue  # another writer removed the folder as a leftover before it was opened
        # Before it is locked, another writer may remove it as a leftover.
        if _lock(descriptor) is not False and _is_at(descriptor, temporary):
            return temporary, descriptor
        os.close(descriptor)
    raise OSError(errno.EAGAIN, "no temporary name is free")


def _new_file(path: Path, *, private: bool) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, PRIVATE_FILE if private else 0o666)


def _new_folder(path: Path) -> int:
    os.mkdir(path, PRIVATE_FOLDER)
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except BaseException:
        with suppress(OSError):
            path.rmdir()
        raise


def _lock(descriptor: int) -> bool | None:
    """Lock a file; return True if it was free, ``None`` if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
        return None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_unheld(path: Path) -> None:
    """Remove a temporary file or folder unless its writer lives or that is unknown."""
    with held_exclusively(path) as is_unheld:
        if is_unheld and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif is_unheld:
            path.unlink(missing_ok=True)
