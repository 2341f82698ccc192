"""The state folder, which publishes and switches an engine: one sub-folder per engine core.

STATE/engine-0/stats.json      written once a second
STATE/engine-0/control.json    {"mode": "act"}: read once a second
STATE/engine-0/lock            held while the engine core lives
STATE/engine-0/predictor/      learned state; predictor.old/ an earlier one that is not continued
STATE/engine-0/predictor.base/ in a fleet: what it started from; predictor.own/ its own part

New folders have mode 0700, files 0600.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from sagellm_lifetime.core.atomic import make_folder, write_atomically
from sagellm_lifetime.core.errors import CheckpointError, LifetimeError
from sagellm_lifetime.core.forking import ClosedInChild
from sagellm_lifetime.core.regular_files import open_regular, read_regular
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.published import MOST_BYTES, parse_stats
from sagellm_lifetime.vllm.settings import START_MODES, StartMode

STATS: Final = "stats.json"
CONTROL: Final = "control.json"
LOCK: Final = "lock"
"""A file with the id of the front end's process."""
PREDICTOR: Final = "predictor"
MOST_REQUEST_BYTES: Final = 4096
"""Largest size of a request for a mode."""
_PATIENCE_S: Final = 30.0
_FOLDER: Final = re.compile("engine-(0|[1-9][0-9]{0,8})")


class EngineState:
    """One engine core's sub-folder, whose files only the owner can read.

    Raises:
        LifetimeError: if another engine holds it, or it cannot be made or written.
    """

    def __init__(self, state: Path, rank: int) -> None:
        self.folder = state / f"engine-{rank}"
        try:
            make_folder(self.folder, private=True)
            self._lock = _locked(self.folder)
            self._in_child = ClosedInChild(self._lock)
            try:
                # An old request must not override the mode of the command line.
                (self.folder / CONTROL).unlink(missing_ok=True)
            except OSError:
                self._lock.close()
                raise
        except OSError as error:
            raise _unusable(self.folder, error) from error
        self._seen: tuple[int, int] | None = None

    def write(self, stats: dict[str, Any]) -> None:
        """Replace the statistics.

        Raises:
            CheckpointError: if they cannot be written.
        """
        text = json.dumps(finite(stats), allow_nan=False)
        write_atomically(self.folder / STATS, text.encode(), private=True, error=CheckpointError)

    def asked_for(self) -> StartMode | None:
        """Return the mode requested since the last call, or None.

        Anything else in place of the request is reported once and ignored.
        """
        path = self.folder / CONTROL
        try:
            status = path.lstat()
            now = (status.st_mtime_ns, status.st_ino)
            if now == self._seen:
                return None
            self._seen = now
            return parse_mode(read_regular(path, MOST_REQUEST_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            LOG.error("%s is ignored: %s", path, error.strerror or error)
        except ValueError as error:
            LOG.error("%s is ignored: %s", path, error)
        return None

    def close(self) -> None:
        """Release the lock of the folder."""
        self._lock.close()


def parse_mode(data: bytes) -> StartMode:
    """Return the mode in ``{"mode": MODE}``, UTF-8 JSON of that one key.

    Raises:
        ValueError: if it is anything else.
    """
    try:
        request = json.loads(data.decode(), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        request = None
    if isinstance(request, _Pairs) and len(request) == 1:
        key, mode = request[0]
        if key == "mode" and isinstance(mode, str) and mode in START_MODES:
            return START_MODES[START_MODES.index(mode)]
    raise ValueError(f'not {{"mode": one of {", ".join(START_MODES)}}}')


class _Pairs(list[tuple[str, Any]]):
    """The key-value pairs of a JSON object, repeated keys included."""


def _unusable(folder: Path, error: OSError) -> LifetimeError:
    reason = error.strerror or error
    return LifetimeError(f"{folder}: cannot be used ({reason}): name another folder with --state")


def _locked(folder: Path) -> BinaryIO:
    """Return the locked lock file of an engine core's folder, with the parent's id in it.

    Raises:
        LifetimeError: if another engine holds it.
        OSError: if it cannot be written or locked.
    """
    file = open_regular(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(str(os.getppid()).encode())
        file.flush()
    except BlockingIOError:
        file.close()
        raise LifetimeError(
            f"{folder.parent}: another engine runs with this state: name another folder with "
            "--state, or stop it"
        ) from None
    except OSError:
        file.close()
        raise
    return file


def check_free(state: Path) -> None:
    """Refuse a folder that a running engine uses; delete the statistics of a dead one.

    Wait for an engine core whose front end has died, since it ends by itself.

    Raises:
        LifetimeError: if it is in use, or cannot be used.
    """
    for folder, _ in engine_folders(state):
        ends = time.monotonic() + _PATIENCE_S
        while True:
            try:
                lock = _locked(folder)
            except LifetimeError:
                if time.monotonic() > ends or _alive(folder / LOCK):
                    raise
                time.sleep(0.2)
                continue
            except OSError as error:
                raise _unusable(folder, error) from error
            try:
                (folder / STATS).unlink(missing_ok=True)
            except OSError as error:
                raise _unusable(folder, error) from error
            finally:
                lock.close()
            break


def _alive(lock: Path) -> bool:
    """Return True if the process named in a lock file runs, or that is unknown."""
    try:
        os.kill(int(read_regular(lock, MOST_REQUEST_BYTES)), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        return True
    return True


def engine_folders(state: Path) -> list[tuple[Path, int]]:
    """Return the folders ``engine-N`` and their N, in the order of N."""
    folders = []
    for folder in state.glob("engine-*"):
        name = _FOLDER.fullmatch(folder.name)
        if name is not None and folder.is_dir():
            folders.append((folder, int(name[1])))
    return sorted(folders, key=lambda pair: pair[1])


@dataclass(frozen=True)
class Published:
    """The last published statistics of all engine cores of a state folder.

    Attributes:
        engines: statistics, each with its ``age`` in seconds.
        unreadable: errors of damaged statistics, ``engine-N: REASON``.
    """

    engines: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def read_published(state: Path) -> Published:
    """Return the newest statistics of every engine core; damaged files raise nothing."""
    published = Published()
    for folder, rank in engine_folders(state):
        path = folder / STATS
        try:
            stats = parse_stats(read_regular(path, MOST_BYTES), rank)
            stats["age"] = max(time.time() - path.lstat().st_mtime, 0.0)
        except FileNotFoundError:
            continue  # not written yet, or just deleted
        except OSError as error:
            published.unreadable.append(f"{folder.name}: {error.strerror or error}")
        except ValueError as error:
            published.unreadable.append(f"{folder.name}: {error}")
        else:
            published.engines.append(stats)
    return published


def read_stats(state: Path) -> list[dict[str, Any]]:
    """Return the newest readable statistics of every engine core."""
    return read_published(state).engines


def request_mode(state: Path, mode: StartMode) -> int:
    """Request a mode from every engine core; return the number of engine cores.

    Raises:
        CheckpointError: if a request cannot be written.
    """
    folders = [folder for folder, _ in engine_folders(state) if (folder / STATS).exists()]
    for folder in folders:
        request = json.dumps({"mode": mode}).encode()
        write_atomically(folder / CONTROL, request, private=True, error=CheckpointError)
    return len(folders)


def finite(value: Any) -> Any:
    """Return a JSON value with null for non-finite numbers, as JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return None
    return value
