"""The calibration of all clients, and one of its own for whoever has more than a fair share.

One calibration serves everybody, and learns from everybody by fair shares
(:mod:`~sagellm_lifetime.models.fair_share`): answers beyond a client's share teach it nothing, or
one loud client would decide how wide the intervals of all others are. A client beyond his share
gets a calibration of his own, which starts as the common one and learns from all his answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.calibration import BANDS, Calibration, bands_of
from sagellm_lifetime.core.checked import checked
from sagellm_lifetime.features.request import key_of
from sagellm_lifetime.models.fair_share import FairShares
from sagellm_lifetime.predictor.calibration_samples import answered, calibrate
from sagellm_lifetime.predictor.records import Answered, Completion

MOST_OWN: Final = 16
"""Clients with a calibration of their own; who was last beyond his share longest ago makes room."""
_LEARN_EVERY: Final = 32
"""Answers learned at a time, inside one ``update``. A call costs about 0.6 ms whatever there is to
learn; beyond that, 64 cost as much per answer as 32 and stall for twice as long."""
_START_WEIGHT: Final = 600.0
"""Observations a band, at most, for which what a new calibration was copied from speaks."""
_LARGEST_KEY: Final = 2**62


class CalibrationByClient:
    """Calibrations, each learned in batches of answers.

    Attributes:
        common: the calibration of everybody without one of his own.
        shares: how much of the common one each client has taught.
    """

    def __init__(self) -> None:
        self.common = Calibration()
        self.shares = FairShares()
        self._own: OrderedDict[int, Calibration] = OrderedDict()
        """By client (its key, 0 for none); who was last beyond his share longest ago first."""
        self._pending: dict[int | None, list[Answered]] = {}
        """Answers to be learned, by client; those for the common calibration under ``None``."""
        self._stack: tuple[np.ndarray, np.ndarray, list[np.ndarray], dict[int, int]] | None = None

    # -- asking ------------------------------------------------------------------------------

    def of(self, client: int) -> Calibration:
        """Return the calibration of one client."""
        return self._own.get(client, self.common) if self._own else self.common

    @property
    def has_own(self) -> bool:
        """Return whether any client has a calibration of its own."""
        return bool(self._own)

    @property
    def curves(self) -> np.ndarray:
        """Return the links of all calibrations, shape ``(C * BANDS, LEVELS + 1)``."""
        return self._stacked()[0] if self._own else self.common.curves

    @property
    def views(self) -> list[np.ndarray]:
        """Return the same, one by one."""
        return self._stacked()[2] if self._own else self.common.views

    def bands(self, ages: np.ndarray, clients: list[int]) -> np.ndarray:
        """Return which of :attr:`curves` each of ``N`` ages of as many clients uses."""
        bands = bands_of(ages)
        if not self._own:
            return bands
        place = self._stacked()[3]
        return bands + BANDS * np.array([place.get(c, 0) for c in clients], dtype=np.int64)

    def confidences(self, bands: np.ndarray, raw: np.ndarray) -> np.ndarray:
        """Return calibrated confidences, shape ``(N,)``, of :meth:`bands`."""
        maps = self._stacked()[1] if self._own else self.common.maps
        return self.common.confidences(bands, raw, maps)

    def _stacked(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], dict[int, int]]:
        if self._stack is None:
            every = [self.common, *self._own.values()]
            curves = np.concatenate([each.curves for each in every])
            curves.flags.writeable = False
            maps = np.concatenate([each.maps for each in every])
            views = [view for each in every for view in each.views]
            self._stack = curves, maps, views, {c: 1 + i for i, c in enumerate(self._own)}
        return self._stack

    # -- learning ----------------------------------------------------------------------------

    def learn(self, completion: Completion) -> None:
        """Learn from the answers that were given about a finished sequence."""
        client = completion.evidence.features.client_key
        within = self.shares.count(client)
        # Whoever is new has no calibration of his own: there may be a million of them.
        if not within and (client == 0 or self.shares.is_established(client)):
            self._give_own(client)
        if within:
            self._add(None, completion)
        if client in self._own:
            self._add(client, completion)

    def meet(self, clients: Iterable[Any]) -> None:
        """Take note of who came before, by name: with a history, so that nobody else has a share.

        ``None`` is a request that named nobody.
        """
        for name in clients:
            self.shares.count(0 if name is None else key_of("client", name))

    def _give_own(self, client: int) -> None:
        if client in self._own:
            # Places of the others change, and the answers with them: only where it matters.
            if len(self._own) > 1 and next(reversed(self._own)) != client:
                self._own.move_to_end(client)
                self._stack = None
            return
        if len(self._own) >= MOST_OWN:
            gone, _ = self._own.popitem(last=False)
            self._pending.pop(gone, None)
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

    def learn_all(self) -> None:
        """Learn from all answers that still wait for others."""
        for client in list(self._pending):
            self._learn_pending(client)

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return what was learned, as arrays. Answers that wait are none of it."""
        common = self.common.state()
        own = [each.state() for each in self._own.values()]
        return {
            **common,
            "clients": np.array(list(self._own), dtype=np.int64),
            **{
                f"own.{name}": np.stack([each[name] for each in own])
                if own
                else np.zeros((0, *array.shape))
                for name, array in common.items()
            },
            **{f"shares.{name}": array for name, array in self.shares.state().items()},
        }

    def restore(self, state: Arrays) -> None:
        """Replace what was learned with a :meth:`state`.

        Raises:
            ValueError: arrays that do not fit, or hold what cannot have been learned.
        """
        clients = checked(state, "clients", np.int64, (None,), 0, _LARGEST_KEY).tolist()
        if len(set(clients)) < len(clients) or len(clients) > MOST_OWN:
            raise ValueError("'clients' names one twice, or too many")
        self.common.restore(state)
        own = part(state, "own.")
        for name, array in self.common.state().items():
            checked(own, name, np.float64, (len(clients), *array.shape), 0.0)
        self._own = OrderedDict()
        for i, client in enumerate(clients):
            self._own[client] = Calibration()
            self._own[client].restore({name: array[i] for name, array in own.items()})
        self.shares.restore(part(state, "shares."))
        self._pending, self._stack = {}, None
