"""Checks of merges, for the models that can be merged; the others pass."""

from __future__ import annotations

import numpy as np

from sagellm_lifetime.models.base import LengthModel
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.merging import merge_predictors
from sagellm_lifetime.testing.common import Make, questions, teach, what_is_known

_POINTS = (1, 10, 40, 100, 300, 1000)
_NEAR = 1e-4
"""Largest difference of a probability by rounding, in another order of the same sums."""


def can_merge(predictor: Predictor) -> bool:
    """Return True for a predictor that learns here, and whose model has a merge of its own."""
    is_here = not predictor.learns_elsewhere
    return is_here and type(predictor.model).merge is not LengthModel.merge


def _parts(make: Make) -> list[Predictor]:
    """Return three predictors that learned from different sequences; none if they cannot merge."""
    parts = [make() for _ in range(3)]
    if not can_merge(parts[0]):
        return []
    for i, part in enumerate(parts):
        teach(part, 12, seed=40 + i, name=f"part{i}")
    return parts


def _survival(predictor: Predictor) -> np.ndarray:
    rows = []
    for request in questions("merged"):
        distribution = predictor.predict(request).distribution
        assert distribution is not None
        rows.append([distribution.survival(n) for n in _POINTS])
        predictor.discard(request.sequence_id)
    return np.array(rows)


def _assert_near(one: Predictor, other: Predictor, description: str) -> None:
    assert one.lessons == other.lessons, f"{description}: another number of completions"
    gap = float(np.abs(_survival(one) - _survival(other)).max())
    assert gap <= _NEAR, f"{description}: a probability differs by {gap:.2g}"


def check_merge_does_not_depend_on_the_order(make: Make) -> None:
    """Check that a merge is commutative and associative, and counts all completions."""
    parts = _parts(make)
    if not parts:
        return
    a, b, c = parts
    merged = merge_predictors(parts)
    assert merged.lessons == sum(part.lessons for part in parts), "completions are lost"
    _assert_near(merged, merge_predictors([c, a, b]), "in another order")
    _assert_near(merged, merge_predictors([merge_predictors([a, b]), c]), "two first")
    _assert_near(merged, merge_predictors([a, merge_predictors([b, c])]), "the last two first")


def check_merge_leaves_the_others(make: Make) -> None:
    """Check that the merged predictors stay as they are, and that the result saves and learns."""
    parts = _parts(make)
    if not parts:
        return
    before = [what_is_known(part) for part in parts]
    merged = merge_predictors(parts)
    teach(merged, 6, seed=50, name="after")
    assert [what_is_known(part) for part in parts] == before, "a merge changed what it read"
    copied = merged.clone()
    _assert_near(merged, copied, "after it was saved and loaded")


CHECKS = [check_merge_does_not_depend_on_the_order, check_merge_leaves_the_others]
