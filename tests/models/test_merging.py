"""What several predictors learned, merged: the laws, and what one that learned all of it knows."""

from __future__ import annotations

from copy import deepcopy
from functools import reduce

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagellm_lifetime import (
    LengthModel,
    MergeError,
    PredictionRequest,
    Predictor,
    create_predictor,
    merge_predictors,
)
from sagellm_lifetime.core.hazard import log_logistic
from sagellm_lifetime.core.merging import evenly_mixed, thinned
from sagellm_lifetime.models.recurring_lengths import Habits

TABLES = ("baseline", "orca", "linear", "survival")
LAWS = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
EXACT = ("keys", "counted", "ended", "left", "clients", "later", "tried", "habits", "accounts")
"""Arrays of which every associative order gives the same bits."""

completion = st.tuples(
    st.integers(0, 3),  # client
    st.integers(0, 2),  # model
    st.sampled_from([None, 64, 512]),
    st.integers(1, 400),
    st.sampled_from(["stop", "stop", "length", "abort"]),
    st.integers(0, 4),  # words of the prompt
)
logs = st.lists(completion, max_size=24)


def teach(predictor: Predictor, log, start: int = 0) -> Predictor:
    for i, (client, model, cap, length, reason, words) in enumerate(log):
        features = {"client_id": f"c{client}", "model": f"m{model}", "prompt_length": 10 + words}
        tokens = list(range(words, words + 5)) if words >= 0 else []
        tokens_out = length if cap is None else min(length, cap)
        seconds = 0.01 * tokens_out + 0.001
        predictor.predict(PredictionRequest(start + i, tokens, 0, cap, features))
        predictor.update(start + i, tokens_out, seconds, finish_reason=reason)
    return predictor


def taught(name: str, log) -> Predictor:
    return teach(create_predictor(name, seed=3), log)


def answers(predictor: Predictor) -> list[float]:
    found = []
    for client in range(4):
        for cap in (None, 64, 512):
            request = PredictionRequest(
                f"q{client}{cap}", [1, 2, 3], 0, cap, {"client_id": f"c{client}", "model": "m0"}
            )
            distribution = predictor.predict(request).distribution
            found += [distribution.survival(n) for n in (5, 20, 60, 150, 300)]
    return found


