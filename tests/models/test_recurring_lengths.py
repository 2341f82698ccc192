"""Lengths that recur: bounded counts, what is taken for exact, and what a predictor makes of it."""

import numpy as np
import pytest

from sagellm_lifetime import PredictionRequest, SurvivalLifetimePredictor
from sagellm_lifetime.core.grid import BINS, bins_of
from sagellm_lifetime.core.hazard import MOST_ATOMS
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.models.recurring_lengths import Habits, atoms_of
from sagellm_lifetime.models.residual_life import ResidualLife

NOBODY = RequestFeatures()


def counts(lengths) -> np.ndarray:
    return np.bincount(bins_of(np.array(lengths)), minlength=BINS).astype(np.float32)


def test_frequent_lengths_are_counted_exactly_among_many_others():
    rng = np.random.default_rng(0)
    habits, true = Habits(8), {700: 0, 12_345: 0}
    for _ in range(5000):
        u = rng.random()
        length = 700 if u < 0.3 else 12_345 if u < 0.5 else int(rng.integers(1, 10**6))
        habits.count(length)
        if length in true:
            true[length] += 1
    found = dict(habits.recurring())
    assert len(habits.places()) == 8
    for length, hits in true.items():
        assert hits - 20 <= found[length] <= hits
    assert all(hits < 50 for length, hits in found.items() if length not in true)


def test_a_place_is_won_from_who_does_not_come_any_more():
    habits = Habits(2)
    for length in [100] * 5 + [200] * 5 + list(range(1000, 1030)) + [300] * 9:
        habits.count(length)
    assert dict(habits.recurring()) == {300: 9}


def test_places_round_trip():
    rng = np.random.default_rng(1)
    habits = Habits(4)
    lengths = rng.integers(1, 9, 100).tolist()
    for length in lengths[:50]:
        habits.count(length)
    twin = Habits(4, habits.places())
    for length in lengths[50:]:
        habits.count(length)
        twin.count(length)
    assert twin.places() == habits.places()


def test_what_recurs_by_chance_is_no_atom():
    rng = np.random.default_rng(2)
    for spread in (0.3, 1.0, 2.0):
        for count in (10, 100, 3000):
            lengths = np.maximum(rng.lognormal(5.5, spread, count), 1).astype(int).tolist()
            habits = Habits(64)
            for length in lengths:
                habits.count(length)
            found = atoms_of((), habits.recurring(), counts(lengths))
            assert len(found) <= 1, (spread, count, found)


def test_what_recurs_is_one_and_the_group_above_fades():
    assert atoms_of((), [(1024, 50)], counts([1024] * 50)) == (
        (1024, pytest.approx(0.97, abs=0.01)),
    )
    assert atoms_of((), [(7, 50)], counts([7] * 50)) == (), "a bin of its own needs none"
    above = ((1024, 0.9),)
    assert atoms_of(above, [], counts([])) == above
    assert atoms_of(above, [], counts([970, 990, 1000, 1010] * 3)) == ()
    many = [(2000 + 200 * k, 50) for k in range(40)]
    found = atoms_of((), many, counts(np.repeat([length for length, _ in many], 50)))
    assert len(found) == MOST_ATOMS
    assert list(found) == sorted(found)


def test_a_client_with_a_habit_among_others_without():
    rng, tables = np.random.default_rng(3), ResidualLife()
    for _ in range(300):
        tables.learn(RequestFeatures(client_key=1), 0, 1000, censored=False)
        for client in range(2, 6):
            length = int(rng.lognormal(6.9, 0.3))
            tables.learn(RequestFeatures(client_key=client), 0, length, censored=False)
    constant = tables.known(RequestFeatures(client_key=1), 0)
    assert dict(constant.atoms)[1000] > 0.98
    others = dict(tables.known(RequestFeatures(client_key=2), 0).atoms)
    assert others.get(1000, 0.0) < 0.1


def predictor_of(lengths, **said):
    predictor = SurvivalLifetimePredictor()
    for i, length in enumerate(lengths):
        predictor.predict(PredictionRequest(i, [], 0, None, dict(said)))
        predictor.update(i, int(length), 1.0)
    return predictor


@pytest.mark.parametrize("value", [42, 256, 777, 2048])
def test_whoever_always_answers_the_same_is_known_to(value):
    predictor = predictor_of([value] * 400)
    result = predictor.predict(PredictionRequest("new", [], 0, None))
    assert result.estimated_remaining_tokens == value
    assert result.distribution.interval(0.9) == (value, value)
    assert result.confidence > 0.95
    later = predictor.predict(PredictionRequest("new", [], value - 5, None))
    assert later.distribution.interval(0.9) == (5, 5)
    assert predictor.quantiles(["new"], np.array([value - 5]), [0.05, 0.5, 0.95]).tolist() == [
        [5] * 3
    ]


@pytest.mark.parametrize("cap", [100, 256, 1000])
def test_a_cap_that_nobody_declared_is_inside_the_interval(cap):
    rng = np.random.default_rng(4)
    lengths = np.minimum(np.maximum(rng.lognormal(5.5, 1.0, 900), 1), cap).astype(int)
    predictor = predictor_of(lengths)
    d = predictor.predict(PredictionRequest("new", [], 0, None)).distribution
    share = np.mean(lengths == cap)
    assert d.survival(cap - 1) - d.survival(cap) == pytest.approx(share, abs=0.06)
    assert d.interval(0.9)[1] == cap
    assert d.given(cap - 1).median() == 1


def test_exact_lengths_are_saved(tmp_path):
    from sagellm_lifetime import load_predictor

    predictor = predictor_of([300] * 60 + [512] * 60, client_id="c")
    predictor.save(tmp_path / "kept")
    twin = load_predictor(tmp_path / "kept")
    for each in (predictor, twin):
        for i in range(40):
            each.predict(PredictionRequest(f"more {i}", [], 0, None, {"client_id": "c"}))
            each.update(f"more {i}", 512, 1.0)
    for said in ({"client_id": "c"}, {}):
        a, b = (
            each.predict(PredictionRequest("new", [], 0, None, said)) for each in (predictor, twin)
        )
        assert np.array_equal(a.distribution.row, b.distribution.row)
        assert a.distribution.survival(511) - a.distribution.survival(512) > 0.4


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("habits", lambda a: a[:, :2]),
        ("habits", lambda a: -a),
        ("habits_until", lambda a: a[::-1]),
        ("habits_until", lambda a: a[:-1]),
        ("atoms", lambda a: np.zeros(99, dtype=np.int64)),
        ("atoms", lambda a: -a),
        ("atom_shares", lambda a: a + np.nan),
        ("atom_shares", lambda a: a * 3),
        ("atoms_until", lambda a: a + 1),
    ],
)
def test_damaged_counts_are_refused(part, damage):
    tables = ResidualLife()
    for _ in range(50):
        tables.learn(RequestFeatures(client_key=3), 0, 500, censored=False)
    state = tables.state()
    assert len(state["atoms"]), "there is something to damage"
    with pytest.raises(ValueError, match=part.split("_")[0]):
        ResidualLife().restore(state | {part: damage(state[part])})
