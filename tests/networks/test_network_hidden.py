"""A network corrects a table that has read the hidden state."""

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.core.hidden_states import COLUMNS


@pytest.fixture(scope="module")
def fitted():
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(240, 3))
    lengths = np.maximum(np.exp(5.0 + 0.8 * vectors[:, 0] + 0.3 * rng.normal(size=240)), 1)
    later = vectors + 0.1
    frame = pl.DataFrame(
        {
            "actual_length": lengths.astype(int),
            COLUMNS[0]: vectors.tolist(),
            COLUMNS[1]: [
                x.tolist() if n > 32 else None for x, n in zip(later, lengths, strict=True)
            ],
        }
    )
    return create_predictor("lstm", hidden_size=8, num_layers=1, epochs=1).fit(frame)


def asked(predictor, name, age, **features):
    return predictor.predict(PredictionRequest(name, [], age, None, features))


def test_state_moves_the_answer_at_once_and_at_any_age(fitted):
    long = asked(fitted, "long", 0, hidden_state=[1.5, 0.0, 0.0])
    short = asked(fitted, "short", 0, hidden_state=[-1.5, 0.0, 0.0])
    assert long.estimated_remaining_tokens > 3 * short.estimated_remaining_tokens
    before = asked(fitted, "a", 0)
    after = asked(fitted, "a", 1, hidden_state=[-1.5, 0.0, 0.0])
    assert after.estimated_remaining_tokens < before.estimated_remaining_tokens
    again = asked(fitted, "a", 33, hidden_state=[1.5, 0.0, 0.0])
    assert again.estimated_remaining_tokens > after.estimated_remaining_tokens


def test_each_answer_is_trained_beside_the_table_that_it_had(fitted):
    from sagellm_lifetime.models.base import Feedback
    from sagellm_lifetime.networks.model import _samples

    predictor = fitted.clone()
    model, context = predictor.model, predictor._context
    request = PredictionRequest("r", [], 0, None)
    evidence = model.observe(context.observe(request))
    model.hazards([evidence])
    request = PredictionRequest("r", [], 1, None, {"hidden_state": [1.5, 0.0, 0.0]})
    later = model.absorb(evidence, request)
    assert evidence.hidden is None
    model.hazards([later])
    without, with_state = _samples(Feedback(later, 400, censored=False))
    assert without.base is not with_state.base
    assert not np.allclose(without.base, with_state.base)


def test_saved_and_learned_online(fitted, tmp_path):
    from sagellm_lifetime import load_predictor

    fitted.save(tmp_path / "p")
    twin = load_predictor(tmp_path / "p")
    for one in (fitted, twin):
        found = asked(one, "x", 0, hidden_state=[1.0, 0.0, 0.0])
        one.update("x", 300, 1.0)
        assert found.estimated_remaining_tokens > 100
    counts = [one.model.hidden._sources for one in (fitted, twin)]
    assert next(iter(counts[0].values()))[0].count == next(iter(counts[1].values()))[0].count
