"""Seconds per token are learned from clients, not from requests."""

import numpy as np
import pytest

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.predictor.fair_timing import FairTiming


def taught(times, strangers=1, model="m", rounds=40):
    """Twenty clients at about 0.02 s a token, and others at ``times`` the rate of all of them."""
    rng = np.random.default_rng(5)
    predictor = create_predictor("survival")
    number = 0

    def finish(client, length, seconds):
        nonlocal number
        number += 1
        features = {"client_id": client, "model": model}
        predictor.predict(PredictionRequest(number, [], 0, None, features))
        predictor.update(number, length, seconds)

    for i in range(rounds):
        for client in range(20):
            finish(f"c{client}", 100, 100 * 0.02 * rng.lognormal(0.0, 0.3))
            for k in range(times):
                finish(f"s{(i * times + k) % strangers}", 1, 3600.0)
    return predictor


@pytest.mark.parametrize("model", ["m", None])
@pytest.mark.parametrize(("strangers", "moved"), [(1, 0.05), (4, 0.2)])
def test_absurd_times_of_a_client_do_not_move_the_others(strangers, moved, model):
    def time_of(predictor):
        request = PredictionRequest("mine", [], 99, None, {"client_id": "c1", "model": model})
        found = predictor.predict(request)
        return found.estimated_time / found.estimated_remaining_tokens

    alone, beside = (time_of(taught(times, strangers, model)) for times in (0, 10))
    assert beside == pytest.approx(alone, rel=moved)


def test_one_client_alone_is_learned_from():
    timing = FairTiming()
    for client in (0, 5):
        for _ in range(300):
            timing.learn(client, None, 10, 1.0 + client)
    assert timing.seconds_per_token() == pytest.approx(0.6)


def test_it_goes_on_from_its_state():
    rng = np.random.default_rng(1)
    timing, twin = FairTiming(), FairTiming()

    def teach(each, rng):
        for client in rng.zipf(1.5, 500).clip(0, 50).tolist():
            each.learn(client, ("m", "n", None)[client % 3], 10, float(rng.lognormal()))

    teach(timing, rng)
    twin.restore(timing.state())
    for each in (timing, twin):
        teach(each, np.random.default_rng(2))
    assert all(np.array_equal(timing.state()[name], array) for name, array in twin.state().items())
    with pytest.raises(ValueError, match="accounts"):
        twin.restore({})
