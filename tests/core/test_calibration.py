"""Calibration: a miscalibrated predictor made honest, on data it has not seen."""

import numpy as np
import pytest

from sagellm_lifetime.core import hazard, link
from sagellm_lifetime.core.batch import UNCAPPED, LengthDistributionBatch
from sagellm_lifetime.core.calibration import (
    AGE_EDGES,
    BANDS,
    Calibration,
    Outcomes,
    band_of,
    bands_of,
)

NARROW = hazard.log_logistic(180.0, 0.6)[None]
WIDE = hazard.log_logistic(200.0, 1.4)[None]
"""What is predicted for everyone; the truth below lies between."""


def truth(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.maximum(np.rint(rng.lognormal(5.3, 0.8, count)), 1).astype(np.int64)


def predicted(
    ages: np.ndarray, row: np.ndarray = NARROW, caps: np.ndarray | None = None
) -> LengthDistributionBatch:
    n = len(ages)
    caps = np.full(n, UNCAPPED) if caps is None else caps
    return LengthDistributionBatch(row, np.zeros(n, dtype=int), ages, caps)


def under(
    calibration: Calibration, ages: np.ndarray, row: np.ndarray = NARROW
) -> LengthDistributionBatch:
    raw = predicted(ages, row)
    return LengthDistributionBatch(
        raw.rows, raw.index, ages, raw.caps, calibration.curves, bands_of(ages)
    )


def taught(
    rng: np.random.Generator, age: int, rounds: int = 40, row: np.ndarray = NARROW
) -> Calibration:
    calibration = Calibration()
    for _ in range(rounds):
        lengths = truth(rng, 100)
        lengths = lengths[lengths > age]
        ages = np.full(len(lengths), age)
        known = np.zeros(len(lengths), dtype=bool)
        calibration.learn(predicted(ages, row), Outcomes(lengths, known))
    return calibration


def coverage(batch: LengthDistributionBatch, lengths: np.ndarray, level: float) -> float:
    low, high = batch.interval(level)
    remaining = lengths - batch.ages
    return float(np.mean((low <= remaining) & (remaining <= high)))


@pytest.mark.parametrize("age", [0, 50, 300])
@pytest.mark.parametrize("level", [0.8, 0.9])
@pytest.mark.parametrize("row", [NARROW, WIDE], ids=["narrow", "wide"])
def test_intervals_cover_what_they_say_on_new_data(age, level, row):
    rng = np.random.default_rng(0)
    calibration = taught(rng, age, row=row)
    lengths = truth(rng, 8000)
    lengths = lengths[lengths > age]
    ages = np.full(len(lengths), age)
    before = coverage(predicted(ages, row), lengths, level)
    after = coverage(under(calibration, ages, row), lengths, level)
    assert abs(after - level) < 0.025
    if age < 300:
        assert abs(before - level) > 0.025 + abs(after - level)


def test_confidence_becomes_a_frequency_on_new_data():
    rng = np.random.default_rng(1)
    calibration = taught(rng, 0)
    lengths = truth(rng, 8000)
    ages = np.zeros(len(lengths), dtype=int)
    batch = under(calibration, ages)
    points = batch.median()
    said = calibration.confidences(bands_of(ages), batch.within(points))
    hits = np.abs(points - lengths) <= 0.1 * lengths
    assert abs(said.mean() - hits.mean()) < 0.02
    raw = predicted(ages)
    assert raw.within(raw.median()).mean() > hits.mean() + 0.05
    alone = calibration.confidence(0, float(batch.within(points)[0]))
    assert alone == pytest.approx(said[0], abs=1e-12)


def test_censoring_does_not_bias_the_levels():
    rng = np.random.default_rng(2)
    free, cut = Calibration(), Calibration()
    for _ in range(60):
        lengths = truth(rng, 100)
        ages = np.zeros(100, dtype=int)
        free.learn(predicted(ages), Outcomes(lengths, np.zeros(100, dtype=bool)))
        limits = rng.integers(1, 600, 100)
        censored = limits < lengths
        seen = np.minimum(lengths, limits)
        cut.learn(predicted(ages), Outcomes(seen, censored))
    naive = Calibration()
    naive.learn(predicted(ages), Outcomes(seen, np.zeros(100, dtype=bool)))
    gap = np.abs(free.curves[0] - cut.curves[0]).max()
    assert gap < 0.06
    assert np.abs(free.curves[0] - naive.curves[0]).max() > 2 * gap


def test_caps_are_hits_and_aborts_are_not_counted():
    for length, hit in ((100, 1.0), (40, 0.0)):
        calibration = Calibration()
        ages = np.zeros(400, dtype=int)
        calibration.learn(
            predicted(ages, caps=np.full(400, 100)),
            Outcomes(np.full(400, length), np.ones(400, dtype=bool)),
        )
        seen = calibration._seen.sum()
        assert seen == pytest.approx(400.0 * hit)
        assert calibration._hits.sum() == pytest.approx(seen * hit)


def test_untrained_is_the_identity():
    calibration = Calibration()
    assert calibration.curves.shape == (BANDS, link.LEVELS + 1)
    assert np.allclose(calibration.curves, link.KNOTS)
    for raw in (0.0, 0.31, 1.0):
        assert calibration.confidence(3, raw) == pytest.approx(raw)
    none = np.zeros(0, dtype=int)
    calibration.learn(predicted(none), Outcomes(none, none.astype(bool)))
    assert np.allclose(calibration.curves, link.KNOTS)


def test_bands_without_data_borrow():
    calibration = taught(np.random.default_rng(3), 0)
    assert np.allclose(calibration.curves[3], calibration.curves[9])
    assert not np.allclose(calibration.curves[3], link.KNOTS, atol=0.05)


def test_drift_is_followed():
    rng = np.random.default_rng(4)
    calibration = taught(rng, 0, rounds=100)
    for _ in range(100):
        lengths = truth(rng, 100) * 3 // 2
        calibration.learn(
            predicted(np.zeros(100, dtype=int)), Outcomes(lengths, np.zeros(100, dtype=bool))
        )
    lengths = truth(rng, 4000) * 3 // 2
    after = coverage(under(calibration, np.zeros(4000, dtype=int)), lengths, 0.9)
    assert after == pytest.approx(0.9, abs=0.05)


def test_curves_stay_strictly_increasing():
    rng = np.random.default_rng(5)
    calibration = Calibration()
    for _ in range(30):
        lengths = np.full(200, 10**6)
        calibration.learn(
            predicted(rng.integers(0, 2000, 200)), Outcomes(lengths, np.zeros(200, dtype=bool))
        )
    assert (np.diff(calibration.curves, axis=1) > 0).all()
    assert np.isfinite(calibration.maps).all()
    assert (np.diff(calibration.maps, axis=1) >= 0).all()


def test_bands():
    for age in (0, 1, 31, 32, 100, 8191, 8192, 10**6):
        assert band_of(age) == bands_of(np.array([age]))[0]
    assert band_of(0) == 0
    assert band_of(10**6) == len(AGE_EDGES) == BANDS - 1


def test_state_round_trip_and_wrong_shapes():
    calibration = taught(np.random.default_rng(6), 50, rounds=5)
    twin = Calibration()
    twin.restore(calibration.state())
    assert np.array_equal(twin.curves, calibration.curves)
    assert np.array_equal(twin.maps, calibration.maps)
    for key in calibration.state():
        for damage in (np.zeros((2, 2)), np.full(calibration.state()[key].shape, np.nan)):
            with pytest.raises(ValueError, match="calibration"):
                twin.restore({**calibration.state(), key: damage})