def assert_equal_state(one: Predictor, other: Predictor) -> None:
    mine, theirs = one.state(), other.state()
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert array.shape == theirs[name].shape, name
        if name.rpartition(".")[2] in EXACT or array.dtype.kind in "ib":
            np.testing.assert_array_equal(array, theirs[name], name)
        else:
            np.testing.assert_allclose(array, theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", TABLES)
def test_a_merge_is_associative_and_commutative(name: str) -> None:
    @LAWS
    @given(logs, logs, logs)
    def laws(a, b, c) -> None:
        x, y, z = (taught(name, log) for log in (a, b, c))
        merged = merge_predictors([x, y, z])
        assert merged.lessons == x.lessons + y.lessons + z.lessons
        # Commutative, and associative.
        assert_equal_state(merged, merge_predictors([z, x, y]))
        assert_equal_state(merged, merge_predictors([merge_predictors([x, y]), z]))
        assert_equal_state(merged, merge_predictors([x, merge_predictors([y, z])]))
        np.testing.assert_allclose(
            answers(merged), answers(merge_predictors([z, merge_predictors([y, x])])), atol=1e-6
        )

    laws()


@pytest.mark.parametrize("name", TABLES)
def test_others_are_unchanged_and_what_knows_nothing_adds_nothing(name: str) -> None:
    log = [(i % 4, i % 3, 512, 20 + 7 * i % 300, "stop", i % 5) for i in range(40)]
    one, other = taught(name, log), taught(name, log[:7])
    before = other.state()
    new = create_predictor(name, seed=3)
    alone = one.clone()
    if name == "survival":
        alone.model.tables.settle_known()  # without a merge hazards are computed now and then
    np.testing.assert_allclose(answers(merge_predictors([one, new])), answers(alone), atol=1e-6)
    merge_predictors([one, other])
    after = other.state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("clients", [1, 4])
def test_counts_are_those_of_one_that_learned_all(clients: int) -> None:
    rng = np.random.default_rng(4)
    log = [
        (int(c), 0, 512, int(n), "stop", -1)  # no prompt, since scores of prompts differ
        for c, n in zip(rng.integers(0, clients, 600), rng.lognormal(4, 0.6, 600) + 1, strict=True)
    ]
    parts = [teach(create_predictor("survival", seed=3), log[i::3]) for i in range(3)]
    merged, alone = merge_predictors(parts), taught("survival", log)
    mine, theirs = merged.model.state(), alone.model.state()
    order, other = np.argsort(mine["tables.keys"]), np.argsort(theirs["tables.keys"])
    assert np.array_equal(mine["tables.keys"][order], theirs["tables.keys"][other])
    counted = mine["tables.counted"][order], theirs["tables.counted"][other]
    # The first completions of new clients are not all counted for everybody, by each part anew.
    np.testing.assert_allclose(*counted, rtol=0.0 if clients == 1 else 0.02)
    if clients == 1:
        assert np.array_equal(mine["tables.ended"][order], theirs["tables.ended"][other])
    np.testing.assert_allclose(answers(merged), answers(alone), atol=0.06)


def test_hazards_are_computed_anew_and_a_prediction_is_a_lookup_again() -> None:
    log = [(i % 4, i % 3, 512, 20 + 7 * i % 300, "stop", i % 5) for i in range(200)]
    merged = merge_predictors([taught("survival", log), taught("survival", log[::2])])
    tables = merged.model.tables
    fresh = [key for key in tables._nodes if tables._is_fresh(tables._existing(key))]
    assert len(fresh) == len(tables._nodes)


def test_a_state_of_before_there_were_neighbours_merges() -> None:
    log = [(i % 4, i % 3, 512, 20 + 7 * i % 300, "stop", i % 5) for i in range(60)]
    old, new = taught("survival", log), taught("survival", log[:20])
    state = old.state()
    for name in ("above", "main"):
        del state[f"predictor.tables.{name}"]
    earlier, other = (create_predictor("survival", seed=3) for _ in range(2))
    for each in (earlier, other):
        each.restore(state)
    merged = merge_predictors([earlier, other])
    assert merged.lessons == 120
    assert len(answers(teach(merged, log, start=1000))) == 60
    # One that knows them brings them in for the nodes that both have.
    known = answers(merge_predictors([earlier, new]))
    np.testing.assert_allclose(known, answers(merge_predictors([old, new])), atol=1e-6)


def test_a_tree_keeps_its_largest_nodes() -> None:
    make = lambda: create_predictor("survival", seed=3, max_nodes=64)  # noqa: E731
    parts = []
    for part in range(3):
        log = [(i % 3, 0, None, 50 + i, "stop", 0) for i in range(30)]
        log += [(100 + 40 * part + i, 0, None, 50, "stop", 0) for i in range(25)]
        parts.append(teach(make(), log))
    merged = merge_predictors(parts)
    tables = merged.model.tables
    assert len(tables._nodes) == 64
    heaviest = tables._existing(next(reversed(tables._nodes)))
    assert heaviest.counted == sum(part.model.tables._existing(0).counted for part in parts)
    teach(merged, [(i, 0, None, 50, "stop", 0) for i in range(40)])
    assert len(tables._nodes) == 64


def test_single_lengths_are_added() -> None:
    parts = [taught("survival", [(0, 0, None, 256, "stop", 0)] * 20) for _ in range(2)]
    merged = merge_predictors(parts)
    table = merged.model.state()["tables.habits"]
    assert set(table[:, 0]) == {256}
    assert set(table[:, 1]) == {40}
    assert isinstance(Habits(4, [tuple(row) for row in table[:1].tolist()]), Habits)


def test_seconds_per_token_are_the_median_of_all() -> None:
    fast, slow = create_predictor("orca"), create_predictor("orca")
    for predictor, seconds in ((fast, 0.01), (slow, 0.03)):
        for i in range(30 if predictor is fast else 50):
            predictor.predict(PredictionRequest(i, [], 0, None))
            predictor.update(i, 100, 100 * seconds)
    assert merge_predictors([fast, slow]).get_metrics()["seconds_per_token"] == pytest.approx(0.03)


def test_windows_are_forgotten_evenly() -> None:
    values = evenly_mixed(range(1000))
    assert abs(values[:100].mean() - 500) < 20
    assert thinned(np.arange(5), 9).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (lambda: create_predictor("linear", seed=3), "holds a 'linear' predictor"),
        (lambda: create_predictor("baseline", seed=3, window_size=7), "window_size=7, not 100"),
        (lambda: _secret(create_predictor("baseline", seed=3)), "another secret"),
        (lambda: create_predictor("lstm"), "holds a 'lstm'"),
    ],
)
def test_what_does_not_fit_is_one_line(other, why: str) -> None:
    mine = create_predictor("baseline", seed=3)
    with pytest.raises(MergeError, match=why) as raised:
        merge_predictors([mine, other()], ["a", "b"])
    assert str(raised.value).startswith("b: ")
    assert "\n" not in str(raised.value)


