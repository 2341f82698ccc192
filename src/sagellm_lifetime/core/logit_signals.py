"""Signals of the served model about the end of a sequence, as in histories and requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

SIGNALS: Final = ("eos_logprob", "entropy")
SIGNAL_EVERY: Final = 16
"""Generated tokens per entry."""
_LEAST = -100.0
"""Lower bound of a log-probability, for an impossible end."""


def windows(
    eos_logprob: Sequence[float], entropy: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return both signals over the tokens 1–16, 17–32, …, without a window that is not full.

    The probabilities of an end are averaged before the logarithm, so that one high value, say at
    the end of a paragraph, counts. A mean of logarithms predicts a third as much (dev/LOG.md).

    Args:
        eos_logprob: log-probability of an end before each generated token, nats.
        entropy: of the distribution of each generated token, nats.

    Returns:
        Logarithms of mean probabilities of an end, mean entropies.
    """
    full = len(eos_logprob) // SIGNAL_EVERY
    shape, used = (full, SIGNAL_EVERY), full * SIGNAL_EVERY
    chances = np.exp(np.maximum(np.array(eos_logprob[:used]), _LEAST)).reshape(shape).mean(axis=1)
    spread = np.array(entropy[:used]).reshape(shape).mean(axis=1)
    return np.log(chances).round(3).tolist(), spread.round(3).tolist()
