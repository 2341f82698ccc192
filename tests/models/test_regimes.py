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


ONE = ("changes", "returns", "trials")
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


@pytest.mark.parametrize("who", ["a client", "five clients"])
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


def evenly(regimes: Regimes, n: int, model: int = 0, gain: float = -0.2, start: int = 0) -> int:
    """Watch outcomes that fit their predictions; return the number of switches."""
    switches = 0
    for i in range(start, start + n):
        gains = [gain] * len(regimes.rivals(model))
        switches += regimes.watch(model, i % 5, i * 0.618 % 1.0, gains, has_one_client=False)
    return switches


def tried(regimes: Regimes, model: int = 0) -> None:
    """Watch outcomes in one place of the distribution until there is a candidate."""
    while not regimes.candidates(model):
        gains = [-0.2] * len(regimes.rivals(model))
        regimes.watch(model, 0, 0.9, gains, has_one_client=False)


def win(
    regimes: Regimes, model: int = 0, clients: int = 5, *, has_one_client: bool = False
) -> bool:
    """Return True if the candidate wins in fifty completions that it predicts better."""
    return any(
        regimes.watch(
            model,
            i % clients,
            0.9,
            [*[-0.2] * len(regimes.older(model)), 1.0],
            has_one_client=has_one_client,
        )
        for i in range(50)
        if regimes.candidates(model)
    )


def switched(regimes: Regimes, model: int = 0) -> None:
    evenly(regimes, 200, model)
    tried(regimes, model)
    assert win(regimes, model)


def test_no_trial_begins_before_a_generation_is_settled():
    regimes = Regimes()
    for i in range(140):
        assert not regimes.watch(0, 0, 0.5 if i < 70 else 0.9, [], has_one_client=True)
    assert regimes.trials == 0


def test_a_candidate_wins_by_what_it_predicts_better_and_not_by_one_client():
    regimes = Regimes()
    evenly(regimes, 200)
    tried(regimes)
    assert not win(regimes, clients=1), "one client proves nothing about the others"
    assert win(regimes, clients=5)
    # The candidate has learned long before it won, so a fresh one is tried next.
    assert (regimes.present(0), regimes.older(0), regimes.candidates(0)) == (1, [0], [2])
    evenly(regimes, 200)
    tried(regimes)
    assert win(regimes, clients=1, has_one_client=True), "there are no others"


def test_a_candidate_that_stays_behind_is_dropped_and_the_next_one_needs_a_clearer_sign():
    regimes, needed = Regimes(), []
    evenly(regimes, 2000)
    for number in (1, 2):
        before = regimes.trials
        for i in range(400):
            regimes.watch(0, i % 5, 0.9, [-0.5] * len(regimes.rivals(0)), has_one_client=False)
            if regimes.trials > before:
                needed.append(i)
                break
        assert regimes.candidates(0) == [number]
        evenly(regimes, 80, gain=-0.5)
        assert regimes.candidates(0) == []
        assert regimes.dropped[-1] == (0, number)
        evenly(regimes, 600)
    assert needed[1] > needed[0]
    assert regimes.changes == 0


def test_after_a_candidate_that_learned_before_the_change_a_fresh_one_is_tried():
    regimes = Regimes()
    evenly(regimes, 200)
    tried(regimes)
    evenly(regimes, 30, gain=-0.1)
    first = regimes.candidates(0)
    evenly(regimes, 4, gain=1.0)
    assert regimes.candidates(0) == [*first, first[0] + 1]
    evenly(regimes, 8, gain=-2.0)
    assert regimes.candidates(0) == first, "what was gained is lost again"
    assert regimes.dropped[-1] == (0, first[0] + 1)
    assert win(regimes, clients=5)
    assert regimes.present(0) == first[0]
    assert regimes.candidates(0) == [first[0] + 2]
    assert win(regimes, clients=5)
    assert regimes.older(0) == [0, first[0]]


@pytest.mark.parametrize("before", [20, 120])
def test_a_trial_that_runs_when_the_workload_changes_does_not_slow_the_change(before):
    rng = np.random.default_rng(1)
    predictor, fresh = create_predictor("survival"), create_predictor("survival")
    who = SAID["five clients"]
    after(predictor, lengths(rng, 60, 600), **who)
    regimes = predictor.model.tables.regimes
    while not regimes.trials:  # a burst of answers of the same length begins a trial
        after(predictor, [60], **who)
    after(predictor, lengths(rng, 60, before), **who)
    assert regimes.candidates(0)
    later = lengths(rng, 900, 200)
    late, young = after(predictor, later, **who), after(fresh, later, **who)
    assert late[50:].mean() <= 1.05 * young[50:].mean()


def test_candidates_leave_nothing_behind():
    rng = np.random.default_rng(11)
    tables = ResidualLife()

    def some(n: int, spread: float) -> None:
        for _ in range(n):
            said = RequestFeatures(client_key=int(rng.integers(1, 9)), prompt_length=7)
            length = int(rng.lognormal(5.0, spread)) + 1
            tables.learn(said, 0, length, censored=False)

    some(600, 0.5)
    nodes = len(tables.state()["keys"])
    while not tables.regimes.trials:
        some(1, 0.25)
    some(5, 0.5)
    assert len(tables.state()["keys"]) > nodes
    assert len(tables.state()["later"]) == 1
    while tables.regimes.candidates(0):
        some(1, 0.5)
    assert tables.regimes.changes == 0
    assert len(tables.state()["keys"]) == nodes
    assert not len(tables.state()["later"]) + len(tables.state()["tried"])


