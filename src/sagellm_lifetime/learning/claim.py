"""One writer for a checkpoint: a lock that ends with the last process that holds it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from sagellm_lifetime.core.errors import CheckpointError
from sagellm_lifetime.learning.checkpoint import remove_leftovers


def claim(path: Path, patience: float) -> int:
    """Claim the right to write the checkpoint ``path``, as an open file descriptor.

    A child that was given the descriptor shares the claim. So after a kill -9 of its parent the
    next claim is given when the child has written what it knew, and not before. What killed writers
    left beside the checkpoint is removed.

    Args:
        path: the checkpoint directory. The lock is a file beside it, for the directory itself is
            replaced whenever it is written.
        patience: seconds to wait for another holder.

    Raises:
        CheckpointError: another process has it, or the place cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                os.close(held)
                raise CheckpointError(
                    f"{path}: another process learns into it; choose another directory"
                ) from error
            time.sleep(0.05)
        else:
            remove_leftovers(path)
            return held
