"""Replica of a fleet: its own state, the states of the others, and their merge.

    in use = base + own + others         base: the checkpoint that this replica started from

``own`` learns the completions of this replica alone and is what it writes to the store, so nothing
that came from another replica is ever sent back, and nothing counts twice. All of this happens in
the learning process; an engine only takes over the result.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from sagellm_lifetime.core.errors import CheckpointError, LifetimeError, MergeError
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.checkpoint import load_predictor
from sagellm_lifetime.predictor.checkpoint_file import is_checkpoint
from sagellm_lifetime.predictor.fleet.connect import open_store
from sagellm_lifetime.predictor.fleet.entries import entry_of, predictor_of_entry
from sagellm_lifetime.predictor.fleet.store import Store, StoreError, is_replica
from sagellm_lifetime.predictor.increment import empty_like
from sagellm_lifetime.predictor.lineage import LINEAGE
from sagellm_lifetime.predictor.merging import SECRETS_DIFFER, mismatch
from sagellm_lifetime.predictor.records import Completion

_LEASES: Final = 4.0
"""Duration of a lease, in intervals between two rounds."""
_LEAST_LEASE_S: Final = 20.0
_SHARE: Final = 0.05
"""Maximum share of the time that rounds take."""
REPLICA: Final = "replica"
TOKEN: Final = "token"
"""Keys in the summary of the saved ``own``: name of its entry, and token of the lease."""
FLEET: Final = "fleet"
"""Key in the summary of a state that is learned in a fleet."""


@dataclass
class FleetCounts:
    """Counts that a replica reports of its fleet.

    Attributes:
        connected: True if the last round reached the store.
        replicas: other replicas whose entries are in use.
        lessons: completions of the others in use.
        published: entries written.
        received: entries of others read.
        refused: entries of others that could not be used.
        failures: rounds in which the store was away.
        trouble: why the last round failed, or an entry was refused; ``None`` for nothing.
    """

    connected: bool = False
    replicas: int = 0
    lessons: int = 0
    published: int = 0
    received: int = 0
    refused: int = 0
    failures: int = 0
    trouble: str | None = None

    def values(self) -> dict[str, Any]:
        """Return the values under the names of ``get_metrics``."""
        return {f"fleet_{name}": value for name, value in asdict(self).items()}


@dataclass
class _Other:
    """Entry of another replica: its version, and its predictor, ``None`` for one refused."""

    version: str
    predictor: Predictor | None = field(repr=False)


class Replica:
    """A replica of a fleet.

    Args:
        place: place of the store (:func:`~.connect.open_store`).
        base: what this replica started from; not changed.
        own_path: directory of the checkpoint of ``own``, so that a restart continues it.
        every: least number of seconds between two rounds.

    Raises:
        LifetimeError: ``place`` names no store that could be used here.

    Example:
        >>> from tempfile import mkdtemp
        >>> from sagellm_lifetime import create_predictor
        >>> base, store = create_predictor("survival"), mkdtemp()
        >>> replica = Replica(store, base, None, every=30.0)
        >>> in_use = base.clone()
        >>> replica.exchange(in_use), replica.counts.connected, replica.counts.published
        (False, True, 1)
    """

    def __init__(self, place: str, base: Predictor, own_path: Path | None, every: float) -> None:
        self._store: Store = open_store(place)
        self._base = base
        self._own_path = own_path
        self._every = every
        self._lease_s = max(_LEASES * every, _LEAST_LEASE_S)
        self._others: dict[str, _Other] = {}
        self._name = ""
        """Name of the entry of this replica; empty before the first round that succeeds."""
        self._token = secrets.token_hex(16)
        self._own = self._new_own()
        self._published = -1
        """Completions in the entry that was written last, -1 for none."""
        self._saved = ("", 0)
        """Name of the entry, and completions, of the ``own`` that was saved last."""
        self._is_joined = self._has_new = False
        self._next = 0.0
        self.counts = FleetCounts()
        if own_path is not None and is_checkpoint(own_path):
            self._continue(own_path)

    @property
    def is_due(self) -> bool:
        """Return True if the next round should begin."""
        return time.monotonic() >= self._next

    def wait_s(self) -> float:
        """Return the seconds until the next round."""
        return max(self._next - time.monotonic(), 0.0)

    def learn(self, completion: Completion) -> None:
        """Learn a completion of this replica."""
        self._own.learn(completion)

    def exchange(self, in_use: Predictor) -> bool:
        """Write the own entry, read those of the others, and merge them if any has changed.

        A store that is away changes nothing but the counts.

        Args:
            in_use: predictor that has the merge; its model and calibration are replaced.

        Returns:
            True if they were replaced.
        """
        started = time.monotonic()
        try:
            is_new = self._round(in_use)
        except (StoreError, MergeError) as error:
            self.counts.connected = False
            self.counts.failures += 1
            self.counts.trouble = str(error)
            self._save_own()
            is_new = False
        ended = time.monotonic()
        self._next = ended + max(self._every, (ended - started) / _SHARE)
        return is_new

    def leave(self) -> None:
        """Write what was learned last, and release the entry unless the store is away."""
        if not (self._name and self.counts.connected):
            self._save_own()  # a restart continues it, and brings it to the store
            return
        with suppress(LifetimeError):
            if self._publish(self._own):
                self._store.release(self._name, self._token)
            self._store.close()

    # -- one round ---------------------------------------------------------------------------

    def _round(self, in_use: Predictor) -> bool:
        secret = self._store.secret(self._base.keys.secret)
        if NameKeys(secret) != self._base.keys:
            raise MergeError(
                f"the fleet {SECRETS_DIFFER}; a replica without a checkpoint takes the fleet's "
                "when it starts: restart it"
            )
        if not self._name:
            self._enter()
        self._own.model.take_training(in_use.model)
        if not self._publish(self._own):
            # Another replica continues the entry, as it was written last.
            self._name, self._own, self._published = "", self._new_own(), -1
            self._enter()
            self._publish(self._own)
        self.counts.trouble = None
        self._read_others()
        self.counts.connected = True
        if not self._has_new:
            return False
        self._use(in_use)
        return True

    def _enter(self) -> None:
        """Take an entry that was left, the own one of an earlier run first, or a new one."""
        for name in self._store.versions():
            if not self._store.claim(name, self._token, self._lease_s):
                continue
            left = self._read(name)
            if left is None:
                self._store.release(name, self._token)
                continue
            left.merge(self._own)
            self._others.pop(name, None)
            self._name, self._own, self._has_new = name, left, True
            return
        name = secrets.token_hex(8)
        if not self._store.claim(name, self._token, self._lease_s):
            raise StoreError("an entry of the fleet could not be taken")
        self._name = name

    def _publish(self, own: Predictor) -> bool:
        """Write the own entry if it has changed; return False if another replica has it."""
        data = None
        if own.lessons != self._published:
            data = entry_of(own, self._name)
            self._save_own()
        if not self._store.write(self._name, self._token, self._lease_s, data):
            return False
        if data is not None:
            self._published = own.lessons
            self.counts.published += 1
        return True

    def _read_others(self) -> None:
        """Read the entries of others that have changed; those that are gone stay in use."""
        for name, version in self._store.versions().items():
            known = self._others.get(name)
            if name == self._name or (known is not None and known.version == version):
                continue
            predictor = self._read(name)
            if predictor is None and known is not None:
                predictor = known.predictor
            self._has_new |= predictor is not None
            self._others[name] = _Other(version, predictor)
        merged = [other.predictor for other in self._others.values() if other.predictor is not None]
        self.counts.replicas = len(merged)
        self.counts.lessons = sum(predictor.lessons for predictor in merged)

    def _read(self, name: str) -> Predictor | None:
        """Return the predictor of an entry; ``None``, counted, if it cannot be used."""
        data = self._store.read(name)
        if data is None:
            return None
        self.counts.received += 1
        try:
            return predictor_of_entry(data, f"entry {name}", self._base)
        except LifetimeError as error:
            self.counts.refused += 1
            self.counts.trouble = str(error)
            return None

    def _use(self, in_use: Predictor) -> None:
        """Replace the model and the calibration of a predictor by the merge of all."""
        others = [
            other.predictor
            for _, other in sorted(self._others.items())
            if other.predictor is not None and other.predictor.lessons
        ]
        merged = self._base.clone()
        merged.merge(self._own, *others)
        learned = merged.learned
        learned.model.continue_from(in_use.model)
        in_use.swap(learned)
        in_use.summary = {**in_use.summary, LINEAGE: merged.lineage}
        in_use.share_stretch(self._own)
        self._has_new = False

    # -- what this replica learned -----------------------------------------------------------

    def _new_own(self) -> Predictor:
        return empty_like(self._base)

    def _save_own(self) -> None:
        state = (self._name, self._own.lessons)
        if self._own_path is None or state == self._saved:
            return
        self._own.summary = {**self._own.summary, REPLICA: self._name, TOKEN: self._token}
        try:
            self._own.save(self._own_path)
            self._saved = state
        except CheckpointError as error:
            self.counts.trouble = str(error)

    def _continue(self, path: Path) -> None:
        """Go on with what an earlier run of this replica had learned, if it fits."""
        try:
            earlier = load_predictor(path, like=self._own)
        except LifetimeError as error:
            self.counts.trouble = str(error)
            return
        name, token = (earlier.summary.get(key) for key in (REPLICA, TOKEN))
        # Without a name it has not reached the store yet.
        is_named = name == "" or (isinstance(name, str) and is_replica(name))
        is_named = is_named and isinstance(token, str)
        if not is_named or mismatch(earlier, self._base) or earlier.keys != self._base.keys:
            return
        self._name, self._token, self._own = str(name), str(token), earlier
        self._has_new = True


def fleet_keys(place: str, earlier: Sequence[Path]) -> NameKeys:
    """Return the keys of names of a fleet, for a replica that starts without a checkpoint.

    If the store is away, they are those of an earlier run of the replica, or else new ones.

    Args:
        place: place of the store.
        earlier: checkpoints that an earlier run may have left.

    Raises:
        LifetimeError: ``place`` names no store that could be used here.
    """
    keys = NameKeys.random()
    for path in earlier:
        if is_checkpoint(path):
            with suppress(CheckpointError):
                keys = load_predictor(path).keys
                break
    store = open_store(place)
    with suppress(StoreError):
        keys = NameKeys(store.secret(keys.secret))
        store.close()
    return keys
