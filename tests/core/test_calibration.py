"""Calibration: a miscalibrated predictor made honest, on data it has not seen."""

from math import erfc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from sagellm_lifetime.core.distribution import LengthDistribution, point_and_confidence
from sagellm_lifetime.core.grid import EDGES, bin_of

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


def levels(calibration: Calibration, band: int = 0) -> np.ndarray:
    """Share of the outcomes below the predicted levels 0.05, 0.10, … 0.95."""
    u = np.arange(1, 20) / 20
    return np.array([1 - np.exp(-link.forward(calibration.curves[band], x)) for x in -np.log1p(-u)])


def log_normal(log_sd: float) -> np.ndarray:
    """Row of a log-normal with the median of :func:`truth`, exact far into both tails."""
    with np.errstate(divide="ignore"):
        z = (np.log(EDGES) - 5.3) / log_sd
        beyond = np.array([erfc(abs(x) / 2**0.5) / 2 for x in z])
        return np.where(z > 0, -np.log(beyond), -np.log1p(-beyond)).astype(np.float32)


FOUR_TIMES = {
    "overconfident": log_normal(0.2),
    "underconfident": log_normal(3.2),
    "overconfident, heavy tail": hazard.log_logistic(200.0, 0.2),
    "underconfident, heavy tail": hazard.log_logistic(200.0, 3.2),
}
"""The true log-sd is 0.8."""


@pytest.mark.parametrize("censoring", [False, True], ids=["whole", "censored"])
@pytest.mark.parametrize("age", [0, 50, 200, 600])
@pytest.mark.parametrize("name", FOUR_TIMES)
def test_a_spread_wrong_by_four_is_repaired_also_in_the_tails(name, age, censoring):
    row = FOUR_TIMES[name]
    rng = np.random.default_rng(10)
    calibration = Calibration()
    learned = 0
    while learned < 6000:
        lengths = truth(rng, 256)
        limits = np.rint(rng.lognormal(5.8, 1.0, 256)).astype(int) + 1
        cut = censoring & (limits < lengths)
        lengths = np.where(cut, limits, lengths)
        lengths, cut = lengths[lengths > age], cut[lengths > age]
        calibration.learn(predicted(np.full(len(lengths), age), row[None]), Outcomes(lengths, cut))
        learned += len(lengths)
    raw = LengthDistribution(row, age)
    honest = LengthDistribution(row, age, 0, None, calibration.curves[band_of(age)])
    remaining = truth(rng, 60_000) - age
    remaining = remaining[remaining > 0]

    def covered(d: LengthDistribution, level: float) -> tuple[float, float, float]:
        low, high = d.interval(level)
        below, above = float((remaining < low).mean()), float((remaining > high).mean())
        return 1.0 - below - above, below, above

    assert not 0.86 < covered(raw, 0.9)[0] < 0.94
    for level in (0.8, 0.9):
        inside, below, above = covered(honest, level)
        assert inside == pytest.approx(level, abs=0.02)
        assert below == pytest.approx((1 - level) / 2, abs=0.02)
        assert above == pytest.approx((1 - level) / 2, abs=0.02)
    assert covered(honest, 0.98)[0] == pytest.approx(0.98, abs=0.01)


def test_short_answers_that_nobody_predicted():
    """A tenth of all answers has 1 to 3 tokens, at a level of one in a billion."""
    rng = np.random.default_rng(11)
    row = log_normal(0.8)

    def mixed(count: int) -> np.ndarray:
        return np.where(rng.random(count) < 0.1, rng.integers(1, 4, count), truth(rng, count))

    calibration = Calibration()
    for _ in range(30):
        calibration.learn(
            predicted(np.zeros(200, dtype=int), row[None]),
            Outcomes(mixed(200), np.zeros(200, dtype=bool)),
        )
    low, high = LengthDistribution(row, 0, 0, None, calibration.curves[0]).interval(0.9)
    lengths = mixed(50_000)
    assert low <= 3
    assert np.mean(lengths < low) < 0.05
    assert np.mean(lengths > high) == pytest.approx(0.05, abs=0.01)


def test_a_few_outcomes_far_out_do_not_move_the_tail():
    row = log_normal(0.8)
    found = []
    for strange in (0, 4):
        rng = np.random.default_rng(12)
        calibration = Calibration()
        for _ in range(30):
            lengths = truth(rng, 200)
            calibration.learn(
                predicted(np.zeros(200, dtype=int), row[None]),
                Outcomes(lengths, np.zeros(200, dtype=bool)),
            )
        lengths = np.full(strange, 3 * 10**6)
        calibration.learn(
            predicted(np.zeros(strange, dtype=int), row[None]),
            Outcomes(lengths, np.zeros(strange, dtype=bool)),
        )
        d = LengthDistribution(row, 0, 0, None, calibration.curves[0])
        found.append([d.quantile(q) for q in (0.9, 0.95, 0.98)])
    assert np.allclose(found[0], found[1], rtol=0.03)


