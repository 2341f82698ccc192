"""New weights are used once they are no worse; the table answers where a network is worse."""

import numpy as np
import pytest

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.core.errors import MissingExtraError
from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.networks import champion
from sagellm_lifetime.networks.champion import MARGIN, SHARES, TESTED_AT, Share, Trial
from sagellm_lifetime.networks.head import RELATIVE

SMALL = {"lstm": {"hidden_size": 16}, "transformer": {"d_model": 16, "nhead": 2}}


def verdict_of(differences: np.ndarray) -> tuple[bool, int]:
    """Return the verdict of a trial, and after how many completions it came."""
    trial = Trial({}, lambda steps: np.zeros(0))
    for count, difference in enumerate(differences, 1):
        trial.add(5.0, 5.0 + np.full(len(SHARES), difference))
        verdict = trial.verdict()
        if verdict is not None:
            return verdict, count
    raise AssertionError("undecided")


def test_better_weights_are_accepted_and_worse_ones_refused_at_the_first_look():
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 0.05, TESTED_AT[-1])
    assert verdict_of(noise - 0.1) == (True, TESTED_AT[0])
    assert verdict_of(noise + 0.1) == (False, TESTED_AT[0])
    assert verdict_of(np.zeros(TESTED_AT[-1]))[0]


def test_a_trial_is_bounded():
    rng = np.random.default_rng(1)
    for _ in range(200):
        assert verdict_of(rng.normal(MARGIN, 0.3, TESTED_AT[-1]))[1] <= TESTED_AT[-1]


@pytest.mark.parametrize("sd", [0.05, 0.3, 2.0])
def test_weights_worse_by_the_margin_are_accepted_in_at_most_one_of_twenty(sd):
    rng = np.random.default_rng(2)
    accepted = [verdict_of(rng.normal(MARGIN, sd, TESTED_AT[-1]))[0] for _ in range(300)]
    # Of 300, 5 % and two standard errors.
    assert np.mean(accepted) <= 0.075


def test_one_completion_does_not_decide():
    calm = np.full(TESTED_AT[-1], -0.05)
    for strange in (1e9, np.nan, np.inf):
        spoilt = calm.copy()
        spoilt[3] = strange
        assert verdict_of(spoilt)[0]
    assert not verdict_of(np.full(TESTED_AT[-1], np.nan))[0]


def test_the_share_goes_to_the_table_and_comes_back():
    share = Share()
    assert share.value == 1.0
    for _ in range(50):
        share.add(np.array([5.0, 4.8, 4.6, 4.4, 4.2]))
    assert share.value == 0.0
    for _ in range(600):
        share.add(np.array([4.0, 4.2, 4.4, 4.6, 4.8]))
    assert share.value == 1.0


def served(predictor, count: int, length, *, start: int = 0) -> None:
    rng = np.random.default_rng(start)
    for i in range(start, start + count):
        said = {"client_id": f"c{i % 12}", "prompt_length": int(rng.integers(5, 500))}
        predictor.predict(PredictionRequest(i, [], 0, None, said))
        predictor.update(i, length(rng), 1.0)


def usual(rng: np.random.Generator) -> int:
    return int(rng.lognormal(5.0, 0.7)) + 1


@pytest.fixture(scope="module", params=["lstm", "transformer"])
def fitted(request):
    """A network with weights that change nothing, beside a table that has learned."""
    torch = pytest.importorskip("torch")
    predictor = create_predictor(request.param, online="off", **SMALL[request.param])
    served(predictor, 300, usual)
    torch.manual_seed(0)
    network = predictor.model.build()()
    weights = {k: v.detach().numpy().copy() for k, v in network.state_dict().items()}
    predictor.model.use(weights)
    return predictor


