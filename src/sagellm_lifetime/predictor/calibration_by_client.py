"""A common calibration, and separate ones for clients beyond their fair shares.

The common calibration learns from all clients by fair shares
(:mod:`~sagellm_lifetime.models.fair_share`): answers beyond a client's share are not learned, since
otherwise one busy client would set the width of all other clients' intervals. A client beyond its
share gets a separate calibration, which starts as a copy of the common one and learns from all
answers of the client.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.calibration import BANDS, Calibration, bands_of
from sagellm_lifetime.core.checked import checked
from sagellm_lifetime.features.name_keys import LARGEST_KEY
from sagellm_lifetime.models.fair_share import FairShares
from sagellm_lifetime.models.merging.shares import merged_shares
from sagellm_lifetime.predictor.calibration_samples import answered, calibrate
from sagellm_lifetime.predictor.records import Answered, Completion

MOST_OWN: Final = 16
"""Maximum number of separate calibrations."""
_IDLE: Final = 1024
"""Completions of other clients after which a separate calibration may be replaced. Many names in
turn would otherwise make a new one for every completion, and replace those of other clients."""
OWN_SHARES: Final = 1.25
"""Part of the completions from which on a client gets a separate calibration, in even shares."""
EVEN_SHARES: Final = 1.5
LEAST_SHARE: Final = 0.075
"""Fair share in the common calibration: 1.5 even shares of all clients, or this. It is less than in
the counts, since a client beyond its share loses nothing: it has a calibration of its own. (With
even shares and 5 % twenty names in turn do less harm, but an ordinary trace of reasoning, of which
one client is half, is covered by 3 % less.)"""
_LEARN_EVERY: Final = 32
"""Answers learned at a time, inside one ``update``. A call has a fixed cost of about 0.6 ms; 64
answers at a time cost as much per answer as 32 and stall for twice as long."""
_START_WEIGHT: Final = 600.0
"""Maximum weight of the copied counts in a new calibration, observations a band."""
_AFTER_CHANGE: Final = 300.0
"""Maximum weight of what was learned before a change of the workload, observations a band."""


class CalibrationByClient:
    """Common and separate calibrations, each learned in batches of answers.

    Attributes:
        common: calibration of all clients without a separate one.
        shares: account of each client's part in the common calibration.
    """

    def __init__(self) -> None:
        self.common = Calibration()
        self.shares = FairShares(even_shares=EVEN_SHARES, least_share=LEAST_SHARE)
        self._own: OrderedDict[int, Calibration] = OrderedDict()
        """Separate calibrations by client key (0 for none), the oldest first."""
        self._used: dict[int, int] = {}
        """Value of ``_count`` at which each separate calibration was used last."""
        self._count = 0
        """Completions learned."""
        self._pending: dict[int | None, list[Answered]] = {}
        """Answers not learned yet, by client key; ``None`` is the common calibration."""
        self._stack: tuple[np.ndarray, np.ndarray, list[np.ndarray], dict[int, int]] | None = None

    # -- predicting --------------------------------------------------------------------------

    def of(self, client: int) -> Calibration:
        """Return the calibration of a client (its key, 0 for none)."""
        return self._own.get(client, self.common) if self._own else self.common

    @property
    def has_own(self) -> bool:
        """Return True if any client has a separate calibration."""
        return bool(self._own)

    @property
    def curves(self) -> np.ndarray:
        """Return the links of all calibrations, shape ``(C * BANDS, LEVELS + 1)``."""
        return self._stacked()[0] if self._own else self.common.curves

    @property
    def views(self) -> list[np.ndarray]:
        """Return the rows of :attr:`curves` as a list."""
        return self._stacked()[2] if self._own else self.common.views

    def bands(self, ages: np.ndarray, clients: list[int]) -> np.ndarray:
        """Return the index into :attr:`curves` of each prediction, int64 of shape ``(N,)``.

        Args:
            ages: tokens generated so far, shape ``(N,)``.
            clients: ``N`` keys of clients; not read where no client has a separate calibration.
        """
        bands = bands_of(ages)
        if not self._own:
            return bands
        place_of = self._stacked()[3]
        places = [place_of.get(client, 0) for client in clients]
        return bands + BANDS * np.array(places, dtype=np.int64)

    def confidences(self, bands: np.ndarray, raw: np.ndarray) -> np.ndarray:
        """Return calibrated confidences, shape ``(N,)``.

        Args:
            bands: index of each prediction from :meth:`bands`, shape ``(N,)``.
            raw: raw confidences, shape ``(N,)``.
        """
        maps = self._stacked()[1] if self._own else self.common.maps
        return self.common.confidences(bands, raw, maps)

    def _stacked(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], dict[int, int]]:
        if self._stack is None:
            calibrations = [self.common, *self._own.values()]
            curves = np.concatenate([calibration.curves for calibration in calibrations])
            curves.flags.writeable = False
            maps = np.concatenate([calibration.maps for calibration in calibrations])
            views = [view for calibration in calibrations for view in calibration.views]
            place_of = {client: 1 + i for i, client in enumerate(self._own)}
            self._stack = curves, maps, views, place_of
        return self._stack

    # -- learning ----------------------------------------------------------------------------

    def learn(self, completion: Completion) -> None:
        """Learn from the answers of a finished sequence."""
        client = completion.evidence.features.client_key
        is_within_share = self.shares.count(client)
        # New clients get no separate calibration, since there may be a million of them. Clients
        # that are seldom refused get none either, since each separate one costs time.
        if (
            not is_within_share
            and (client == 0 or self.shares.is_established(client))
            and self.shares.sends_more(client, OWN_SHARES)
        ):
            self._give_own(client)
        if is_within_share:
            self._add(None, completion)
        self._count += 1
        if client in self._own:
            self._used[client] = self._count
            # Only every second one that the common calibration learned: a busy client has enough.
            if not is_within_share or self._count & 1:
                self._add(client, completion)

    def register(self, clients: Iterable[int]) -> None:
        """Count completions of a history in the fair shares, so that its clients are known.

        Args:
            clients: keys of the clients, one a completion; 0 for a request without one.
        """
        for client in clients:
            self.shares.count(client)

    def _give_own(self, client: int) -> None:
        if client in self._own:
            return
        if len(self._own) >= MOST_OWN:
            idle = min(self._used, key=self._used.__getitem__)
            if self._count - self._used[idle] < _IDLE:
                return
            del self._own[idle], self._used[idle]
            self._pending.pop(idle, None)
        self._used[client] = self._count
        own = self._own[client] = Calibration()
        own.restore(self.common.state())
        own.fade(_START_WEIGHT)
        self._stack = None

    def _add(self, client: int | None, completion: Completion) -> None:
        pending = self._pending.setdefault(client, [])
        pending.extend(answered(completion))
        if len(pending) >= _LEARN_EVERY:
            self._learn_pending(client)

    def _learn_pending(self, client: int | None) -> None:
        calibration = self.common if client is None else self._own[client]
        calibrate(calibration, self._pending.pop(client, []))
        self._stack = None

    def fade(self) -> None:
        """Forget most of what was learned, after the workload of a model has changed.

        Pending answers are dropped, since they are from before the change, too.
        """
        self._pending, self._stack = {}, None
        for calibration in (self.common, *self._own.values()):
            calibration.fade(_AFTER_CHANGE)

    def learn_all(self) -> None:
        """Learn from all pending answers, also from incomplete batches."""
        for client in list(self._pending):
            self._learn_pending(client)

    def merge(self, *others: CalibrationByClient) -> None:
        """Add the counts of others, which have learned all their answers, and so has this one.

        Of more than :data:`MOST_OWN` separate calibrations those used last are kept.
        """
        all_of_them = (self, *others)
        own: dict[int, Calibration] = {}
        idle: dict[int, int] = {}
        for each in all_of_them:
            for client, calibration in each._own.items():
                idle[client] = min(each._count - each._used[client], idle.get(client, each._count))
                own.setdefault(client, Calibration()).merge(calibration)
        kept = sorted(own, key=lambda client: (idle[client], client))[:MOST_OWN]
        self.common.merge(*(each.common for each in others))
        self.shares.restore(merged_shares([each.shares.state() for each in all_of_them]))
        self._own = OrderedDict((client, own[client]) for client in sorted(kept))
        self._count = max((idle[client] for client in kept), default=0)
        self._used = {client: self._count - idle[client] for client in self._own}
        self._pending, self._stack = {}, None

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return the learned state as arrays, without pending answers."""
        common = self.common.state()
        own = [calibration.state() for calibration in self._own.values()]
        return {
            **common,
            "clients": np.array(list(self._own), dtype=np.int64),
            "idle": np.array([self._count - self._used[key] for key in self._own], dtype=np.int64),
            **{
                f"own.{name}": np.stack([state[name] for state in own])
                if own
                else np.zeros((0, *array.shape))
                for name, array in common.items()
            },
            **{f"shares.{name}": array for name, array in self.shares.state().items()},
        }

    def restore(self, state: Arrays) -> None:
        """Replace the learned state with a :meth:`state`; pending answers are dropped.

        Raises:
            ValueError: an array is missing, of another type or shape, or holds impossible values.
        """
        clients = checked(state, "clients", np.int64, (None,), 0, LARGEST_KEY).tolist()
        if len(set(clients)) < len(clients) or len(clients) > MOST_OWN:
            raise ValueError("'clients' names a client twice, or too many")
        idle = checked(state, "idle", np.int64, (len(clients),), 0).tolist()
        self.common.restore(state)
        own = part(state, "own.")
        for name, array in self.common.state().items():
            checked(own, name, np.float64, (len(clients), *array.shape), 0.0)
        self._own = OrderedDict()
        self._count = max(idle, default=0)
        self._used = {key: self._count - count for key, count in zip(clients, idle, strict=True)}
        for i, client in enumerate(clients):
            self._own[client] = Calibration()
            self._own[client].restore({name: array[i] for name, array in own.items()})
        self.shares.restore(part(state, "shares."))
        self._pending, self._stack = {}, None