def _secret(predictor: Predictor) -> Predictor:
    predictor.draw_secret()
    return predictor


def test_a_model_without_a_merge_says_so() -> None:
    class Constant(LengthModel):
        name = "constant"

        def hazards(self, evidence):
            return [log_logistic(200.0, 0.5) for _ in evidence]

        def learn(self, feedback):
            pass

        def state(self):
            return {}

        def restore(self, state):
            pass

    with pytest.raises(MergeError, match="'constant' has learned cannot be merged"):
        merge_predictors([Predictor(Constant()), Predictor(Constant())])
    with pytest.raises(MergeError, match="nothing to merge"):
        merge_predictors([])


def network(gain: float, weights: dict[str, np.ndarray] | None, steps: int = 0) -> Predictor:
    predictor = create_predictor("lstm", seed=3, hidden_size=8, num_layers=1)
    model = predictor.model
    model.use(weights)
    model.share.losses = np.array([1.0 - gain, 1.0, 1.0, 1.0, 1.0])
    model._training_steps = steps
    return predictor


def test_of_networks_the_one_that_helped_most_is_used() -> None:
    torch = pytest.importorskip("torch")
    predictor = create_predictor("lstm", seed=3, hidden_size=8, num_layers=1)
    weights = []
    for seed in range(2):
        torch.manual_seed(seed)
        weights.append(predictor.model._make_trainer(None).weights())
    weights[1] = {name: array + np.float32(0.01) for name, array in weights[0].items()}
    poor, good, none = network(0.1, weights[0]), network(0.3, weights[1]), network(0.0, None)
    for order in ([poor, good, none], [none, good, poor], [good, none, poor]):
        merged = merge_predictors(order)
        assert all(np.array_equal(merged.model.weights[key], weights[1][key]) for key in weights[1])
        assert merged.model.share.losses[0] == pytest.approx(0.7)
    groups = [merge_predictors([poor, good]), none], [poor, merge_predictors([none, good])]
    assert_equal_state(*(merge_predictors(group) for group in groups))


def test_the_newest_generation_leads() -> None:
    log = [(0, 0, None, 60, "stop", 0)] * 30
    parts = [taught("survival", log) for _ in range(3)]
    for part, (kept, since) in zip(parts, [([0], 9), ([0, 1], 2), ([1, 0], 5)], strict=True):
        record = next(iter(part.model.tables.regimes._models.values()))
        record.kept, record.newest, record.since = kept, 1, since
        record.better = [0.0] * len(kept)
    merged = reduce(lambda a, b: merge_predictors([a, b]), parts)
    record = next(iter(merged.model.tables.regimes._models.values()))
    assert record.kept == [1, 0]  # of two of one generation the one that has been present longer
    assert_equal_state(merged, merge_predictors(parts[::-1]))


def test_a_merged_model_goes_on_learning_and_saves(tmp_path) -> None:
    log = [(i % 4, i % 3, 512, 20 + 7 * i % 300, "stop", i % 5) for i in range(120)]
    for name in TABLES:
        merged = merge_predictors([taught(name, log), taught(name, log[::2])])
        twin = deepcopy(merged)
        teach(merged, log, start=10_000)
        teach(twin, log, start=10_000)
        assert answers(merged) == answers(twin)
        merged.save(tmp_path / name)