def spoilt(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights that say that every sequence ends at once."""
    bias = weights["head.bias"].copy()
    bias[:12] = 6.0
    return {**weights, "head.bias": bias}


def test_a_network_worse_than_the_table_gives_way_to_it(fitted):
    predictor = fitted.clone()
    request = PredictionRequest("x", [], 0, None, {"client_id": "c1", "prompt_length": 40})
    from_table = predictor.model.tables.row
    predictor.model.use(spoilt(predictor.model.weights))
    spoilt_median = predictor.predict(request).distribution.row
    predictor.discard("x")
    served(predictor, 160, usual, start=1000)
    metrics = predictor.get_metrics()
    assert metrics["network_share"] == 0.0
    row = predictor.predict(request).distribution.row
    features = predictor.model.observe(predictor._context.observe(request)).features
    np.testing.assert_array_equal(row, from_table(features, 0))
    assert not np.array_equal(row, spoilt_median)


def test_spoilt_weights_are_refused_and_good_ones_accepted(fitted):
    predictor = fitted.new(online="inline")
    predictor.restore(fitted.state())
    model = predictor.model
    champion_weights = model.weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "_train_inline", lambda self: None)
        model._challenge(spoilt(champion_weights))
        served(predictor, 40, usual, start=2000)
        metrics = predictor.get_metrics()
        assert (metrics["weights_accepted"], metrics["weights_refused"]) == (0, 1)
        assert model.weights is champion_weights
        equal = {k: v.copy() for k, v in champion_weights.items()}
        model._challenge(equal)
        served(predictor, TESTED_AT[-1], usual, start=3000)
        metrics = predictor.get_metrics()
        assert (metrics["weights_accepted"], metrics["weights_refused"]) == (1, 1)
        assert model.weights is equal
    again = predictor.clone().get_metrics()
    assert (again["weights_accepted"], again["weights_refused"]) == (1, 1)


def test_weights_that_cannot_be_served_are_refused_at_once(fitted):
    predictor = fitted.clone()
    broken = {k: np.full_like(v, np.nan) for k, v in predictor.model.weights.items()}
    predictor.model._challenge(broken)
    assert predictor.get_metrics()["weights_refused"] == 1
    assert predictor.model._trial is None


def test_training_starts_again_from_the_champion_after_three_refusals(fitted):
    predictor = fitted.new(online="inline")
    predictor.restore(fitted.state())
    model = predictor.model
    model._trainer = object()
    for count in range(3):
        assert model._trainer is not None, count
        model._refuse()
    assert model._trainer is None
    assert model.runner is not None


def test_a_network_says_nan_and_the_table_answers(fitted):
    predictor = fitted.clone()
    predictor.model.runner = lambda steps: np.full(BINS + RELATIVE, np.nan, dtype=np.float32)
    served(predictor, 32, usual, start=4000)
    assert predictor.get_metrics()["network_share"] == 0.0


def test_without_pytorch_only_the_table_learns(monkeypatch):
    predictor = create_predictor("lstm", hidden_size=8, num_layers=1)

    def missing(*_, **__):
        raise MissingExtraError("training a network", "train")

    monkeypatch.setattr(type(predictor.model), "_make_trainer", missing)
    served(predictor, 40, usual)
    assert predictor.model.options["online"] == "off"
    assert predictor.get_metrics()["weights_accepted"] == 0


def test_a_loud_client_and_many_new_names_have_a_quarter_of_the_store(monkeypatch):
    predictor = create_predictor("lstm", hidden_size=8, num_layers=1)
    monkeypatch.setattr(type(predictor.model), "_train_inline", lambda self: None)
    count = 0
    for i in range(1500):
        # Of five requests one is an honest client's, two a loud one's, two under new names.
        name = (f"c{i // 5 % 12}", "loud", "loud", f"new {i}", f"new {i}")[i % 5]
        predictor.predict(PredictionRequest(i, [], 0, None, {"client_id": name}))
        predictor.update(i, 77 if name[0] != "c" else 300, 1.0)
        count += name[0] == "c"
    store = predictor.model._store
    assert len(store) < 2 * store._half, "not full: the completions are shared out before"
    honest = [sample.length == 300 for sample in store.draw(4000)]
    assert len(store) >= count
    # Of all completions a fifth is theirs.
    assert np.mean(honest) > 0.33


def test_the_looks_and_the_quantile_belong_together():
    from statistics import NormalDist

    assert pytest.approx(NormalDist().inv_cdf(1 - 0.05 / len(TESTED_AT)), abs=1e-4) == champion.Z
