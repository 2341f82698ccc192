"""The folder an engine is watched and switched through: one sub-folder per engine core.

STATE/engine-0/stats.json      written once a second
STATE/engine-0/control.json    {"mode": "act"}: read once a second
STATE/engine-0/lock            held while the engine core lives
STATE/engine-0/predictor/      what was learned; predictor.old/ what was not gone on from
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.engines.vllm.breaker import LOG
from sagellm_lifetime.engines.vllm.settings import MODES, Mode
from sagellm_lifetime.learning.checkpoint import write_atomically

STATS: Final = "stats.json"
CONTROL: Final = "control.json"
LOCK: Final = "lock"
"""Holds the id of the front end's process."""
PREDICTOR: Final = "predictor"
_PATIENCE_S: Final = 30.0


class EngineState:
    """One engine core's sub-folder.

    Raises:
        LifetimeError: another engine holds it.
        OSError: it cannot be made.
    """

    def __init__(self, state: Path, rank: int) -> None:
        self.folder = state / f"engine-{rank}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        (self.folder / CONTROL).unlink(missing_ok=True)  # the mode is the command line's at first
        self._seen: tuple[int, int] | None = None

    def write(self, stats: dict[str, Any]) -> None:
        """Put new statistics in the place of the old ones.

        Raises:
            CheckpointError: they cannot be written.
        """
        text = json.dumps(finite(stats), allow_nan=False)
        write_atomically(self.folder / STATS, text.encode())

    def asked_for(self) -> Mode | None:
        """The mode that was asked for since the last call."""
        try:
            status = (self.folder / CONTROL).stat()
            now = (status.st_mtime_ns, status.st_ino)
            if now == self._seen:
                return None
            self._seen = now
            said = json.loads((self.folder / CONTROL).read_bytes())
            mode: Mode = MODES[MODES.index(said["mode"])]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            LOG.error("%s says nothing of use: %s", self.folder / CONTROL, error)
            return None
        return mode

    def close(self) -> None:
        """Let another have it."""
        self._lock.close()


def _locked(folder: Path) -> BinaryIO:
    file = (folder / LOCK).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise LifetimeError(
            f"{folder.parent}: another engine runs with this state: name another folder with "
            "--state, or stop it"
        ) from None
    file.truncate(0)
    file.write(str(os.getppid()).encode())
    file.flush()
    return file


def check_free(state: Path) -> None:
    """Refuse a folder that a living engine uses; clear what a dead one has left.

    An engine core whose front end was killed is on its way out: it is waited for.

    Raises:
        LifetimeError: it is in use.
    """
    for folder in sorted(state.glob("engine-*")):
        ends = time.monotonic() + _PATIENCE_S
        while True:
            try:
                lock = _locked(folder)
            except LifetimeError:
                if time.monotonic() > ends or _alive((folder / LOCK).read_bytes()):
                    raise
                time.sleep(0.2)
                continue
            (folder / STATS).unlink(missing_ok=True)
            lock.close()
            break


def _alive(process: bytes) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        return True
    return True


def read_stats(state: Path) -> list[dict[str, Any]]:
    """The newest statistics of every engine core, with their ``age`` in seconds."""
    found = []
    for path in sorted(state.glob(f"engine-*/{STATS}")):
        try:
            stats = json.loads(path.read_bytes())
            stats["age"] = max(time.time() - os.stat(path).st_mtime, 0.0)
        except (OSError, ValueError):
            continue  # it has just gone
        found.append(stats)
    return found


def ask_for(state: Path, mode: Mode) -> int:
    """Ask every engine core for a mode; how many there are."""
    folders = [path.parent for path in state.glob(f"engine-*/{STATS}")]
    for folder in folders:
        write_atomically(folder / CONTROL, json.dumps({"mode": mode}).encode())
    return len(folders)


def finite(value: Any) -> Any:
    """JSON has no NaN: null is what nothing is known of."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return None
    return value
