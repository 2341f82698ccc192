"""The predictor of ``sagellm_kv_cache``: units, scores and confidences."""

from __future__ import annotations

import numpy as np
import pytest
from sagellm_help import Tells, running

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.integrations.sagellm import RunningSequences


@pytest.fixture
def module(kv_cache):
    from sagellm_lifetime.integrations.sagellm import kv_predictor

    return kv_predictor


def handle(kv_cache, name, tokens=100, at=0.0):
    made = kv_cache.KVHandle.create(num_tokens=tokens, metadata={"request_id": name})
    made.last_access = made.created_at = at
    return made


def test_the_package_loses_the_request_id(kv_cache):
    """A finding: when this fails, ``features_of`` is needed no more."""
    from sagellm_kv_cache.predictor import PredictorFeatures

    made = kv_cache.KVPool(1000).alloc(10, "fp16", "contiguous", "cpu", {"request_id": "r"})
    assert PredictorFeatures.from_handle(made).request_id == "unknown"


def test_it_is_a_predictor_of_the_package(kv_cache, module):
    predictor = module.KVLifetimePredictor()
    assert isinstance(predictor, kv_cache.LifetimePredictor)
    assert predictor.get_model_version().startswith("isagellm-lifetime-")


@pytest.mark.parametrize(("unit", "life"), [("seconds", 8.0), ("tokens", 400.0)])
def test_units(kv_cache, module, unit, life):
    predictor = module.KVLifetimePredictor(running({"a": 500}, a=100), unit=module.Unit(unit))
    features = module.features_of([handle(kv_cache, "a"), handle(kv_cache, "idle")])
    first, second = predictor.predict_batch(features)
    assert (first.remaining_lifetime, first.reuse_prob, first.confidence) == (life, 1.0, 0.9)
    assert second.remaining_lifetime == 0.0
    assert first.features_summary["unit"] == unit
    assert [first.handle_id, second.handle_id] == [feature.handle_id for feature in features]


@pytest.mark.parametrize("order", ["cost-aware", "longest", "shortest"])
def test_the_score_is_the_order_of_the_eviction(kv_cache, module, order):
    from sagellm_lifetime.integrations.sagellm.eviction import LifetimeAwareEviction

    rng = np.random.default_rng(0)
    totals = {f"r{i}": int(n) for i, n in enumerate(rng.permutation(np.arange(50, 4000, 90))[:20])}
    strategy = LifetimeAwareEviction(running(totals), order=order, clock=lambda: 1000.0)
    handles = [handle(kv_cache, name, at=float(rng.uniform(0, 1000)))
               for name in [*totals, *(f"idle-{i}" for i in range(10))]]  # fmt: skip
    predictor = module.KVLifetimePredictor(scores=strategy.scores)
    features = [f.model_copy(update={"extracted_at": 1000.0}) for f in module.features_of(handles)]
    scores = [p.evict_score for p in predictor.predict_batch(features)]
    assert min(scores) >= 0.0
    assert max(scores) <= 1.0
    victims = strategy.select_victim(handles, sum(h.num_tokens for h in handles))
    by_score = sorted(range(len(handles)), key=lambda i: -scores[i])
    assert [v.handle_id for v in victims] == [handles[i].handle_id for i in by_score]


def test_a_pinned_handle_must_not_go(kv_cache, module):
    pinned = handle(kv_cache, "a")
    pinned.pin()
    (prediction,) = module.KVLifetimePredictor().predict_batch(module.features_of([pinned]))
    assert prediction.evict_score == -1.0
    shared = handle(kv_cache, "shared")
    shared.ref_count = 2
    (prediction,) = module.KVLifetimePredictor().predict_batch(module.features_of([shared]))
    assert prediction.evict_score == -1.0


def test_the_confidence_is_the_predictors(kv_cache, module):
    predictor = create_predictor("survival")
    rng = np.random.default_rng(1)
    for i in range(400):
        predictor.predict(PredictionRequest(i, [], 0, None))
        predictor.update(i, int(rng.integers(95, 106)), 2.0)
    sequences = RunningSequences(predictor)
    expected = sequences.arrived(PredictionRequest("a", [], 0, None))
    adapter = module.KVLifetimePredictor(sequences)
    (prediction,) = adapter.predict_batch(module.features_of([handle(kv_cache, "a")]))
    assert prediction.confidence == pytest.approx(expected.confidence)
    assert prediction.confidence > 0.6
    assert prediction.remaining_lifetime == pytest.approx(2.0, rel=0.15)


def test_an_idle_handles_confidence_is_that_of_its_reuse(kv_cache, module):
    predictor = module.KVLifetimePredictor(horizon_s=60.0)
    for _ in range(300):
        predictor.scores.reuse.ended(5.0, 0, reused=True)
    features = module.features_of([handle(kv_cache, "x", at=0.0)])
    features = [features[0].model_copy(update={"extracted_at": 1.0})]
    (prediction,) = predictor.predict_batch(features)
    assert prediction.reuse_prob > 0.9
    assert prediction.confidence == prediction.reuse_prob


def test_update_teaches_tokens_and_seconds(kv_cache, module):
    sequences = running({"a": 500, "b": 500, "c": 500}, a=120)
    features = {name: module.features_of([handle(kv_cache, name)])[0] for name in "abc"}
    module.KVLifetimePredictor(sequences).update(features["a"], 2.5)
    assert sequences.predictor.learned[-1] == ("a", 120, 2.5, "stop")
    by_tokens = module.KVLifetimePredictor(sequences, unit=module.Unit.TOKENS)
    by_tokens.update(features["b"], 300)
    assert sequences.predictor.learned[-1][:2] == ("b", 300)
    with pytest.raises(ValueError, match="never reported a token"):
        module.KVLifetimePredictor(sequences).update(features["c"], 2.5)
    with pytest.raises(ValueError, match="positive and finite"):
        by_tokens.update(features["c"], float("nan"))


def test_failures_are_errors_as_the_package_asks(kv_cache, module):
    sequences = RunningSequences(Tells({"a": 10}))
    sequences.arrived(PredictionRequest("a", [], 0, None))
    sequences.predictor.totals = {}
    predictor = module.KVLifetimePredictor(sequences)
    with pytest.raises(RuntimeError, match="no prediction"):
        predictor.predict_batch(module.features_of([handle(kv_cache, "a")]))
    with pytest.raises(ValueError, match="must not be empty"):
        predictor.predict_batch([])