def test_turns_of_a_session_are_no_change():
    tables = ResidualLife()
    for i in range(600):
        said = RequestFeatures(client_key=1, session_key=1 + i // 100)
        tables.learn(said, 1 + i // 100, 20 if i < 300 else 2000, censored=False)
    assert tables.regimes.changes == 0


def test_a_session_tells_by_its_first_turn():
    tables, rng = ResidualLife(), np.random.default_rng(12)
    for i in range(900):
        said = RequestFeatures(session_key=1 + i // 2)
        length = int(rng.lognormal(np.log(40 if i < 400 else 900), 0.4)) + 1
        tables.learn(said, 1 + i // 2, length, censored=False)
    assert tables.regimes.changes == 1


def test_a_stranger_who_comes_alone_begins_nothing_for_those_who_are_idle():
    rng = np.random.default_rng(13)
    for named in ({"client_key": 99}, {}):
        tables = ResidualLife()
        for i in range(1600):
            said = RequestFeatures(client_key=int(rng.integers(1, 9)))
            if i >= 800:
                said = RequestFeatures(**named)
            length = int(rng.lognormal(4.0 if i < 800 else 8.0, 0.4)) + 1
            tables.learn(said, 0, length, censored=False)
        assert tables.regimes.changes == 0


def test_few_generations_are_kept_and_numbers_are_never_used_again():
    regimes, numbers = Regimes(), [0]
    for _ in range(10):
        switched(regimes)
        numbers.append(regimes.present(0))
    assert numbers == sorted(set(numbers))
    assert len(regimes.older(0)) == KEPT - 1
    assert regimes.dropped == [(0, number) for number in numbers[1:-KEPT]], "0 is never dropped"
    assert regimes.present(5) == 0, "another model"


def test_an_older_generation_is_taken_up_again():
    regimes = Regimes()
    switched(regimes)
    switched(regimes)

    def watch(*gains: float) -> bool:
        return regimes.watch(0, 0, 0.5, list(gains), has_one_client=False)

    oldest, older = regimes.older(0)
    assert not any(watch(0.2, 0.0) for _ in range(148)), "it has a start"
    regimes = Regimes()
    switched(regimes)
    switched(regimes)
    evenly(regimes, 160)
    assert not watch(90.0, 0.0), "one alone proves nothing"
    assert not watch(-9.0, 0.0), "the present one was better in between"
    assert not any(watch(3.0, 0.0) for _ in range(4))
    assert watch(3.0, 0.0)
    assert regimes.present(0) == oldest
    assert regimes.older(0)[0] == older
    assert (regimes.changes, regimes.returns) == (2, 1)


def test_metrics_name_the_models():
    predictor, rng = create_predictor("survival"), np.random.default_rng(14)
    assert predictor.get_metrics()["drift"]["models"] == {}
    after(predictor, lengths(rng, 60, 400), model="a")
    after(predictor, lengths(rng, 900, 200), model="a")
    after(predictor, lengths(rng, 60, 20))
    found = predictor.drift()
    assert found == predictor.get_metrics()["drift"]
    assert (found["changes"] >= 1, found["returns"]) == (True, 0)
    assert found["models"].keys() == {"a", ""}
    assert found["models"]["a"]["generation"] >= 1
    assert found["models"]["a"]["generations"] == 1 + found["changes"]
    assert 0 < found["models"]["a"]["completions"] < 200
    assert found["models"][""]["generation"] == 0
    assert create_predictor("baseline").drift() == {}


def test_the_calibration_forgets_most_of_what_was_before_a_change():
    predictor, rng = create_predictor("survival"), np.random.default_rng(15)
    after(predictor, lengths(rng, 60, 800))
    before = predictor.calibration.common.state()["counts"].sum()
    while not predictor.model.changes:
        after(predictor, lengths(rng, 900, 1))
    assert predictor.calibration.common.state()["counts"].sum() < 0.7 * before


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
        {"models": np.array([[0, 1, 3, 4, 0]])},
        {"models": np.array([[0, 1, -3, 0, 0]])},
        {"models": np.array([[0, 1, 3, 3, 9]])},
        {"trial": np.array([[1, 3, 0]])},
        {"trial": np.array([[2, 3, 2]])},
        {"better": np.full((1, KEPT), np.nan)},
        {"better": np.full((1, KEPT), 40.0)},
        {"recent": np.zeros((1, 8), dtype=np.int64)},
        {"usual": np.full((1, 8), 10**6)},
        {"gains": np.full((1, 2), -1.0)},
        {"support": np.array([[3, 1]]), "support_nats": np.array([1.0])},
        {"support": np.array([[0, 1]]), "support_nats": np.array([1.0])},
        {"changes": np.array([-1])},
    ],
)
def test_generations_that_cannot_be_are_refused(damage):
    regimes = Regimes()
    switched(regimes)
    with pytest.raises(
        ValueError, match=r"kept|models|trial|better|recent|usual|gains|support|changes"
    ):
        Regimes().restore({**regimes.state(), **damage})
    with pytest.raises(ValueError, match="twice"):
        Regimes().restore(
            {
                k: np.repeat(v, 1 + (len(v) == 1 and k not in ONE), 0)
                for k, v in regimes.state().items()
            }
        )
