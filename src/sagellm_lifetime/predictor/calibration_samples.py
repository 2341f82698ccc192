"""What the calibration learns from finished sequences: each answer, at the ages it stood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.batch import LengthDistributionBatch
from sagellm_lifetime.core.calibration import Calibration, Outcomes
from sagellm_lifetime.predictor.records import Answered, Completion

_AGES: Final = np.array([16 * 2**k for k in range(14)])


def answered(lesson: Completion) -> Iterator[Answered]:
    """Each answer that was given about the sequence, with the ages between which it stood."""
    ends = [*lesson.asked[1:], lesson.length]
    # A request refused half way leaves a sequence asked about but not answered.
    for row, start, end in zip(lesson.answers, lesson.asked, ends, strict=False):
        yield Answered(row, start, end, lesson.cap, lesson.length, lesson.censored)


def calibrate(calibration: Calibration, answers: Sequence[Answered]) -> None:
    """Teach the calibration at the ages of the evidence and at 16, 32, … 2^k between them."""
    if not answers:
        return
    rows, *columns = zip(*answers, strict=True)
    start, end, caps, lengths, censored = (np.array(column) for column in columns)
    grid = np.broadcast_to(_AGES, (len(rows), len(_AGES)))
    ages = np.concatenate([start[:, None], grid], axis=1)
    asked = (ages > start[:, None]) & (ages < end[:, None])
    asked[:, 0] = start < lengths
    row, column = np.nonzero(asked)
    calibration.learn(
        LengthDistributionBatch(hazard.stacked(rows), row, ages[row, column], caps[row]),
        Outcomes(lengths[row], censored[row]),
    )
