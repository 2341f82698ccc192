"""First predictions beside what became of them: positions in distributions, and hits."""

import math
import random

import pytest

from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.core.hazard import log_logistic
from sagellm_lifetime.vllm.live_view import clean
from sagellm_lifetime.vllm.recent_predictions import KEPT, SHOWN, FirstPrediction, RecentPredictions

MEDIAN, LOG_SD = 200.0, 0.5
ROW = log_logistic(median=MEDIAN, log_sd=LOG_SD)


def drawn(random_number):
    """Return a length of the same log-logistic distribution."""
    scale = LOG_SD * math.sqrt(3.0) / math.pi
    odds = random_number / (1.0 - random_number)
    return max(1, math.ceil(MEDIAN * math.exp(scale * math.log(odds))))


@pytest.mark.parametrize("cap", [None, 250], ids=["without a cap", "with a cap"])
@pytest.mark.parametrize("age", [0, 120])
def test_positions_are_even_where_predictions_are_right(cap, age):
    draw, recent, seen = random.Random(3), RecentPredictions(), 0
    distribution = LengthDistribution(ROW, age, 0, cap)
    first = FirstPrediction(age + distribution.median(), 0.2, distribution)
    while seen < KEPT:
        length = drawn(draw.random())
        if length > age and (cap is None or length < cap):  # others are cut, and not shown
            recent.add(first, length)
            seen += 1
    counts = recent.snapshot()["positions"]
    assert sum(counts) == KEPT
    expected = KEPT / len(counts)
    assert sum((n - expected) ** 2 / expected for n in counts) < 27.9  # chi-square, p = 0.001


@pytest.mark.parametrize(("factor", "tenth"), [(0.3, 0), (3.0, 9)])
def test_positions_show_a_bias(factor, tenth):
    recent, first = RecentPredictions(), FirstPrediction(200, 0.2, LengthDistribution(ROW))
    for _ in range(50):
        recent.add(first, round(200 * factor))
    assert recent.snapshot()["positions"][tenth] == 50


def test_the_newest_are_kept_and_shown():
    recent = RecentPredictions()
    for length in range(1, 2 * KEPT + 1):
        recent.add(FirstPrediction(100, 1.0), length)
        if length % 100 == 0:
            recent.snapshot()
    found = recent.snapshot()
    assert found["ended"] == [[100, n] for n in range(2 * KEPT - SHOWN + 1, 2 * KEPT + 1)]
    assert found["positions"] == [0] * 10  # no distributions
    assert found["by_confidence"][4] == [KEPT, float(KEPT), 0]


def test_hits_are_counted_by_confidence():
    recent = RecentPredictions()
    for confidence, length in ((0.1, 100), (0.1, 200), (0.55, 109), (1.0, 91)):
        recent.add(FirstPrediction(100, confidence), length)
    assert recent.snapshot()["by_confidence"] == [
        [2, 0.2, 1], [0, 0.0, 0], [1, 0.55, 1], [0, 0.0, 0], [1, 1.0, 1],
    ]  # fmt: skip


def test_a_quantile_is_of_what_may_still_come():
    first = FirstPrediction(200, 0.3, LengthDistribution(ROW, max_length=400))
    assert first.quantile(0.5, 0) == 200
    assert first.quantile(0.5, 399) == first.quantile(0.95, 399) == 400
    assert FirstPrediction(200, 0.3).quantile(0.5, 10) is None


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a" * 100, "a" * 64),
        ("\ud800", "\ufffd"),
        ("a\x00b", "a\ufffdb"),
        ("é 你", "é 你"),
        (7, "7"),
    ],
)
def test_names_can_be_printed_and_sent(name, shown):
    assert clean(name) == shown
    clean(name).encode()
