"""Arrival times with the mean and the burstiness of a trace."""

from __future__ import annotations

import numpy as np

from sagellm_lifetime.workloads.joint import Floats


def renewal(rng: np.random.Generator, n: int, mean_s: float, cv: float) -> Floats:
    """``n`` arrivals from zero, with gamma gaps of this mean and coefficient of variation.

    A coefficient of 1 is a Poisson stream; the larger, the more the arrivals come in bursts.
    Daily and weekly rhythms of a trace are not reproduced.
    """
    shape = 1.0 / cv**2
    times = np.cumsum(rng.gamma(shape, mean_s / shape, size=n))
    return times - times[0] if n else times
