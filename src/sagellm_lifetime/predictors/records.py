"""What a predictor keeps of a running sequence, and what it is told when it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sagellm_lifetime.features.request import RequestFeatures


@dataclass(slots=True)
class Evidence:
    """What is kept of a running sequence; predictors extend it."""

    features: RequestFeatures
    session: int


@dataclass(slots=True)
class Completion:
    """One finished sequence joined to what was known about it."""

    evidence: Any
    length: int
    censored: bool


class Answered(NamedTuple):
    """A row, the ages from which and up to which it was the answer, and what came of it."""

    row: np.ndarray
    start: int
    end: int
    cap: int
    length: int
    censored: bool
