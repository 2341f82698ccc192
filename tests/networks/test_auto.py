"""The default: survival where there is no network, and a pool of both where there is one."""

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import PredictionRequest, create_predictor, load_predictor
from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.networks import auto
from sagellm_lifetime.networks.pool import STARTS, Pool
from sagellm_lifetime.predictor.registry import DEFAULT, has_network, needs_torch


def history(rows=600):
    """Return rows in which the recent lengths of a session tell the next one."""
    rng = np.random.default_rng(5)
    session = rng.integers(0, 30, rows)
    level = 20.0 * 2.0 ** (session % 5)
    return pl.DataFrame(
        {
            "session_id": [f"s{n}" for n in session],
            "client_id": [f"c{n % 3}" for n in session],
            "arrival_time": np.arange(rows) * 40.0,
            "actual_length": np.maximum(level * rng.lognormal(0.0, 0.3, rows), 1).astype(int),
            "prompt_length": rng.integers(10, 500, rows),
        }
    )


def asked(predictor, n=8):
    return [
        predictor.predict(PredictionRequest(f"x{i}", [], 0, None, {"session_id": f"s{i}"}))
        for i in range(n)
    ]


def test_it_is_the_default_and_needs_no_torch():
    assert DEFAULT == "auto"
    assert has_network("auto")
    assert not needs_torch("auto")
    assert needs_torch("lstm")


def test_with_few_rows_it_is_survival_to_the_digit():
    frame = history()
    one, other = (create_predictor(name).fit(frame) for name in ("auto", "survival"))
    assert one.model.decision.startswith("no network: ")
    assert not one.model.reads_content
    rows = [[d.distribution.row for d in asked(predictor)] for predictor in (one, other)]
    assert all(np.array_equal(a, b) for a, b in zip(*rows, strict=True))


@pytest.fixture(scope="module")
def trained():
    pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "LEAST_ROWS", 100)
        patch.setattr(auto, "LEAST_GAIN", -1.0)
        return create_predictor("auto", hidden_size=8, epochs=2).fit(history())


def test_a_network_is_pooled_and_kept_in_a_checkpoint(trained, tmp_path):
    model = trained.model
    assert model.decision.startswith("a network: ")
    assert model.reads_content
    assert model.pool.counts[-1].sum() > 50, "the replay moves the weights"
    trained.save(tmp_path / "auto")
    loaded = load_predictor(tmp_path / "auto")
    assert np.array_equal(loaded.model.pool.weights, model.pool.weights)
    rows = [[d.distribution.row for d in asked(predictor)] for predictor in (trained, loaded)]
    assert all(np.array_equal(a, b) for a, b in zip(*rows, strict=True))


def test_weights_move_in_service(trained):
    twin = trained.clone()
    before = twin.model.pool.counts.sum()
    for i in range(16):
        twin.predict(PredictionRequest(i, [], 0, None, {"client_id": "c1"}))
        twin.update(i, 50, 1.0)
    assert 0 < twin.model.pool.counts.sum() - before <= 2 * 2 * len(STARTS)


def test_a_network_that_does_not_help_is_left_out(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(auto, "LEAST_ROWS", 100)
    monkeypatch.setattr(auto, "LEAST_GAIN", 100.0)
    frame = history()
    one = create_predictor("auto", hidden_size=8, epochs=1).fit(frame)
    assert one.model.runner is None
    other = create_predictor("survival").fit(frame)
    rows = [[d.distribution.row for d in asked(predictor)] for predictor in (one, other)]
    assert all(np.array_equal(a, b) for a, b in zip(*rows, strict=True))


def test_a_state_with_weights_that_cannot_be_is_refused():
    pool = Pool((0.5, 0.5), 1)
    for change in (lambda w: w * 0.5, lambda w: w * [2.0, 0.0]):
        state = pool.state()
        state["weights"] = change(state["weights"])
        with pytest.raises(ValueError, match="weights"):
            Pool((0.5, 0.5), 1).restore(state)


def members(*scales):
    steps = np.diff(hazard.log_logistic(100.0, 0.8).astype(np.float64))
    return np.stack([scale * steps for scale in scales])


def test_equal_members_are_their_pool():
    steps = members(1.0, 1.0)
    assert np.allclose(Pool((0.3, 0.7), 1).pooled(steps, 0), steps[0])


def test_the_pool_lies_between_its_members_and_is_linear_in_the_first_band():
    steps = members(0.5, 2.0)
    pooled = Pool((0.25, 0.75), 1).pooled(steps, 0)
    assert pooled.shape == (BINS,)
    end = int(np.searchsorted(hazard.EDGES, STARTS[1]))
    survival = np.exp(-np.cumsum(steps, axis=1))[:, end - 1]
    assert np.exp(-pooled[:end].sum()) == pytest.approx(0.25 * survival[0] + 0.75 * survival[1])
    assert (np.cumsum(pooled) >= np.cumsum(steps[0]) - 1e-9).all()
    assert (np.cumsum(pooled) <= np.cumsum(steps[1]) + 1e-9).all()


def test_the_pool_follows_whoever_predicts_better_in_each_band():
    steps, pool = members(0.2, 3.0), Pool((0.5, 0.5), 1)
    for length in np.random.default_rng(0).integers(1500, 2000, 200):
        pool.learn(steps, 0, (0, int(length), False))
    assert (pool.of(0)[:4, 0] > 0.9).all()
    for length in np.random.default_rng(0).integers(1, 20, 200):
        pool.learn(steps, 0, (0, int(length), False))
    assert pool.of(0)[0, 1] > 0.9, "it returns"
    assert pool.of(0)[2, 0] > 0.9, "bands that were not reached stay"
