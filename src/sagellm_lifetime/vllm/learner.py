"""The learner of a live engine, in a process of its own.

A learned state belongs to the checkpoint that learning started from. With another checkpoint or
predictor, an engine starts from the given one, and the earlier state is kept under another name, so
that two states never compete.
"""

from __future__ import annotations

import hashlib
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, Final

from sagellm_lifetime.core.errors import CheckpointError, LifetimeError
from sagellm_lifetime.predictor.background_learner import BackgroundLearner, Fleet
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.checkpoint import load_predictor
from sagellm_lifetime.predictor.checkpoint_file import MANIFEST
from sagellm_lifetime.predictor.checkpoint_lock import claim, release
from sagellm_lifetime.predictor.fleet.replica import FLEET
from sagellm_lifetime.predictor.increment import BASE, OWN, beside
from sagellm_lifetime.predictor.merging import mismatch
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.settings import LiveSettings

STARTED_FROM: Final = "started_from"
"""Key of the initial checkpoint in the summary of the learned state, so that both are written in
one step."""
IDLE: Final[dict[str, Any]] = {
    "lessons_taken": 0,
    "lessons_on_the_way": 0,
    "lessons_dropped": 0,
    "lessons_lost": 0,
    "learner_running": False,
    "learner_restarts": 0,
    "learner_swaps": 0,
    "learner_trouble": None,
    "weights_accepted": 0,
    "weights_refused": 0,
    "fleet_connected": False,
    "fleet_replicas": 0,
    "fleet_lessons": 0,
    "fleet_published": 0,
    "fleet_received": 0,
    "fleet_refused": 0,
    "fleet_failures": 0,
    "fleet_trouble": None,
}
"""The counts of an engine that does not learn."""
WEIGHTS: Final = ("weights_accepted", "weights_refused")
"""Counts that only networks have."""
_PATIENCE_S: Final = 30.0
"""Seconds to wait for the learning process of a killed engine to save its state."""
_STOP_S: Final = 2.5
"""Seconds for the process to learn the rest and save it, within the time of an engine's end."""
_GRACE_S: Final = 0.5
"""Seconds for the process to end after it was killed."""


class Learner:
    """The learner of one engine core.

    Args:
        predictor: learns from now on, and continues with its earlier learned state.
        settings: of the engine, with the checkpoint and the interval of updates.
        learned: directory of the learned state; ``None`` for a temporary one.

    Raises:
        LifetimeError: if the directory cannot be written, another process learns into it, or an
            earlier state cannot be moved.
    """

    def __init__(self, predictor: Predictor, settings: LiveSettings, learned: Path | None) -> None:
        origin = _origin(settings.checkpoint, learned)
        if learned is not None:
            move_aside(learned, predictor, origin, is_in_fleet=bool(settings.fleet))
        if origin:
            predictor.summary = {**predictor.summary, STARTED_FROM: origin}
        from sagellm_lifetime.networks.model import NetworkModel

        self._predictor = predictor
        self._has_network = isinstance(predictor.model, NetworkModel)
        fleet = Fleet(settings.fleet, settings.fleet_every_s) if settings.fleet else None
        self._background = BackgroundLearner(
            predictor,
            learned,
            every=settings.learn_every_s,
            fleet=fleet,
            keeps_increment=bool(origin) and learned is not None,
        )
        self._fleet_trouble: str | None = None
        self._restarts = 0
        self._trouble: str | None = None

    def counts(self) -> dict[str, Any]:
        """Return the counts of :data:`IDLE`, under the names of ``get_metrics``, without a lock."""
        counts = {**IDLE, **self._background.counts()}
        if self._has_network:
            learned = self._predictor.model.counts()
            counts.update({name: learned[name] for name in WEIGHTS})
        return counts

    def watch(self) -> None:
        """Log the failures since the last call."""
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
        if counts["fleet_trouble"] != self._fleet_trouble:
            self._fleet_trouble = counts["fleet_trouble"]
            if self._fleet_trouble is None:
                LOG.info("the fleet is there again")
            else:
                LOG.warning("the fleet: %s; this replica goes on alone", self._fleet_trouble)

    def save_soon(self) -> None:
        """Ask the process for a checkpoint now, as the engine may be killed at any time."""
        self._background.save_soon()

    def close(self) -> None:
        """Stop the process after it has learned and saved the rest, within a time limit."""
        # In a thread, since a hanging predictor may hold the lock that this needs. Then the process
        # saves and ends after the engine's end.
        ending = Thread(target=self._background.stop, args=(_STOP_S,), daemon=True)
        ending.start()
        ending.join(_STOP_S + _GRACE_S)


def move_aside(
    learned: Path, predictor: Predictor, origin: str, *, is_in_fleet: bool = False
) -> None:
    """Move a learned state aside if ``predictor`` must not continue from it.

    Args:
        learned: a checkpoint directory, which may not exist yet.
        predictor: the initial predictor.
        origin: digest of its checkpoint; empty without one.
        is_in_fleet: True for a replica of a fleet, which continues what was learned in one.
    """
    lock = claim(learned, _PATIENCE_S)  # an earlier process may still be writing
    try:
        if not learned.exists():
            return
        why = _reason_against(learned, predictor, origin, is_in_fleet)
        if why:
            names = (learned.with_name(f"{learned.name}.old{n or ''}") for n in count())
            kept = next(name for name in names if not (name.exists() or beside(name, OWN).exists()))
            try:
                learned.rename(kept)
                for suffix in (OWN, BASE):  # in a fleet it would be merged again
                    if beside(learned, suffix).exists():
                        beside(learned, suffix).rename(beside(kept, suffix))
            except OSError as error:
                raise CheckpointError(f"{learned}: cannot be moved ({error.strerror})") from error
            LOG.warning("what was learned before is not used, and kept as %s (%s)", kept, why)
        else:
            LOG.info("lifetime prediction goes on with what was learned in %s", learned)
    finally:
        release(lock)


def _reason_against(learned: Path, predictor: Predictor, origin: str, is_in_fleet: bool) -> str:
    try:
        earlier = load_predictor(learned)
    except LifetimeError as error:
        return str(error)
    if origin and earlier.summary.get(STARTED_FROM) != origin:
        return "it did not start from the checkpoint that is given now"
    if is_in_fleet and not earlier.summary.get(FLEET):
        return "it was learned alone, and cannot be told apart from what the fleet knows"
    return mismatch(earlier, predictor)


def _origin(checkpoint: str, learned: Path | None) -> str:
    """Return the digest of a checkpoint; empty for none, or for the learned state itself."""
    path = Path(checkpoint)
    if not checkpoint or (learned is not None and path.resolve() == learned.resolve()):
        return ""
    try:
        with (path / MANIFEST if path.is_dir() else path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
