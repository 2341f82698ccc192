"""One client does not decide how wide the intervals of all others are."""

from __future__ import annotations

import numpy as np
import pytest

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.core.calibration import BANDS
from sagellm_lifetime.predictor.calibration_by_client import MOST_OWN, CalibrationByClient


def told(predictor, client: str | None, length: int) -> bool:
    """Predict and learn one request; whether the length was in the 90 % interval."""
    said = {"prompt_length": 40} | ({} if client is None else {"client_id": client})
    found = predictor.predict(PredictionRequest("r", [], 0, None, said))
    low, high = found.distribution.interval(0.9)
    predictor.update("r", length, 1.0)
    return bool(low <= length <= high)


def flooded(kind: str, loud: str | None, times: int, rounds: int = 60):
    """Ten clients with wide lengths, and one with a single one; coverage of the ten at the end."""
    rng = np.random.default_rng(0)
    predictor, hits = create_predictor(kind), []
    for i in range(rounds * 10):
        hits.append(told(predictor, f"c{i % 10}", int(rng.lognormal(5.0, 0.8)) + 1))
        # Before anybody has a history nobody can be told from anybody.
        for _ in range(times if i >= 100 else 0):
            told(predictor, loud, 100)
    return predictor, float(np.mean(hits[-400:]))


@pytest.mark.parametrize("loud", ["loud", None])
def test_others_are_covered_beside_a_loud_client(loud):
    assert flooded("survival", loud, 10)[1] >= 0.86


def test_who_is_beyond_his_share_is_covered_as_well():
    rng = np.random.default_rng(1)
    predictor, hits = create_predictor("survival"), []
    for i in range(3000):
        told(predictor, f"c{i % 10}", 5) if i % 11 == 0 else hits.append(
            told(predictor, "loud", int(rng.lognormal(5.0, 0.8)) + 1)
        )
    assert 0.85 <= np.mean(hits[500:]) <= 0.96


def test_a_batch_and_the_array_forms_use_the_calibration_of_each_client():
    predictor, _ = flooded("survival", "loud", 10)
    requests = [
        PredictionRequest(f"{client} {i}", [], 0, None, {"client_id": client, "prompt_length": 40})
        for i, client in enumerate(["c1", "loud", "c2", "loud", "nobody"])
    ]
    assert predictor.calibration.has_own
    one_by_one = [predictor.predict(request) for request in requests]
    together = predictor.predict_batch(requests)
    ids, ages = [request.sequence_id for request in requests], np.zeros(5, dtype=np.int64)
    quantiles = predictor.quantiles(ids, ages, [0.05, 0.5, 0.95])
    confidences = predictor.confidences(ids, ages)
    for i, (one, other) in enumerate(zip(one_by_one, together, strict=True)):
        assert one.estimated_remaining_tokens == other.estimated_remaining_tokens
        assert one.confidence == other.confidence == confidences[i]
        expected = [one.distribution.quantile(q) for q in (0.05, 0.5, 0.95)]
        assert quantiles[i].tolist() == expected
    curves = [each.distribution.curve for each in one_by_one]
    assert not np.array_equal(curves[0], curves[1])
    assert np.array_equal(curves[0], curves[2])
    assert np.array_equal(curves[0], curves[4])


def test_calibrations_of_clients_are_saved_and_go_on_alike():
    predictor, _ = flooded("survival", "loud", 10, rounds=30)
    twin = create_predictor("survival")
    twin.restore(predictor.state())
    rng = np.random.default_rng(5)
    for _ in range(100):
        length = int(rng.lognormal(5.0, 0.8)) + 1
        for client in ("c1", "loud", None):
            for each in (predictor, twin):
                told(each, client, length)
    ours, theirs = predictor.state(), twin.state()
    assert ours["calibration.clients"].size
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name


def test_calibrations_of_clients_are_bounded():
    predictor = create_predictor("survival")
    for i in range(30):
        for _ in range(60):
            told(predictor, f"loud {i}", 50)
        for k in range(100):
            told(predictor, f"c{k % 10}", 70)
    assert len(predictor.calibration.state()["clients"]) <= MOST_OWN


def test_many_loud_names_in_turn_take_no_calibration_from_others():
    calibration = create_predictor("survival").calibration
    for client in range(1, MOST_OWN + 1):
        calibration._give_own(client)
    kept = dict(calibration._own)
    for client in range(100, 140):
        calibration._count += 1
        calibration._give_own(client)
    assert dict(calibration._own) == kept
    calibration._count += 2000
    calibration._used[3] = calibration._count
    calibration._give_own(200)
    assert 200 in calibration._own
    assert 3 in calibration._own
    assert len(calibration._own) == MOST_OWN


def test_a_million_names_get_no_calibration_of_their_own():
    predictor, _ = flooded("survival", "loud", 0, rounds=20)
    for i in range(600):
        told(predictor, f"once {i}", 9)
    assert not predictor.calibration.has_own


@pytest.mark.parametrize(
    "damage",
    [
        {"clients": np.array([1, 1])},
        {"clients": np.array([-1])},
        {"clients": np.arange(MOST_OWN + 1)},
        {"clients": np.array([3, 4])},
        {"own.counts": np.full((1, BANDS, 1), np.nan)},
        {"own.counts": np.zeros((1, BANDS, 2))},
        {"own.pit": None},
        {"idle": np.array([-1])},
    ],
)
def test_calibrations_that_nobody_can_have_learned_are_refused(damage):
    state = CalibrationByClient().state()
    for name, array in state.items():
        if name.startswith("own."):
            state[name] = np.zeros((1, *array.shape[1:]))
    state["clients"], state["idle"] = np.array([7]), np.array([3])
    CalibrationByClient().restore(state)
    with pytest.raises(ValueError, match=r"clients|counts|pit|idle"):
        CalibrationByClient().restore({**state, **damage})
