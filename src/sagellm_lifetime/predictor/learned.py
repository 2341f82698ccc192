"""Learned state of a predictor: the pair that is swapped, and its form as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.checked import checked_count, count_array
from sagellm_lifetime.models.base import LengthModel
from sagellm_lifetime.predictor.calibration_by_client import CalibrationByClient

_MODEL = "predictor."
"""Prefix of the names of a model's arrays, and of its context's."""


@dataclass(frozen=True, slots=True)
class Learned:
    """Model and calibration of its answers, which a predictor replaces in one assignment."""

    model: LengthModel
    calibration: CalibrationByClient

    def state(self) -> Arrays:
        """Return the model, its calibration and its count of completions as arrays."""
        return {
            **{f"calibration.{k}": v for k, v in self.calibration.state().items()},
            "lessons": count_array(self.model.lessons),
            **{f"{_MODEL}{k}": v for k, v in self.model.state().items()},
        }


def model_state(arrays: Arrays) -> Arrays:
    """Return the arrays of a predictor's model and context, under their own names."""
    return part(arrays, _MODEL)


def context_state(state: Arrays) -> Arrays:
    """Return copies of a context's arrays, under their names in a predictor's state."""
    return {f"{_MODEL}{key}": np.array(value) for key, value in state.items()}


def restored(model: LengthModel, calibrated: Arrays, state: Arrays) -> Learned:
    """Return a model with a restored state, and its calibration.

    Args:
        model: an unfitted model with the options of the one whose state it is; changed in place.
        calibrated: arrays of a :meth:`Learned.state`.
        state: arrays of the model itself.

    Raises:
        ValueError: an array is missing, of another type or shape, or holds impossible values.
    """
    calibration = CalibrationByClient()
    calibration.restore(part(calibrated, "calibration."))
    model.restore(state)
    model.lessons = checked_count(calibrated, "lessons")
    return Learned(model, calibration)
