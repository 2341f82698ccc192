"""Who is preempted: pinned never, the spared last, no more than needed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_help import PROPERTY, known, log_logistic, predicted, reordered, running, sequences

from sagellm_lifetime.policies.eviction import VALUES, eviction_order, select_victims

VALUE_NAMES = st.sampled_from(sorted(VALUES))


def orders(sequences, forecast, name, **options) -> list[int]:
    return eviction_order(sequences, forecast, value=VALUES[name], **options).tolist()


@PROPERTY
@given(running(), VALUE_NAMES, st.sampled_from([0.0, 0.5, 2.0]))
def test_everybody_but_the_pinned_is_there_once(case, name, threshold):
    running, forecast = case
    order = orders(running, forecast, name, min_confidence=threshold)
    assert sorted(order) == np.flatnonzero(~running.pinned).tolist()


@PROPERTY
@given(running(), VALUE_NAMES, st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 2**32 - 1))
def test_the_order_of_the_input_does_not_matter(case, name, threshold, seed):
    index = np.random.default_rng(seed).permutation(len(case[0]))
    order = orders(*case, name, min_confidence=threshold)
    again = orders(*reordered(*case, index), name, min_confidence=threshold)
    assert index[again].tolist() == order


@PROPERTY
@given(running(), VALUE_NAMES, st.sampled_from([0.0, 0.5, 2.0]))
def test_the_least_urgent_class_goes_first(case, name, threshold):
    running, forecast = case
    urgency = running.urgency[orders(running, forecast, name, min_confidence=threshold)]
    assert (np.diff(urgency) <= 0).all()


@PROPERTY
@given(running(), VALUE_NAMES, st.integers(0, 4))
def test_the_often_preempted_go_last_in_their_class(case, name, most):
    running, forecast = case
    order = orders(running, forecast, name, max_preemptions=most, near_probability=2.0)
    capped = running.preemptions[order] >= most
    for urgency in range(3):
        of_class = capped[running.urgency[order] == urgency]
        assert (np.diff(of_class.astype(int)) >= 0).all()


@PROPERTY
@given(running(), VALUE_NAMES)
def test_the_nearly_finished_go_last_in_their_class(case, name):
    running, forecast = case
    order = orders(running, forecast, name, near_completion=40, max_preemptions=99)
    # 40 is a point of the horizon; the entry before it speaks of 30 .. 39.
    near = 1.0 - forecast.survival[order, 11] >= 0.5
    for urgency in range(3):
        of_class = near[running.urgency[order] == urgency]
        assert (np.diff(of_class.astype(int)) >= 0).all()


@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_the_cap_on_preemptions_holds_for_doubtful_ones_too(threshold):
    order = orders(
        sequences(3, preemptions=[0, 0, 9]),
        known([500] * 3, 0.1),
        "longest",
        min_confidence=threshold,
    )
    assert order == [1, 0, 2]


def test_a_doubtful_end_protects_nobody():
    running = sequences(3)
    assert orders(running, known([1, 500, 500], 0.1), "engine", min_confidence=0.5) == [2, 1, 0]
    assert orders(running, known([500, 500, 1], 0.1), "engine", min_confidence=0.5) == [2, 1, 0]
    assert orders(running, known([500, 500, 1], 0.9), "engine", min_confidence=0.5) == [1, 0, 2]


@PROPERTY
@given(running(), VALUE_NAMES)
def test_where_all_are_doubtful_the_last_come_goes_first(case, name):
    running, forecast = case
    order = orders(running, forecast, name, min_confidence=2.0, max_preemptions=99)
    keys = list(zip(-running.urgency[order], -running.arrival[order], strict=True))
    assert keys == sorted(keys)


def test_orders():
    running = sequences(4, tokens=[100, 100, 2000, 100], recompute=[100, 100, 2000, 10])
    forecast = known([200, 400, 300, 250])
    assert orders(running, forecast, "shortest") == [0, 3, 2, 1]
    assert orders(running, forecast, "longest") == [1, 2, 3, 0]
    assert orders(running, forecast, "engine") == [3, 2, 1, 0]
    # The last one is cached; of the others the one that holds most is also the dearest.
    assert orders(running, forecast, "cost-aware") == [3, 1, 0, 2]


def test_protection_can_be_switched_off():
    running, forecast = sequences(2), known([1, 500])
    assert orders(running, forecast, "shortest") == [1, 0]
    assert orders(running, forecast, "shortest", near_probability=2.0) == [0, 1]


def test_protection_reaches_beyond_the_horizon():
    assert orders(sequences(2), known([10, 20]), "longest", near_completion=10**6) == [1, 0]


def test_uncertainty_counts():
    # The same median, but one of them may live ten times as long.
    forecast = predicted([log_logistic(300, 0.1), log_logistic(300, 1.2)])
    assert orders(sequences(2), forecast, "cost-aware") == [1, 0]


@PROPERTY
@given(running(), VALUE_NAMES, st.integers(-3, 4000), st.integers(0, 2**32 - 1))
def test_victims_are_the_fewest_of_the_order_that_free_enough(case, name, required, seed):
    running, forecast = case
    blocks = np.random.default_rng(seed).integers(1, 300, len(running))
    order = eviction_order(running, forecast, value=VALUES[name])
    victims = select_victims(order, blocks, required)
    assert victims.tolist() == order[: len(victims)].tolist()
    freed = blocks[victims].sum()
    if required <= 0:
        assert len(victims) == 0
    elif blocks[order].sum() < required:
        assert len(victims) == len(order)
    else:
        assert freed >= required
        assert freed - blocks[victims[-1]] < required


def test_nobody_to_evict():
    order = eviction_order(sequences(2, pinned=[True, True]), known([10, 20]))
    assert len(order) == 0
    assert len(select_victims(order, np.array([5, 5]), 3)) == 0
