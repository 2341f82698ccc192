"""Calibration samples of finished sequences: each answer, at the ages for which it held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.batch import LengthDistributionBatch
from sagellm_lifetime.core.calibration import Calibration, Outcomes
from sagellm_lifetime.predictor.records import Answered, Completion

_AGES: Final = np.array([16 * 2**k for k in range(14)])
"""Ages at which an answer is scored, beside the one at which it was given; tokens."""


def answered(completion: Completion) -> Iterator[Answered]:
    """Yield each answer about a finished sequence, with the range of ages for which it held."""
    ends = [*completion.evidence_ages[1:], completion.length]
    # A request that was refused half way has an age without an answer.
    starts = completion.evidence_ages
    for row, start, end in zip(completion.answers, starts, ends, strict=False):
        yield Answered(row, start, end, completion.cap, completion.length, completion.censored)


def calibrate(calibration: Calibration, answers: Sequence[Answered]) -> None:
    """Update a calibration with answers, at the ages of their evidence and at 16, 32, … tokens.

    Args:
        calibration: updated in place.
        answers: rows, with their ranges of ages and their outcomes.
    """
    if not answers:
        return
    rows, *columns = zip(*answers, strict=True)
    start, end, caps, lengths, censored = (np.array(column) for column in columns)
    grid = np.broadcast_to(_AGES, (len(rows), len(_AGES)))
    ages = np.concatenate([start[:, None], grid], axis=1)
    is_sample = (ages > start[:, None]) & (ages < end[:, None])
    is_sample[:, 0] = start < lengths
    row, column = np.nonzero(is_sample)
    calibration.learn(
        LengthDistributionBatch(hazard.stacked(rows), row, ages[row, column], caps[row]),
        Outcomes(lengths[row], censored[row]),
    )
