"""Seconds per token, learned from clients by even shares and not from requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, in_order, part, ranks
from sagellm_lifetime.core.checked import checked
from sagellm_lifetime.core.timing import TokenTiming, merged_ratios
from sagellm_lifetime.models.fair_share import FairShares
from sagellm_lifetime.models.merging.shares import merged_shares

_EVEN_SHARES: Final = 1.0
"""Share of a client in the median, in even shares of all clients. Seconds per token are a
property of the server, so those of a busy client have no larger weight."""
_LEAST_SHARE: Final = 0.05
"""Share that every client may have: a median moves from 0.5 to the quantile 0.526 of the others."""


class FairTiming:
    """Seconds per token by model, with a bounded part for each client.

    Without shares, one client at ten times the rate of the others would set the estimated times
    of all clients; its many short answers, which mostly wait, have many seconds per token.
    """

    def __init__(self) -> None:
        self._timing = TokenTiming()
        self._shares = FairShares(even_shares=_EVEN_SHARES, least_share=_LEAST_SHARE)

    def learn(self, client: int, model: str | None, length: int, seconds: float) -> None:
        """Learn from one completion.

        Args:
            client: key of its client, 0 for none.
            model: name of its model.
            length: generated tokens.
            seconds: from arrival to finish; ignored, with the length, unless both are plausible.
        """
        if self._shares.count(client):
            self._timing.update(model, length, seconds)

    def seconds_per_token(self, model: str | None = None) -> float:
        """Return the median seconds per token of the model, else of all models, else 0.02."""
        return self._timing.seconds_per_token(model)

    def paces(self, models: Sequence[str | None]) -> list[float]:
        """Return the seconds per token of many sequences, by their models."""
        return self._timing.paces(models)

    def clear_shares(self) -> None:
        """Forget the accounts of clients, so that the next completions are accepted."""
        self._shares.clear()

    def merge(self, *others: FairTiming) -> None:
        """Join the recent ratios of others with these, so that the medians are of all."""
        all_of_them = (self, *others)
        self._timing.restore(merged_ratios([each._timing.state() for each in all_of_them]))
        self._shares.restore(merged_shares([each._shares.state() for each in all_of_them]))

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return the ratios by model, their order, and the shares of clients as arrays."""
        # Names of arrays are UTF-8, names of models may be anything.
        timing = {
            model.encode("utf-8", "backslashreplace").decode(): np.array(values)
            for model, values in self._timing.state().items()
        }
        shares = self._shares.state()
        return {
            **{f"timing.{name}": values for name, values in timing.items()},
            "timing_order": ranks(timing),
            **{f"timing_shares.{name}": array for name, array in shares.items()},
        }

    def restore(self, arrays: Arrays) -> None:
        """Replace what was learned with a :meth:`state`; other arrays are ignored.

        Raises:
            ValueError: arrays that do not fit, or with impossible values.
        """
        for name in arrays:
            if name.startswith("timing.") and not len(
                checked(arrays, name, np.float64, (None,), 0.0)
            ):
                raise ValueError(f"{name!r} is empty")
        paces = in_order(part(arrays, "timing."), arrays.get("timing_order"))
        self._timing.restore({name: values.tolist() for name, values in paces.items()})
        self._shares.restore(part(arrays, "timing_shares."))
