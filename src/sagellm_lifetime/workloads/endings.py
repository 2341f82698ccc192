"""Invent caps, cancellations and durations, which no public trace carries.

Seconds follow a stated model, so that predictors of time have something to learn:
``actual_time = (0.2 + prompt_length / 8000 + 0.02 * actual_length) * noise``, the noise
log-normal with a spread of 10 %: 0.2 s to queue, 8000 prompt tokens/s to the first token, then
20 ms per generated token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.workloads.histograms import Floats, Ints

CAPS = (256, 512, 1024, 2048, 4096)
QUEUE_S = 0.2
PREFILL_TOKENS_PER_S = 8000.0
SECONDS_PER_TOKEN = 0.02
TIME_SPREAD = 0.1


@dataclass
class Endings:
    """How each request ended, as parallel arrays.

    Attributes:
        cap: ``max_length`` in tokens; 0 where the request set none.
        length: generated tokens.
        reason: finish reason of the history format.
        seconds: from arrival to finish.
    """

    cap: Ints
    length: Ints
    reason: list[str]
    seconds: Floats


def end(
    rng: np.random.Generator, prompt: Ints, output: Ints, *, abort_share: float, capped_share: float
) -> Endings:
    """Return how requests end that would generate ``output`` tokens if nothing stopped them.

    A share ``capped_share`` sets a ``max_length`` drawn from :data:`CAPS`, independent of its
    answer; a request that reaches it ends with ``length``. A share ``abort_share`` is cancelled
    at a uniformly drawn token of its answer and ends with ``abort``.

    Raises:
        RequestError: a share outside 0 to 1.
    """
    for name, share in (("abort_share", abort_share), ("capped_share", capped_share)):
        if not 0.0 <= share <= 1.0:
            raise RequestError(f"{name} must be between 0 and 1, not {share}")
    n = len(output)
    caps = rng.choice(np.asarray(CAPS, dtype=np.int64), size=n)
    cap = np.where(rng.random(n) < capped_share, caps, 0)
    capped = (cap > 0) & (output >= cap)
    length = np.where(capped, cap, output)
    aborted = rng.random(n) < abort_share
    stopped_at = 1 + np.floor(rng.random(n) * length).astype(np.int64)
    aborted &= stopped_at < length
    length = np.where(aborted, stopped_at, length)
    reason = np.where(aborted, "abort", np.where(capped, "length", "stop"))
    return Endings(cap, length, reason.tolist(), seconds(rng, prompt, length))


def seconds(rng: np.random.Generator, prompt: Ints, length: Ints) -> Floats:
    """Return seconds from arrival to finish by the duration model of this module."""
    noise = np.exp(TIME_SPREAD * rng.standard_normal(len(length)))
    first = QUEUE_S + prompt / PREFILL_TOKENS_PER_S
    return np.asarray((first + SECONDS_PER_TOKEN * length) * noise, dtype=np.float64)
