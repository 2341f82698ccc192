"""Outlooks corrected by what came of earlier ones: ranges come true, and nothing grows for ever."""

from types import SimpleNamespace

import numpy as np
import pytest

from sagellm_lifetime.policies.events import Admitted, Arrived, Finished
from sagellm_lifetime.policies.outlook import FIGURES, Draws, Situation, look_ahead
from sagellm_lifetime.policies.outlook_calibration import (
    MEMORY,
    MOST_PENDING,
    PATIENCE_S,
    OutlookCalibration,
    Scores,
    score,
    values_at,
)
from sagellm_lifetime.policies.state import HORIZON, SurvivalForecast

NOBODY = SurvivalForecast.exact(np.zeros(0))
N = 20


def uncertain(n, median=200.0):
    middles = (np.concatenate([[0.0], HORIZON[:-1]]) + HORIZON) / 2.0
    survival = 1.0 / (1.0 + (middles / median) ** 2)
    return SurvivalForecast(np.repeat(survival[None], n, 0), np.ones(n))


def situation(n=N, waiting=0):
    return Situation(
        running=uncertain(n),
        running_tokens=np.full(n, 100),
        waiting=uncertain(waiting) if waiting else NOBODY,
        waiting_tokens=np.full(waiting, 50),
        queue_length=waiting,
        total_blocks=2000,
        free_blocks=0,
        reserve=0,
        block_size=16,
        places=n,
        prompt_tokens=100.0,
        seconds_per_step=0.1,
    )


def drawn(rng, n=N):
    share = rng.uniform(size=n)
    return 200.0 * np.sqrt(share / (1.0 - share))


def episodes(calibration, count, factor, rng):
    """Outlooks of ``N`` sequences that all end; how often the tokens were within the p90."""
    within = []
    for number in range(count):
        at = 100.0 * number
        names = [f"{number}-{i}" for i in range(N)]
        calibration.look({}, at)
        outlook = look_ahead(situation(), number, correct=calibration.correct)
        calibration.remember(at, situation(), outlook, names, [10] * N)
        left = np.maximum(drawn(rng) * factor(rng), 1.0).round()
        within.append(left.sum() <= outlook.running_tokens[1])
        ends = [
            Finished(name, int(10 + length), 0.0, "stop", at + 0.1 * length)
            for name, length in zip(names, left, strict=True)
        ]
        calibration.on_events(ends, at + 99.0)
    return within


def test_a_score_and_its_value_belong_together():
    draws = np.sort(np.random.default_rng(0).gamma(2.0, 100.0, 64))
    for value in (draws[0] / 2, draws[3], 180.0, draws[-1], 2 * draws[-1]):
        found = score(draws, float(value))
        assert values_at(draws, np.array([found]))[0] == pytest.approx(value, rel=1e-6)
    assert score(draws, -1e9) == -6.0
    assert values_at(draws, np.array([-6.0]))[0] == 0.0, "no figure is below 0"


def test_without_an_outcome_nothing_is_corrected():
    calibration = OutlookCalibration()
    raw, corrected = (
        look_ahead(situation(waiting=3), correct=how) for how in (None, calibration.correct)
    )
    assert raw.json() == corrected.json()


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5], ids="times {}".format)
def test_ranges_come_true_whatever_the_forecasts_err_by(factor):
    rng, calibration = np.random.default_rng(1), OutlookCalibration()
    within = episodes(calibration, 150, lambda _: factor, rng)
    assert np.mean(within[40:]) >= 0.82
    raw, corrected = (
        look_ahead(situation(), correct=how).running_tokens[0]
        for how in (None, calibration.correct)
    )
    # A fourth of the weight stays with the draws as they are, so it is not made good entirely.
    assert corrected == pytest.approx(raw * factor, rel=0.5)


def test_a_common_error_that_changes_from_outlook_to_outlook():
    def factor(rng):
        return float(np.exp(rng.normal(0.0, 0.8)))

    nothing = dict.fromkeys(("look", "remember", "on_events"), lambda *_: None)
    unlearned = SimpleNamespace(**nothing, correct=None)
    raw = episodes(unlearned, 150, factor, np.random.default_rng(2))
    learned = episodes(OutlookCalibration(), 150, factor, np.random.default_rng(2))
    assert np.mean(raw[40:]) < 0.82, "the draws know of no such error"
    assert 0.82 <= np.mean(learned[40:]) <= 0.98


