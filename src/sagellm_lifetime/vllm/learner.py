"""What a live engine learns, beside it: where it goes on from, what is told of it, how it ends.

What was learned belongs to the checkpoint that learning started from. Started with another one, or
as another predictor, an engine starts from what it was given, and what lies in the way is kept
under another name: two states never compete.
"""

from __future__ import annotations

import hashlib
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, Final

from sagellm_lifetime.core.errors import CheckpointError, LifetimeError
from sagellm_lifetime.predictor.background_learner import BackgroundLearner, mismatch
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.checkpoint import load_predictor
from sagellm_lifetime.predictor.checkpoint_file import MANIFEST
from sagellm_lifetime.predictor.checkpoint_lock import claim, release
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.settings import LiveSettings

STARTED_FROM: Final = "started_from"
"""Which checkpoint learning started from: an entry of the summary that goes with what was learned,
so that the two are written in one step."""
IDLE: Final[dict[str, Any]] = {
    "lessons_taken": 0,
    "lessons_on_the_way": 0,
    "lessons_dropped": 0,
    "lessons_lost": 0,
    "learner_running": False,
    "learner_restarts": 0,
    "learner_swaps": 0,
    "learner_trouble": None,
}
"""The counts of an engine that does not learn."""
_PATIENCE_S: Final = 30.0
"""For the process of an engine that was killed to write what it knows."""
_STOP_S: Final = 2.5
"""For the process to learn what is left and save it: what the end of an engine has time for."""
_GRACE_S: Final = 0.5
"""For it to be buried, when it had to be killed."""


class Learner:
    """Of one engine core.

    Args:
        predictor: it learns from now on, and goes on with what it learned before.
        settings: what it was started from, and how often what it learned comes into use.
        learned: directory of what it learns; ``None`` for a temporary one.

    Raises:
        LifetimeError: the directory cannot be written, another process learns into it, or what
            lies there cannot be moved.
    """

    def __init__(self, predictor: Predictor, settings: LiveSettings, learned: Path | None) -> None:
        origin = _origin(settings.checkpoint, learned)
        if learned is not None:
            make_way(learned, predictor, origin)
        if origin:
            predictor.summary = {**predictor.summary, STARTED_FROM: origin}
        self._background = BackgroundLearner(predictor, learned, every=settings.learn_every_s)
        self._restarts = 0
        self._trouble: str | None = None

    def counts(self) -> dict[str, Any]:
        """What became of the lessons, under the names of ``get_metrics``; waits for no lock."""
        return self._background.counts()

    def watch(self) -> None:
        """Say what went wrong since the last time."""
        counts = self.counts()
        if counts["learner_restarts"] > self._restarts:
            self._restarts = counts["learner_restarts"]
            LOG.warning(
                "the process that learns has ended and is started anew; %d lessons lost so far",
                counts["lessons_lost"],
            )
        if counts["learner_trouble"] not in (None, self._trouble):
            LOG.error("the process that learns: %s", counts["learner_trouble"])
        self._trouble = counts["learner_trouble"]

    def close(self) -> None:
        """Let it learn and save what is left, and end it."""
        # A predictor that hangs may hold the lock which this needs, and nobody waits for it. Then
        # the process saves and ends when the engine has ended.
        ending = Thread(target=self._background.stop, args=(_STOP_S,), daemon=True)
        ending.start()
        ending.join(_STOP_S + _GRACE_S)


def make_way(learned: Path, predictor: Predictor, origin: str) -> None:
    """Move aside what ``predictor`` must not go on from, if that is what lies at ``learned``.

    Args:
        learned: a checkpoint directory, or nothing yet.
        predictor: as it was given.
        origin: of the checkpoint it was given as; empty where there was none.
    """
    held = claim(learned, _PATIENCE_S)  # the last one may still be writing
    try:
        if not learned.exists():
            return
        why = _why_not(learned, predictor, origin)
        if why:
            names = (learned.with_name(f"{learned.name}.old{n or ''}") for n in count())
            kept = next(name for name in names if not name.exists())
            try:
                learned.rename(kept)
            except OSError as error:
                raise CheckpointError(f"{learned}: cannot be moved ({error.strerror})") from error
            LOG.warning("what was learned before is not used, and kept as %s (%s)", kept, why)
        else:
            LOG.info("lifetime prediction goes on with what was learned in %s", learned)
    finally:
        release(held)


def _why_not(learned: Path, predictor: Predictor, origin: str) -> str:
    try:
        found = load_predictor(learned)
    except LifetimeError as error:
        return str(error)
    if origin and found.summary.get(STARTED_FROM) != origin:
        return "it did not start from the checkpoint that is given now"
    return mismatch(found, predictor)


def _origin(checkpoint: str, learned: Path | None) -> str:
    """What tells one checkpoint from another; empty for none, or for what was learned itself."""
    path = Path(checkpoint)
    if not checkpoint or (learned is not None and path.resolve() == learned.resolve()):
        return ""
    try:
        with (path / MANIFEST if path.is_dir() else path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
