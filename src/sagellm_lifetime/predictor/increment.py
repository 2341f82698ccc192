"""Increment: completions learned since the checkpoint that a server started from, kept apart.

    in use = base + own         base: the checkpoint that the server started from

The state in use learns as before. Beside it lie ``base`` and ``own``, so that the states of
several servers that started from one checkpoint can be merged: the checkpoint once, and what each
has learned. A replica of a fleet keeps the same two.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.checkpoint import load_predictor
from sagellm_lifetime.predictor.checkpoint_file import is_checkpoint
from sagellm_lifetime.predictor.lineage import contains
from sagellm_lifetime.predictor.records import Completion

BASE, OWN = ".base", ".own"
"""Suffixes of the directories beside a checkpoint that is learned: what it started from, and what
it learned by itself."""


def beside(path: Path, suffix: str) -> Path:
    """Return the directory beside a checkpoint with a suffix to its name."""
    return path.with_name(path.name + suffix)


def empty_like(base: Predictor) -> Predictor:
    """Return a predictor that learns by itself what is to be merged with ``base``."""
    # Gradient steps are taken in the state in use, on completions that it has predicted.
    options = {"online": "off"} if "online" in base.options else {}
    own = base.new(**options)
    own.use_keys(base.keys)
    return own


class Increment:
    """Learner of what comes after a checkpoint.

    Args:
        in_use: the state that learns the same completions.
        path: directory of ``in_use``; ``base`` and ``own`` lie beside it.

    Raises:
        LifetimeError: ``base`` or ``own`` is damaged or of another predictor.
    """

    def __init__(self, in_use: Predictor, path: Path) -> None:
        self._path = beside(path, OWN)
        own = empty_like(load_predictor(beside(path, BASE)))
        if is_checkpoint(self._path):
            own = load_predictor(self._path, like=own)
        own.share_stretch(in_use)
        self._own = own

    def learn(self, completion: Completion) -> None:
        """Learn a completion."""
        self._own.learn(completion)

    def save(self) -> None:
        """Write ``own``. Raises :class:`CheckpointError`."""
        self._own.save(self._path)


def increment_parts(path: Path, in_use: Predictor) -> tuple[Predictor, Predictor] | None:
    """Return ``base`` and ``own`` beside a checkpoint, None if it has none that belong to it.

    Args:
        path: the checkpoint.
        in_use: what was loaded from there.
    """
    with suppress(LifetimeError):
        base, own = (beside(path, suffix) for suffix in (BASE, OWN))
        if is_checkpoint(base) and is_checkpoint(own):
            parts = load_predictor(base), load_predictor(own)
            if not parts[0].lineage or contains(in_use.lineage, parts[0].lineage):
                return parts
    return None


def can_continue(path: Path, in_use: Predictor) -> bool:
    """Return True if all that ``in_use`` has learned is in ``base`` or ``own`` beside it.

    Args:
        path: directory of ``in_use``.
        in_use: state of an earlier run.
    """
    try:
        base = load_predictor(beside(path, BASE)).lineage
        own = beside(path, OWN)
        known = set(base) | set(load_predictor(own).lineage if is_checkpoint(own) else ())
    except LifetimeError:
        return False
    return set(in_use.lineage) <= known
