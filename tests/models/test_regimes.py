"""A workload that changes under an old name, comes back, or only seems to."""

from __future__ import annotations

import numpy as np
import pytest

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.models.regimes import KEPT, Regimes
from sagellm_lifetime.models.residual_life import ResidualLife


def lengths(rng: np.random.Generator, median: float, n: int) -> list[int]:
    return (rng.lognormal(np.log(median), 0.4, n).astype(int) + 1).tolist()


def after(predictor, seen: list[int], **said) -> np.ndarray:
    """Error of each in turn, learned after it was predicted."""
    errors = []
    for i, length in enumerate(seen):
        each = {name: value(i) if callable(value) else value for name, value in said.items()}
        found = predictor.predict(PredictionRequest("a", [], 0, None, each))
        errors.append(abs(found.estimated_remaining_tokens - length))
        predictor.update("a", length, 1.0)
    return np.array(errors)


SAID = {
    "nothing": {},
    "a client": {"client_id": "c"},
    "a model": {"model": "m"},
    "five clients": {"client_id": lambda i: f"c{i % 5}"},
    "twenty clients": {"model": "m", "client_id": lambda i: f"c{i % 20}"},
}


@pytest.mark.parametrize("who", SAID)
def test_a_workload_that_changes_is_soon_predicted_as_well_as_a_new_one(who):
    rng = np.random.default_rng(1)
    predictor, fresh = create_predictor("survival"), create_predictor("survival")
    after(predictor, lengths(rng, 60, 3000), **SAID[who])
    later = lengths(rng, 900, 500)
    late, young = after(predictor, later, **SAID[who]), after(fresh, later, **SAID[who])
    assert late[150:].mean() <= 1.1 * young[150:].mean()


@pytest.mark.parametrize("who", ["nothing", "a client", "five clients"])
def test_what_comes_back_is_known_at_once(who):
    rng = np.random.default_rng(2)
    predictor = create_predictor("survival")
    for _ in range(2):
        after(predictor, lengths(rng, 60, 500), **SAID[who])
        after(predictor, lengths(rng, 900, 500), **SAID[who])
    day = after(predictor, lengths(rng, 60, 500), **SAID[who])
    night = after(predictor, lengths(rng, 900, 500), **SAID[who])
    alone = create_predictor("survival")
    known = after(alone, lengths(rng, 60, 2000), **SAID[who])[-500:].mean()
    assert day[20:].mean() <= 1.15 * known
    assert night[20:].mean() <= 1.15 * known * 900 / 60


@pytest.mark.parametrize("seed", range(3))
def test_nothing_changes_where_nothing_changes(seed):
    rng = np.random.default_rng(seed)
    tables = ResidualLife()
    for _ in range(4000):
        client = int(rng.integers(1, 12))
        length = 3 if client == 1 else int(rng.lognormal(3.0 + 0.3 * client, 1.0)) + 1
        said = RequestFeatures(client_key=client, prompt_length=int(rng.integers(1, 999)))
        tables.learn(said, 0, length, censored=False)
    assert tables.regimes.changes == 0


def test_a_loud_client_begins_nothing_for_the_others():
    rng = np.random.default_rng(4)
    tables = ResidualLife()
    for i in range(8000):
        loud = i > 3000 and i % 11
        client = 99 if loud else int(rng.integers(1, 12))
        length = 8191 if loud and (i // 400) % 2 else int(rng.lognormal(5.0, 0.6)) + 1
        said = RequestFeatures(client_key=client, prompt_length=50)
        tables.learn(said, 0, length, censored=False)
    assert tables.regimes.changes == 0


def test_what_was_wrong_at_the_start_is_saved_and_soon_forgotten():
    regimes = Regimes()
    for _ in range(140):
        assert not regimes.watch(0, 1.0, [])
    Regimes().restore(regimes.state())
    for _ in range(60):
        assert not regimes.watch(0, 0.5, [])


def test_turns_of_a_session_are_no_change():
    tables = ResidualLife()
    for i in range(600):
        said = RequestFeatures(client_key=1, session_key=1 + i // 100)
        tables.learn(said, 1 + i // 100, 20 if i < 300 else 2000, censored=False)
    assert tables.regimes.changes == 0


def switched(regimes: Regimes, model: int = 0) -> None:
    for _ in range(200):
        regimes.watch(model, 0.5, [0.0] * len(regimes.older(model)))
    while not regimes.watch(model, 0.99, [0.0] * len(regimes.older(model))):
        pass


def test_few_generations_are_kept_and_numbers_are_never_used_again():
    regimes, numbers = Regimes(), [0]
    for _ in range(10):
        switched(regimes)
        numbers.append(regimes.present(0))
    assert numbers == list(range(11))
    assert len(regimes.older(0)) == KEPT - 1
    assert regimes.present(5) == 0, "another model"


def test_an_older_generation_is_taken_up_again():
    regimes = Regimes()
    switched(regimes)
    switched(regimes)
    assert regimes.older(0) == [0, 1]
    assert not any(regimes.watch(0, 0.5, [0.2, 0.0]) for _ in range(49)), "it has a start"
    assert not regimes.watch(0, 0.5, [-20.0, 0.0])
    assert not regimes.watch(0, 0.5, [90.0, 0.0]), "one alone proves nothing"
    assert not regimes.watch(0, 0.5, [-9.0, 0.0]), "the present one was better in between"
    assert not regimes.watch(0, 0.5, [3.0, 0.0])
    assert regimes.watch(0, 0.5, [3.0, 0.0])
    assert regimes.present(0) == 0
    assert regimes.older(0) == [1, 2]
    assert (regimes.changes, regimes.returns) == (2, 1)


def test_a_restored_one_goes_on_like_the_one_it_came_from():
    rng = np.random.default_rng(6)
    tables, twin = ResidualLife(), ResidualLife()

    def learn(n: int, *whom: ResidualLife) -> None:
        for _ in range(n):
            median = 40 if (tables.count // 300) % 2 else 700
            said = RequestFeatures(client_key=int(rng.integers(1, 4)), prompt_length=30)
            length = int(rng.lognormal(np.log(median), 0.5)) + 1
            for each in whom:
                each.learn(said, 0, length, censored=False)

    learn(700, tables)
    assert tables.regimes.changes
    twin.restore(tables.state())
    learn(700, tables, twin)
    for key, value in tables.state().items():
        assert np.array_equal(value, twin.state()[key]), key


@pytest.mark.parametrize(
    "damage",
    [
        {"kept": np.array([[-1, -1, -1, -1]])},
        {"kept": np.array([[0, -1, 1, -1]])},
        {"kept": np.array([[1, 1, -1, -1]])},
        {"kept": np.array([[0, 2, -1, -1]])},
        {"models": np.array([[0, 1, 3, 4]])},
        {"models": np.array([[0, 1, -3, 0]])},
        {"scores": np.full((1, 6), np.nan)},
        {"scores": np.full((1, 6), 40.0)},
        {"changes": np.array([-1])},
    ],
)
def test_generations_that_cannot_be_are_refused(damage):
    regimes = Regimes()
    switched(regimes)
    with pytest.raises(ValueError, match=r"kept|models|scores|changes"):
        Regimes().restore({**regimes.state(), **damage})
    with pytest.raises(ValueError, match="twice"):
        Regimes().restore(
            {k: np.repeat(v, 2, 0) if v.ndim == 2 else v for k, v in regimes.state().items()}
        )
