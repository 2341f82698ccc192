"""Ordering: the order of admission, shortest first with bounded overtaking.

Each waiting sequence has a place, and the lowest goes first:

    place = arrival + min(patience * service, horizon)
    horizon = slack * backlog + leeway

``service`` is the time the sequence is expected to occupy the engine. ``backlog`` is the time the
engine needs for the whole queue, which is the wait of a newcomer in arrival order. ``leeway`` is
the duration of some typical answers; it allows overtaking in a short queue. The caller chooses the
unit of time. The horizon is the same for all and moves with the queue: sequences bounded by it keep
their arrival order, so while it grows they wait longer than in arrival order, but not longer than a
present newcomer would. A sequence is overtaken only by arrivals before its place. Patience 0 is
first come, first served; unbounded patience and slack is shortest first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from sagellm_lifetime.policies.state import Sequences, SurvivalForecast

_UNLUCKY: Final = 0.1
"""Share of the cases that count as a long answer, the longest ones of the distribution."""

Service = Callable[[Sequences, SurvivalForecast], np.ndarray]
"""Expected service of each sequence in token-steps, shape ``(N,)``."""


def by_length(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Return the expected remaining tokens: shortest expected remaining first."""
    return forecast.expected()


def by_area(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Return the memory-time, in which a long prompt counts as much as a long answer."""
    return forecast.area(sequences.tokens)


def by_input(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Return the tokens of the prefill, which are known without a prediction."""
    return sequences.recompute.astype(np.float64)


def by_gittins(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Return the inverse of the Gittins index, optimal in mean latency given distributions."""
    return 1.0 / np.maximum(forecast.gittins(), 1e-9)


def by_nothing(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Return zeros: first come, first served."""
    return np.zeros(len(sequences))


def longest_first(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Return values that start the sequences first that may become longest (offline batches).

    One long answer that starts late delays the whole batch (Graham 1969, LPT), so the length in the
    longest cases counts and not the mean. The prompt counts too: a long one that starts late finds
    no room beside others, while short ones fill the gaps (first fit decreasing).
    """
    return 1.0 / np.maximum(sequences.tokens + forecast.at_worst(_UNLUCKY), 1.0)


SERVICES: Final[dict[str, Service]] = {
    "fcfs": by_nothing,
    "length": by_length,
    "area": by_area,
    "input": by_input,
    "gittins": by_gittins,
    "longest": longest_first,
}


def places(
    sequences: Sequences,
    forecast: SurvivalForecast,
    *,
    service: Service,
    patience: float,
    horizon: float | np.ndarray = np.inf,
    typical: float | None = None,
    min_confidence: float = 0.0,
) -> np.ndarray:
    """Return the place of every waiting sequence, shape ``(N,)``; the lowest goes first.

    Args:
        sequences: waiting.
        forecast: of their remaining lengths.
        service: expected service of each sequence.
        patience: seconds of waiting per unit of service.
        horizon: largest allowance, seconds after the arrival, whatever the patience; one for all
            or of shape ``(N,)``.
        typical: service of an average sequence; by default the mean of the confident ones.
        min_confidence: a sequence below it gets the service of an average one, so that arrival
            decides among such sequences, as in the engine.
    """
    expected = service(sequences, forecast)
    doubtful = forecast.confidence < min_confidence
    if typical is None:
        typical = 0.0 if doubtful.all() else float(expected[~doubtful].mean())
    expected = np.where(doubtful, typical, expected)
    return sequences.arrival + np.minimum(patience * expected, horizon)


def in_line(sequences: Sequences, places: np.ndarray) -> np.ndarray:
    """Return the indices in the order of admission: by urgency, then place, then arrival."""
    return np.lexsort((sequences.arrival, places, sequences.urgency))