def test_outcomes_all_alike_do_not_stretch_the_tail_of_others():
    """Sharp predictions of one bin, always its last length: wide ones keep their tail."""
    found = []
    for rounds in (0, 60):
        calibration = Calibration()
        row = log_normal(0.8)
        sharp = hazard.from_hazards(
            np.where(np.arange(len(EDGES) - 1) == bin_of(300), 0.9999, 1e-6)
        )
        for _ in range(rounds):
            calibration.learn(
                predicted(np.zeros(100, dtype=int), sharp[None]),
                Outcomes(np.full(100, EDGES[bin_of(300) + 1]), np.zeros(100, dtype=bool)),
            )
        x = link.EDGES[link.TAIL]
        curve = calibration.curves[0]
        found.append(link.forward(curve, x + 5.0) - link.forward(curve, x))
        assert LengthDistribution(row, 0, 0, None, curve).median() < 2000
    assert found[1] == pytest.approx(found[0], rel=0.1)


def test_a_longer_tail_goes_on_where_nobody_was_seen():
    """Nothing is known behind the data: the tail goes on as it was, never steeper than predicted
    because of a shorter one."""
    for log_sd, factor in ((0.2, 0.15), (3.2, 1.0)):
        calibration = taught(np.random.default_rng(13), 0, rounds=60, row=log_normal(log_sd)[None])
        curve = calibration.curves[0]
        x = link.EDGES[-1]
        assert link.forward(curve, x + 100.0) - link.forward(curve, x) == pytest.approx(
            100.0 * factor, rel=0.7
        )


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
    gap = np.abs(levels(free) - levels(cut)).max()
    assert gap < 0.06
    assert np.abs(levels(free) - levels(naive)).max() > 2 * gap


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
    assert np.allclose(calibration.curves, link.IDENTITY, rtol=1e-12, atol=0.0)
    for raw in (0.0, 0.31, 1.0):
        assert calibration.confidence(3, raw) == pytest.approx(raw)
    none = np.zeros(0, dtype=int)
    calibration.learn(predicted(none), Outcomes(none, none.astype(bool)))
    assert np.allclose(calibration.curves, link.IDENTITY, rtol=1e-12, atol=0.0)


def test_bands_without_data_borrow():
    calibration = taught(np.random.default_rng(3), 0)
    assert np.allclose(calibration.curves[3], calibration.curves[9])
    assert not np.allclose(calibration.curves[3], link.IDENTITY, atol=0.05)
    # All the data is in one band, so that all together say what it says.
    assert np.allclose(levels(calibration, 3), levels(calibration, 0), atol=0.01)


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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 30, 200, 10_000, 10**7]), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([0, 1, 100, 5000]),
    st.sampled_from([0.01, 0.2, 0.8, 4.0]),
)
def test_links_stay_links_whatever_is_learned(outcomes, age, log_sd):
    """Strictly increasing, with an inverse, with sound answers: also after the same nonsense
    6000 times over."""
    calibration = Calibration()
    row = hazard.log_logistic(200.0, log_sd)[None]
    for extra, censored in outcomes:
        lengths = np.full(1500, age + extra)
        calibration.learn(
            predicted(np.full(1500, age), row), Outcomes(lengths, np.full(1500, censored))
        )
    assert np.isfinite(calibration.maps).all()
    assert (np.diff(calibration.maps, axis=1) >= 0).all()
    xs = np.unique(np.concatenate([[0.0], np.geomspace(1e-9, 1e4, 200), link.EDGES[11:]]))
    for curve in calibration.curves[[band_of(age), 7]]:
        there = [link.forward(curve, x) for x in xs.tolist()]
        assert np.isfinite(there).all()
        assert (np.diff(there) > 0).all()
        back = [link.backward(curve, y) for y in there]
        assert np.allclose(back, xs, rtol=1e-9, atol=1e-9)
        d = LengthDistribution(row[0], age, 0, None, curve)
        found = [d.quantile(q) for q in (0.0, 0.001, 0.5, 0.999, 1.0)]
        assert found == sorted(found)
        assert 1 <= found[0] <= found[-1] < 10**15
        assert np.isfinite(d.mean())


def test_memory_fades():
    """After 6000 others, what was learned first has as good as no weight."""
    rng = np.random.default_rng(14)
    calibration, twin = taught(rng, 0, rounds=20), Calibration()
    for _ in range(300):
        lengths = truth(rng, 100) * 2
        for each in (calibration, twin):
            each.learn(
                predicted(np.zeros(100, dtype=int)), Outcomes(lengths, np.zeros(100, dtype=bool))
            )
    assert calibration._counts[0] == pytest.approx(6000.0)
    assert calibration._pit[0].sum() == pytest.approx(6000.0)
    assert np.allclose(levels(calibration), levels(twin), atol=0.01)


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
        shape = calibration.state()[key].shape
        for damage in (
            np.zeros((2, 2)),
            np.full(shape, np.nan),
            np.full(shape, np.inf),
            np.full(shape, -1.0),
            np.full(shape, 1e300),
        ):
            with pytest.raises(ValueError, match=f"'{key}'"):
                twin.restore({**calibration.state(), key: damage})


@pytest.mark.parametrize("cap", [None, 0, 1, 100, 180, 200, 220, 10_000])
def test_what_is_kept_of_a_shared_row_is_its_answer(cap):
    rng = np.random.default_rng(3)
    calibration = taught(rng, 0, rounds=1)
    for _ in range(2):
        for row in (NARROW[0], WIDE[0]):
            n, raw = point_and_confidence(row, 0, cap, calibration.curves[0])
            for _ in range(2):
                assert calibration.at_start(row, cap) == (n, calibration.confidence(0, raw))
        lengths = truth(rng, 300)
        outcomes = Outcomes(lengths, np.zeros(300, dtype=bool))
        calibration.learn(predicted(np.zeros(300, dtype=np.int64)), outcomes)
