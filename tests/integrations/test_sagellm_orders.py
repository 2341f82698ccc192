"""Bounded overtaking, without any package."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sagellm_lifetime.integrations.sagellm.orders import overtaking_order


@given(st.integers(1, 30), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_nobody_is_overtaken_more_often_than_allowed(count, most, seed):
    rng = np.random.default_rng(seed)
    service, urgency = rng.random(count), rng.integers(0, 2, count)
    before = rng.integers(0, most + 1, count)
    order = overtaking_order(service, urgency, before, most)
    assert sorted(order) == list(range(count))
    place = {i: k for k, i in enumerate(order)}
    for i in range(count):
        over = sum(place[j] < place[i] and urgency[j] == urgency[i] for j in range(i + 1, count))
        assert before[i] + over <= most
    assert [urgency[i] for i in order] == sorted(urgency)


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_without_a_bound_it_is_a_sort(count, seed):
    service = np.random.default_rng(seed).random(count)
    nobody = np.zeros(count, dtype=int)
    assert overtaking_order(service, nobody, nobody, count) == np.argsort(service).tolist()
    assert overtaking_order(service, nobody, nobody, 0) == list(range(count))
