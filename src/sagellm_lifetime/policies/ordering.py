"""Ordering: whom to admit next. Shortest first, and nobody much later than in the order of arrival.

Each waiting sequence has a place on one line; the lowest goes first:

    place = arrival + min(patience * service, horizon)
    horizon = slack * backlog + leeway

``service`` is the time it is expected to occupy the engine, ``backlog`` the time the engine needs
for all that waits now: how long a newcomer would wait if all were served as they came; ``leeway``
the time some typical answers take, or nobody could be overtaken where the queue is short. The
caller gives them in its own unit of time. The horizon is one for all, and moves with the queue:
those that have patience for it keep the order of their arrival, so while it grows they wait longer
than they would have in that order, but not longer than those that come now would. A sequence is
overtaken only by those that arrive before its place, whatever else arrives; the short go first as
long as that holds. With patience 0 it is first come, first served; with patience and slack without
bound, shortest first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from sagellm_lifetime.policies.state import Sequences, SurvivalForecast

_UNLUCKY: Final = 0.1
"""Share of the cases in which an answer is long, for its kind."""

Service = Callable[[Sequences, SurvivalForecast], np.ndarray]
"""Expected service of each sequence in token-steps, shape ``(N,)``."""


def by_length(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Tokens still to be generated: shortest expected remaining first."""
    return forecast.expected()


def by_area(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Memory-time: a long prompt holds as much memory as a long answer."""
    return forecast.area(sequences.tokens)


def by_input(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Tokens to be computed before it generates: known without any prediction."""
    return sequences.recompute.astype(np.float64)


def by_gittins(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Inverse of the Gittins index: optimal mean latency where only distributions are known."""
    return 1.0 / np.maximum(forecast.gittins(), 1e-9)


def by_nothing(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """First come, first served."""
    return np.zeros(len(sequences))


def longest_first(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """For offline batches: what may become longest, prompt and answer together, starts first.

    One long answer that starts late keeps the whole batch waiting (Graham 1969, LPT), so what
    counts is not how long an answer is expected to be, but how long it is if it is long. And a long
    prompt that comes late finds no room beside others, while short ones fill what is left between
    long ones (first fit decreasing).
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
    """Place of every waiting sequence in the line, shape ``(N,)``; the lowest goes first.

    Args:
        sequences: waiting.
        forecast: of their remaining lengths.
        service: how long a sequence is expected to occupy the engine.
        patience: seconds of waiting per unit of service.
        horizon: seconds after its arrival at which nobody who comes later goes before it, however
            much patience it has; one for all or of shape ``(N,)``.
        typical: service of an average sequence; by default the mean of those that are believed.
        min_confidence: below it the prediction is not believed: the sequence keeps the place of an
            average one, so that among such sequences the engine's own rule (arrival) decides.
    """
    expected = service(sequences, forecast)
    doubtful = forecast.confidence < min_confidence
    if typical is None:
        typical = 0.0 if doubtful.all() else float(expected[~doubtful].mean())
    expected = np.where(doubtful, typical, expected)
    return sequences.arrival + np.minimum(patience * expected, horizon)


def in_line(sequences: Sequences, places: np.ndarray) -> np.ndarray:
    """Indices in the order of admission: by urgency, then place, then arrival."""
    return np.lexsort((sequences.arrival, places, sequences.urgency))
