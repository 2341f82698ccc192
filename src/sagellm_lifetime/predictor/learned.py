"""What is swapped when a predictor comes to know what another one learned, and as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.checked import checked_count, count_array
from sagellm_lifetime.models.base import LengthModel
from sagellm_lifetime.predictor.calibration_by_client import CalibrationByClient

_MODEL = "predictor."
"""Before the names of a model's arrays, and of its context's."""


@dataclass(frozen=True, slots=True)
class Learned:
    """A model, and the calibration of its answers: what a predictor swaps in one assignment."""

    model: LengthModel
    calibration: CalibrationByClient

    def state(self) -> Arrays:
        """Return both as arrays, which :func:`restored` takes."""
        return {
            **{f"calibration.{k}": v for k, v in self.calibration.state().items()},
            "lessons": count_array(self.model.lessons),
            **{f"{_MODEL}{k}": v for k, v in self.model.state().items()},
        }


def model_state(arrays: Arrays) -> Arrays:
    """Return those of a predictor's arrays that are of its model or its context."""
    return part(arrays, _MODEL)


def context_state(state: Arrays) -> Arrays:
    """Return the state of a context under the names it has among a predictor's arrays."""
    return {f"{_MODEL}{key}": np.array(value) for key, value in state.items()}


def restored(model: LengthModel, calibrated: Arrays, state: Arrays) -> Learned:
    """Return an unfitted model, brought to a state, with its calibration.

    Args:
        model: a new one, with the options of the one whose state it is.
        calibrated: arrays of a :meth:`Learned.state`.
        state: those of the model itself.

    Raises:
        ValueError: arrays that do not fit, or hold what none can have learned.
    """
    calibration = CalibrationByClient()
    calibration.restore(part(calibrated, "calibration."))
    model.restore(state)
    model.lessons = checked_count(calibrated, "lessons")
    return Learned(model, calibration)
