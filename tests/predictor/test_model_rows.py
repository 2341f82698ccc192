"""Rows of a model of another package: what is refused, and what a refusal leaves behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sagellm_lifetime import LengthModel, LifetimeError, PredictionRequest, Predictor
from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.batch import LengthDistributionBatch
from sagellm_lifetime.core.calibration import Calibration, Outcomes
from sagellm_lifetime.core.hazard import KNOTS, ROW, WIDE
from sagellm_lifetime.features.evidence import Evidence
from sagellm_lifetime.predictor.checks import check_rows
from sagellm_lifetime.testing.common import teach


def good() -> np.ndarray:
    return hazard.log_logistic(200.0, 0.5)


def wide() -> np.ndarray:
    return hazard.with_atoms(good(), ((100, 0.2), (150, 0.3)))


class Given(LengthModel):
    """Answers with whatever ``make`` returns."""

    name = "given"

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.make: Callable[[int], Any] = lambda count: [good() for _ in range(count)]

    def absorb(self, evidence: Any, request: PredictionRequest) -> Evidence | None:
        return Evidence(evidence.features, evidence.session) if request.current_length else None

    def hazards(self, evidence: Any) -> Any:
        return self.make(len(evidence))

    def learn(self, feedback: Any) -> None:
        pass

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        pass


def with_value(row: np.ndarray, place: int, value: float) -> np.ndarray:
    row = row.copy()
    row[place] = value
    return row


ROWS: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN": (lambda: with_value(good(), 50, np.nan), "finite and never falls"),
    "all NaN": (lambda: with_value(good() * np.float32(np.nan), 0, 0.0), "finite and never falls"),
    "NaN at the end": (lambda: with_value(good(), ROW - 1, np.nan), "finite and never falls"),
    "infinite": (lambda: with_value(good(), ROW - 1, np.inf), "finite and never falls"),
    "falling": (lambda: with_value(good(), 90, 0.0), "finite and never falls"),
    "a late start": (lambda: good() + np.float32(1.0), "starts at 0"),
    "a start at NaN": (lambda: with_value(good(), 0, np.nan), "starts at 0"),
    "double": (lambda: good().astype(np.float64), "float64 of"),
    "a list": (lambda: good().tolist(), "a value of type list"),
    "two dimensions": (lambda: good()[None], "float32 of (1,"),
    "short": (lambda: good()[:7], f"{ROW} or {WIDE} numbers, and the model's has 7"),
    "NaN in a wide one": (lambda: with_value(wide(), 50, np.nan), "finite and never falls"),
    "a knot at NaN": (lambda: with_value(wide(), ROW, np.nan), "knots"),
    "a knot that is NaN": (lambda: with_value(wide(), ROW + KNOTS, np.nan), "knots"),
    "a knot above its bin": (lambda: with_value(wide(), ROW + KNOTS, 30.0), "knots"),
    "knots out of order": (lambda: with_value(wide(), ROW, 149.0), "knots"),
    "a hazard without a knot": (lambda: with_value(wide(), WIDE - 1, 40.0), "knots"),
}


def request(name: str, age: int = 0) -> PredictionRequest:
    return PredictionRequest(name, [], age, None)


@pytest.mark.parametrize("what", ROWS)
def test_a_row_that_is_none_is_refused_and_stores_nothing(what: str) -> None:
    make, reason = ROWS[what]
    predictor = Predictor(Given())
    teach(predictor, 40)
    before, metrics = predictor.state(), predictor.get_metrics()
    predictor.model.make = lambda count: [make() for _ in range(count)]
    calls: list[Callable[[], Any]] = [
        lambda: predictor.predict(request("new")),
        lambda: predictor.predict_batch([request("new"), request("newer")]),
    ]
    for call in calls:
        with pytest.raises(LifetimeError, match=f"of model 'given' cannot .*{re.escape(reason)}"):
            call()
    assert predictor.get_metrics() == metrics | {"predict_calls": metrics["predict_calls"] + 3}
    for name, array in predictor.state().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    predictor.model.make = lambda count: [good() for _ in range(count)]
    assert predictor.predict(request("new")).estimated_remaining_tokens > 0


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (lambda count: None, "returned None, not rows"),
        (lambda count: [], "returned 0 rows for 1 pieces"),
        (lambda count: [good()] * (count + 1), "returned 2 rows for 1 pieces"),
    ],
)
def test_too_few_or_too_many_rows_are_refused(rows: Any, told: str) -> None:
    predictor = Predictor(Given())
    predictor.model.make = rows
    with pytest.raises(LifetimeError, match=told):
        predictor.predict(request("new"))
    assert predictor.get_metrics()["running"] == 0


def test_rows_of_this_package_pass_the_check() -> None:
    rows = [good(), wide(), hazard.widened(good()[None])[0], np.zeros(ROW, dtype=np.float32)]
    for found, row in zip(check_rows(Given(), rows, len(rows)), rows, strict=True):
        assert found is row
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = sorted(rng.choice(np.arange(1, 9000), rng.integers(1, 9), replace=False).tolist())
        atoms = tuple((length, float(rng.uniform(0, 0.4))) for length in lengths)
        law = hazard.log_logistic(rng.uniform(1, 3000), rng.uniform(0.1, 2))
        check_rows(Given(), [hazard.with_atoms(law, atoms)], 1)


def fail(count: int) -> Any:
    raise ZeroDivisionError("no such luck")


def test_a_model_that_raises_leaves_new_sequences_untracked() -> None:
    predictor = Predictor(Given())
    predictor.predict(request("runs"))
    predictor.model.make = fail
    for batch in ([request("new")], [request("runs", 40), request("new"), request("newer")]):
        with pytest.raises(ZeroDivisionError):
            predictor.predict_batch(batch)
        with pytest.raises(ZeroDivisionError):
            predictor.predict(batch[-1])
        for name in ("new", "newer"):
            with pytest.raises(KeyError):
                predictor.quantiles([name], np.array([0]), 0.5)
    metrics = predictor.get_metrics()
    assert (metrics["running"], metrics["total_predictions"]) == (1, 1)
    predictor.update("new", 10, 1.0)
    assert predictor.get_metrics()["unknown_updates"] == 1


def test_a_running_sequence_keeps_its_row_where_the_model_raises() -> None:
    predictor = Predictor(Given())
    predictor.predict(request("runs"))
    before = predictor.quantiles(["runs"], np.array([40]), 0.5)
    predictor.model.make = fail
    for age in (40, 50):
        with pytest.raises(ZeroDivisionError):
            predictor.predict(request("runs", age))
    assert predictor.quantiles(["runs"], np.array([40]), 0.5) == before
    predictor.model.make = lambda count: [hazard.log_logistic(900.0, 0.5)] * count
    assert predictor.predict(request("runs", 60)).estimated_remaining_tokens > 500
    predictor.update("runs", 700, 1.0)
    predictor.settle()
    assert predictor.lessons == 1


def test_a_calibration_never_learns_from_a_row_that_is_not_finite() -> None:
    calibration = Calibration()
    before = calibration.state()
    rows = np.stack([good(), with_value(good(), 50, np.nan)])
    batch = LengthDistributionBatch(rows, np.arange(2), np.zeros(2, int), np.full(2, 500))
    with pytest.raises(LifetimeError, match="not finite"):
        calibration.learn(batch, Outcomes(np.array([9, 90]), np.zeros(2, bool)))
    for name, array in calibration.state().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
