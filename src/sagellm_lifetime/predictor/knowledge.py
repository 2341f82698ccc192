"""What a predictor knows, as arrays, and how it comes to know what another one does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, in_order, part, ranks
from sagellm_lifetime.core.checked import checked, checked_count, count_array
from sagellm_lifetime.core.yield_gil import yield_gil
from sagellm_lifetime.models.residual_life import ResidualLife

if TYPE_CHECKING:
    from sagellm_lifetime.predictor.base import Predictor


def knowledge(predictor: Predictor) -> Arrays:
    """Everything learned, as arrays of its own."""
    predictor._calibrate_pending()
    learned = {f"calibration.{k}": v for k, v in predictor._calibration.state().items()}
    # Names of arrays are UTF-8, names of models may be anything.
    timing = {
        model.encode("utf-8", "backslashreplace").decode(): np.array(values)
        for model, values in predictor._timing.state().items()
    }
    learned.update({f"timing.{name}": values for name, values in timing.items()})
    learned["timing_order"] = ranks(timing)
    learned["lessons"] = count_array(predictor._lessons)
    learned.update({f"predictor.{k}": v for k, v in predictor._state().items()})
    return {key: np.array(value) for key, value in learned.items()}


def set_knowledge(predictor: Predictor, learned: Arrays, *, instant: bool = True) -> None:
    """Replace what was learned with a :func:`knowledge`, the instant parts too unless told not.

    Raises:
        ValueError: arrays that do not fit the predictor, or hold what none can have learned.
    """
    state = part(learned, "predictor.")
    predictor._calibration.restore(part(learned, "calibration."))
    predictor._restore(state)
    predictor._lessons = checked_count(learned, "lessons")
    if instant:
        predictor._restore_instant(state)
        for name in learned:
            if name.startswith("timing.") and not len(
                checked(learned, name, np.float64, (None,), 0.0)
            ):
                raise ValueError(f"{name!r} is empty")
        timing = in_order(part(learned, "timing."), learned.get("timing_order"))
        predictor._timing.restore({k: v.tolist() for k, v in timing.items()})
    predictor._version += 1


def take_over(predictor: Predictor, learned: Arrays) -> dict[str, Any]:
    """Swap in what an equal predictor learned; running sequences and the instant parts stay.

    All that takes time is done on a twin, off the lock and with a breath after each piece; then the
    predictor becomes the twin in one step. As everywhere, rows of running sequences stay until what
    is known has doubled.

    Returns:
        What was replaced, for :func:`let_go`.
    """
    twin = predictor._twin()
    yield_gil()
    set_knowledge(twin, learned, instant=False)
    yield_gil()
    fresh = {k: v for k, v in vars(twin).items() if k not in predictor._STAYS}
    with predictor._lock:
        replaced = dict(vars(predictor))
        doubled = twin._lessons.bit_length() != predictor._lessons.bit_length()
        vars(predictor).update(fresh, _version=predictor._version + doubled)
    return replaced


def let_go(replaced: dict[str, Any]) -> None:
    """Free what nobody uses any more, off the lock and in pieces where it is large."""
    tables = replaced.get("_tables")
    if isinstance(tables, ResidualLife):
        tables.dissolve()
    replaced.clear()
