"""The recurrent and the attention weights matter: a trained network reads the sequence.

In the history below the last length of a session decides the next one, and the order of the last
two decides more; the tables know only that a session has lengths, not in which order.
"""

from functools import lru_cache

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch")

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.core.hazard import ROW
from sagellm_lifetime.networks.trainer import Trainer

pytestmark = pytest.mark.slow  # networks are trained until they see it
SHORT, LONG = 60, 600
OPTIONS = {
    "lstm": {"hidden_size": 16, "num_layers": 2},
    "transformer": {"d_model": 16, "nhead": 2, "num_layers": 2},
}


RATES = {"lstm": 1e-2, "transformer": 3e-3}


def history(sessions: int = 300, turns: int = 4) -> pl.DataFrame:
    """Lengths alternate in every session: after a short answer a long one, and the reverse."""
    rng = np.random.default_rng(0)
    rows = []
    for s in range(sessions):
        start = int(rng.integers(2))
        for t in range(turns):
            size = (SHORT, LONG)[(start + t) % 2]
            at = s * 0.1 + t * 200.0
            rows.append((f"s{s}", at, int(size * rng.uniform(0.9, 1.1)), 0.01))
    columns = ["session_id", "arrival_time", "actual_length", "actual_time"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def fitted(name: str, frame: pl.DataFrame, epochs: int):
    """Fitted with a high learning rate: a small network, a plain truth and little time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Trainer.__init__.__kwdefaults__, "learning_rate", RATES[name])
        options = {**OPTIONS[name], "online": "off", "epochs": epochs}
        return create_predictor(name, seed=1, **options).fit(frame)


@lru_cache(None)
def trained_once(name: str):
    return fitted(name, history(), {"lstm": 30, "transformer": 12}[name])


@pytest.fixture(params=OPTIONS)
def trained(request):
    return trained_once(request.param)


def answers(predictor, pasts: list[list[int]]) -> np.ndarray:
    """Medians of the next turn after these past lengths of a session."""
    found = []
    for i, past in enumerate(pasts):
        for t, length in enumerate(past):
            predictor.predict(PredictionRequest(f"{i} {t}", [], 0, None, {"session_id": f"new{i}"}))
            predictor.update(f"{i} {t}", length, 0.0)
        request = PredictionRequest(f"{i} now", [], 0, None, {"session_id": f"new{i}"})
        d = predictor.predict(request).distribution
        found.append([d.quantile(q) for q in (0.25, 0.5, 0.75)])
    return np.array(found)


PASTS = [[SHORT, LONG], [LONG, SHORT], [SHORT, LONG, SHORT], [LONG, SHORT, LONG]]


def test_the_last_length_decides(trained):
    medians = answers(trained.clone(), PASTS)[:, 1]
    ends = [past[-1] for past in PASTS]
    assert max(m for m, end in zip(medians, ends, strict=True) if end == LONG) < 250, medians
    assert min(m for m, end in zip(medians, ends, strict=True) if end == SHORT) > 300, medians


def test_order_of_past_completions_matters(trained):
    """The same two lengths in the other order; for the tables these are the same."""
    one, other = answers(trained.clone(), PASTS[:2])[:, 1]
    assert abs(one - other) > 100


def randomised(predictor, part: str, seed: int = 5):
    """A clone whose weights with ``part`` in their name are drawn anew, of the same size."""
    rng = np.random.default_rng(seed)
    weights = dict(predictor.model.weights)
    names = [name for name in weights if part in name]
    assert names, part
    for name in names:
        value = weights[name]
        weights[name] = rng.normal(0, value.std(), value.shape).astype(np.float32)
    twin = predictor.clone()
    twin.model.use(weights)
    return twin


TOGETHER = [
    ("lstm", "weight_hh"),
    ("lstm", "weight_ih"),
    ("transformer", "attention.in_proj"),
]
EACH = [
    ("lstm", "weight_hh_l0"),
    ("lstm", "weight_hh_l1"),
    ("lstm", "weight_ih_l0"),
    ("lstm", "weight_ih_l1"),
    ("transformer", "blocks.0.attention.in_proj"),
    ("transformer", "blocks.1.attention.in_proj"),
]


@pytest.mark.parametrize(("name", "part"), TOGETHER)
def test_randomising_the_weights_of_both_layers_changes_predictions(name, part):
    # The median, for one draw in ten does as well: the cell's state remembers without weights.
    before = np.log(answers(trained_once(name).clone(), PASTS))
    changes = [
        np.abs(np.log(answers(randomised(trained_once(name), part, seed), PASTS)) - before).max()
        for seed in range(5, 10)
    ]
    assert np.median(changes) > 1.0, f"{part} may be drawn anew without being noticed"


@pytest.mark.parametrize(("name", "part"), EACH)
def test_randomising_the_weights_of_one_layer_changes_the_distribution(name, part):
    """One layer is enough for the plain truth here, so the other one only has to be heard."""
    rows = []
    for predictor in (trained_once(name).clone(), randomised(trained_once(name), part)):
        answers(predictor, PASTS)
        request = PredictionRequest("last", [], 0, None, {"session_id": "new3"})
        rows.append(predictor.predict(request).distribution.row[:ROW])
    assert np.abs(rows[0] - rows[1]).max() > 1e-3, f"{part} is not heard"


def test_a_sequence_without_history_does_not_need_the_recurrence():
    """One step: nothing to carry."""
    lstm = trained_once("lstm")
    request = PredictionRequest("alone", [], 0, None)
    a, b = (
        p.predict(request).distribution.row[:ROW]
        for p in (lstm.clone(), randomised(lstm, "weight_hh"))
    )
    assert np.abs(a - b).max() < 1e-5


def test_chunks_of_the_generation_are_read():
    """What is being generated says how long it gets: token 7 short, token 9 long."""
    rng = np.random.default_rng(1)
    rows = []
    for i in range(300):
        kind = i % 2
        length = int((100, 800)[kind] * rng.uniform(0.9, 1.1))
        rows.append((length, ([7] * length, [9] * length)[kind]))
    frame = pl.DataFrame(rows, schema=["actual_length", "output_token_ids"], orient="row")
    for name in OPTIONS:
        predictor = fitted(name, frame, 8)
        found = []
        for token in (7, 9):
            predictor.predict(PredictionRequest(token, [], 0, None))
            request = PredictionRequest(token, [token] * 64, 64, None)
            found.append(predictor.predict(request).estimated_remaining_tokens)
        assert found[0] < 150, (name, found)
        assert found[1] > 400, (name, found)