def test_what_is_not_over_counts_by_what_there_is_of_it():
    calibration = OutlookCalibration()
    episodes(calibration, 30, lambda _: 1.0, np.random.default_rng(3))
    before = look_ahead(situation(), 7, correct=calibration.correct).running_tokens[1]
    for number in range(10):
        names = [f"long-{number}-{i}" for i in range(N)]
        outlook = look_ahead(situation(), number)
        calibration.remember(5000.0 + number, situation(), outlook, names, [10] * N)
    calibration.look({f"long-{number}-{i}": 3000 for number in range(10) for i in range(N)}, 5300.0)
    after = look_ahead(situation(), 7, correct=calibration.correct).running_tokens[1]
    assert after > 1.5 * before


def arrived(name, at):
    return Arrived(SimpleNamespace(id=name), at)


def test_the_next_to_come_tells_when_there_was_a_place():
    calibration = OutlookCalibration()
    places = calibration.scores["place_s"]
    late = []
    for number in range(30):
        at, name = 100.0 * number, f"n{number}"
        outlook = look_ahead(situation(), number)
        calibration.remember(at, situation(), outlook, [f"{number}-{i}" for i in range(N)], [1] * N)
        calibration.on_events([arrived(name, at + 1.0)], at + 1.0)
        assert places.known == min(number, MEMORY)
        late.append(3.0 * outlook.drawn.place_s[-1])
        calibration.on_events([Admitted(name, at + late[-1])], at + 50.0)
    corrected = look_ahead(situation(), 0, correct=calibration.correct)
    assert corrected.retry_after_s >= 2 * look_ahead(situation(), 0).retry_after_s


def test_one_that_gives_up_in_the_queue_tells_nothing():
    calibration = OutlookCalibration()
    outlook = look_ahead(situation())
    calibration.remember(0.0, situation(), outlook, [str(i) for i in range(N)], [1] * N)
    calibration.on_events([arrived("n", 1.0), Finished("n", 0, 2.0, "abort", 3.0)], 3.0)
    calibration.on_events([Admitted("n", 4.0)], 4.0)
    assert not len(calibration.scores["place_s"])


def test_those_of_the_queue_count_for_all_of_it():
    calibration = OutlookCalibration()
    made = situation(waiting=4)
    names = [str(i) for i in range(N + 4)]
    outlook = look_ahead(made)
    calibration.remember(0.0, made, outlook, names, [1] * N + [0] * 4)
    waiting = calibration.scores["waiting_tokens"]
    calibration.on_events([Finished(name, 100, 1.0, "stop", 9.0) for name in names[N:]], 9.0)
    assert waiting.known == 1
    assert waiting._kept[0][0] == score(outlook.drawn.waiting_tokens, 400.0)
    assert calibration.scores["running_tokens"].known == 0


def test_what_never_ends_is_not_waited_for():
    calibration = OutlookCalibration()
    for number in range(500):
        names = [f"{number}-{i}" for i in range(N)]
        at = float(number)
        calibration.remember(at, situation(), look_ahead(situation(), number), names, [1] * N)
        calibration.on_events([arrived(f"n{number}", at)], at)
        assert len(calibration._running) <= MOST_PENDING
        assert len(calibration._newcomers) <= MOST_PENDING
    calibration.on_events([], 500.0 + PATIENCE_S)
    assert not calibration._running
    assert not calibration._newcomers


def test_outlooks_of_the_same_sequences_count_once():
    calibration = OutlookCalibration()
    names = [str(i) for i in range(N)]
    for at in range(20):
        outlook = look_ahead(situation(), at)
        calibration.remember(float(at), situation(), outlook, names, [at] * N)
    assert len(calibration._running) == 1


def test_old_outcomes_go():
    scores = Scores()
    for _ in range(100):
        scores.add(3.0, 1.0)
    for _ in range(100):
        scores.add(-1.0, 0.5)
    assert scores.at(np.array([0.5]))[0] == pytest.approx(-1.0, abs=0.2)
    assert scores.known <= 50


def test_figures_that_are_certain_stay():
    calibration = OutlookCalibration()
    episodes(calibration, 10, lambda _: 3.0, np.random.default_rng(4))
    certain = Draws(**{name: np.full(64, 5.0) for name in FIGURES})
    assert all((getattr(calibration.correct(certain), name) == 5.0).all() for name in FIGURES)
