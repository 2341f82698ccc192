"""The outlook: sums, peaks, places and ends that can be worked out by hand, and its ranges."""

from dataclasses import replace

import numpy as np
import pytest

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.policies.outlook import (
    DRAWS,
    LEVELS,
    Situation,
    look_ahead,
    merged,
    probability,
    remaining,
)
from sagellm_lifetime.policies.state import HORIZON, SurvivalForecast

NOBODY = SurvivalForecast.exact(np.zeros(0))


def exact(*lengths):
    return SurvivalForecast.exact(np.array(lengths, dtype=float))


def uncertain(n, median=200.0, power=2.0):
    """Log-logistic lengths, the survival of a gap taken in its middle."""
    middles = (np.concatenate([[0.0], HORIZON[:-1]]) + HORIZON) / 2.0
    survival = 1.0 / (1.0 + (middles / median) ** power)
    return SurvivalForecast(np.repeat(survival[None], n, 0), np.ones(n))


def situation(running=NOBODY, tokens=(), waiting=NOBODY, prompts=(), **changes):
    made = Situation(
        running,
        np.array(tokens, dtype=int),
        waiting,
        np.array(prompts, dtype=int),
        queue_length=len(prompts),
        total_blocks=100,
        free_blocks=100 - sum(-(-t // 16) for t in tokens),
        reserve=0,
        block_size=16,
        places=4,
        prompt_tokens=16.0,
        seconds_per_step=0.1,
    )
    return replace(made, **changes)


def test_nothing_runs():
    outlook = look_ahead(situation())
    assert outlook.json() == {
        "running_tokens": {"expected": 0.0, "p90": 0.0},
        "waiting_tokens": {"expected": 0.0, "p90": 0.0},
        "peak_blocks": {"expected": 0.0, "p90": 0.0},
        "done_s": {"p50": 0.0, "p95": 0.0},
        "place_within": {str(s): 1.0 for s in (0, 1, 2, 5, 10, 20, 30, 60)},
        "retry_after_s": 0,
    }


def test_known_lengths():
    outlook = look_ahead(situation(exact(100, 40), [32, 160]))
    assert outlook.running_tokens == (pytest.approx(140, rel=0.02), pytest.approx(140, rel=0.02))
    assert outlook.done_s == (pytest.approx(10, rel=0.02), pytest.approx(10, rel=0.02))
    # At the end of the short one: 32 + 160 + 2 x 40 tokens, and half a block each on average.
    assert outlook.peak_blocks[0] == pytest.approx((192 + 80) / 16 + 1, rel=0.03)
    assert outlook.place_within(0.0) == 1.0
    assert outlook.ends_within(1, 5.0) == 1.0
    assert outlook.ends_within(0, 9.0) == 0.0


def test_without_a_place_a_newcomer_waits_for_an_end():
    outlook = look_ahead(situation(exact(100, 40, 70, 90), [16] * 4))
    assert outlook.place_within(3.5) == 0.0
    assert outlook.place_within(4.5) == 1.0
    assert outlook.retry_after_s in (4, 5)


def test_those_in_the_queue_go_first():
    full = situation(exact(100, 40, 70, 90), [16] * 4, exact(10, 300), [16, 16])
    outlook = look_ahead(full)
    # Ends at 4.0 (then the first of the queue, to 5.0, then the second), and at 7.0.
    assert outlook.place_s[0] == pytest.approx(7.0, rel=0.05)
    assert outlook.ends_s[4, 3] == pytest.approx(5.0, rel=0.05)
    assert outlook.ends_s[5, 3] == pytest.approx(35.0, rel=0.05)
    assert outlook.waiting_tokens[0] == pytest.approx(310, rel=0.05)


def test_without_memory_a_newcomer_waits_for_blocks():
    short = situation(exact(100, 40), [800, 720], prompt_tokens=160.0)
    assert short.free_blocks == 5
    outlook = look_ahead(short)
    assert outlook.place_s[0] == pytest.approx(4.0, rel=0.05)
    reserved = replace(situation(exact(100, 40), [800, 480]), reserve=30)
    assert look_ahead(reserved).place_s[0] == pytest.approx(4.0, rel=0.05)
    assert look_ahead(replace(reserved, reserve=0)).place_s[0] == 0.0


def test_blocks_that_several_hold_are_not_freed_twice():
    # 90 of 100 blocks held together by four that would hold 200 apart.
    shared = situation(exact(40, 400, 400, 400), [800] * 4, prompt_tokens=480.0,
                       free_blocks=10, places=8)  # fmt: skip
    apart = replace(shared, total_blocks=210)
    assert look_ahead(apart).place_s[0] == pytest.approx(4.0, rel=0.05)
    assert look_ahead(shared).place_s[0] > 30.0


def test_what_waits_behind_those_followed_takes_as_long():
    full = situation(exact(100, 100, 100, 100), [16] * 4, exact(*[50] * 8), [16] * 8)
    short = look_ahead(full)
    long = look_ahead(replace(full, queue_length=80))
    assert long.place_s[0] == pytest.approx(10.0 * short.place_s[0])
    assert long.waiting_tokens[0] == pytest.approx(10.0 * short.waiting_tokens[0])


def test_draws_follow_the_forecast():
    rng = np.random.default_rng(0)
    forecast = uncertain(2000)
    drawn = remaining(forecast, np.zeros(DRAWS), 0.0, rng)
    assert drawn.shape == (2000, DRAWS)
    for t in (50, 100, 200, 400, 1600):
        assert (drawn > t).mean() == pytest.approx(1 / (1 + (t / 200) ** 2), abs=0.03)


def test_ranges_do_not_vanish_in_a_sum():
    many = situation(uncertain(250), [16] * 250, total_blocks=9999, free_blocks=9000, places=300)
    wide, narrow = look_ahead(many), look_ahead(many, shared=0.0)
    spread = [(high - mean) / mean for mean, high in (wide.running_tokens, narrow.running_tokens)]
    assert spread[0] > 0.2
    assert spread[1] < 0.12


def test_the_same_situation_has_the_same_outlook():
    many = situation(uncertain(4), [16] * 4, uncertain(3), [32] * 3)
    first, second = look_ahead(many), look_ahead(many)
    assert first.json() == second.json()
    assert np.array_equal(first.ends_s, second.ends_s)
    assert first.ends_s.shape == (7, len(LEVELS))
    assert (np.diff(first.ends_s, axis=1) >= 0).all()
    within = [first.place_within(s) for s in range(60)]
    assert within == sorted(within)
    retry = first.retry_after_s
    assert first.place_within(retry) >= 0.9 > first.place_within(max(retry - 1, 0))


def test_probabilities_between_and_beyond_the_quantiles():
    ends = [2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0]
    assert [probability(ends, q) for q in ends] == list(LEVELS)
    assert probability(ends, 0.0) == 0.0
    assert probability(ends, 35.0) == pytest.approx(0.975)
    assert probability(ends, 1e9) == 1.0
    assert probability([4.0] * 7, 3.9) == 0.0
    assert probability([4.0] * 7, 4.0) == 1.0


def test_engine_cores_together():
    one, two = (look_ahead(situation(exact(*ends), [16] * 4)).json()
                for ends in ((100, 40, 70, 90), (20, 40, 60, 80)))  # fmt: skip
    both = merged([one, two])
    total = one["running_tokens"]["expected"] + two["running_tokens"]["expected"]
    assert both["running_tokens"]["expected"] == pytest.approx(total)
    assert both["done_s"] == one["done_s"]
    assert both["retry_after_s"] == two["retry_after_s"]
    assert both["place_within"]["5"] == 1.0
    assert merged([one]) == one


def test_a_situation_without_a_forecast_for_each():
    with pytest.raises(RequestError, match="one forecast for each"):
        situation(exact(1.0), [16, 16])
    with pytest.raises(RequestError, match="one forecast for each"):
        situation(waiting=exact(1.0), prompts=[16], queue_length=0)
