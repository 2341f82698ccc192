"""The learned hit density of idle memory."""

import numpy as np
import pytest

from sagellm_lifetime.policies.reuse import ReuseTable

SECONDS = np.geomspace(0.01, 200_000, 60)
NEVER = np.zeros(60, dtype=int)


def test_without_experience_it_is_lru():
    density = ReuseTable().density(SECONDS, NEVER)
    assert (np.diff(density) <= 0).all()
    assert density[0] > 1000 * density[-1] > 0


def test_what_comes_back_after_a_pause_is_kept_through_it():
    table = ReuseTable()
    for _ in range(500):
        table.ended(60.0, 0, reused=True)
        table.ended(3000.0, 0, reused=False)
    before, after = table.density(np.array([50.0, 300.0]), np.array([0, 0]))
    assert before > 20 * after


def test_often_used_memory_has_experience_of_its_own():
    table = ReuseTable()
    for _ in range(500):
        table.ended(20.0, 5, reused=True)
        table.ended(2000.0, 0, reused=False)
    rarely, often = table.density(np.array([10.0, 10.0]), np.array([0, 5]))
    assert often > 10 * rarely


def test_probabilities():
    table = ReuseTable()
    rng = np.random.default_rng(0)
    for seconds in rng.exponential(100.0, 4000):
        table.ended(min(seconds, 150.0), 0, reused=bool(seconds < 150.0))  # evicted at 150 s
    found = table.probability(np.array([0.0, 50.0]), np.array([0, 0]), 50.0)
    assert found == pytest.approx([1 - np.exp(-0.5)] * 2, abs=0.08)
    assert (table.probability(SECONDS, NEVER, 0.0) == 0.0).all()


def test_it_forgets():
    table = ReuseTable(memory=100.0)
    for _ in range(1000):
        table.ended(10.0, 0, reused=True)
    then = table.probability(np.array([0.0]), np.array([0]), 60.0)
    for _ in range(1000):
        table.ended(600.0, 0, reused=False)
    now = table.probability(np.array([0.0]), np.array([0]), 60.0)
    assert then > 0.8
    assert now < 0.2
