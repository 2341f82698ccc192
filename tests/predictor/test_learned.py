"""One predictor comes to know what another one does: whole, at once, and nothing else."""

import sys
from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.testing.common import outlook, outlooks, questions, teach

pytestmark = pytest.mark.usefixtures("new_weights_at_once")

SMALL = {"lstm": {"hidden_size": 16}, "transformer": {"d_model": 16, "nhead": 2}}


def taught(name, count, seed):
    if name in SMALL:
        pytest.importorskip("torch")
    predictor = create_predictor(name, **SMALL.get(name, {}))
    teach(predictor, count, seed=seed)
    return predictor


@pytest.mark.parametrize("name", ["baseline", "linear", "survival", "lstm", "transformer"])
def test_an_answer_comes_from_one_state_or_the_other(name):
    """While another thread swaps two states to and fro as fast as it can."""
    states = [taught(name, count, seed).state() for count, seed in ((40, 0), (90, 1))]
    predictor = create_predictor(name, **SMALL.get(name, {}))
    request = PredictionRequest(0, [1, 2, 3], 0, 600, {"client_id": "c1", "model": "m1"})
    wanted = []
    for state in states:
        predictor.swap(predictor.successor(state))
        wanted.append(outlook(predictor.predict(request)))
        predictor.discard(0)
    assert wanted[0] != wanted[1]
    done = Event()

    def swap():
        at = 0
        while not done.is_set():
            predictor.swap(predictor.successor(states[at % 2])).model.release()
            at += 1

    thread = Thread(target=swap)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        found = []
        while len(found) < 600 or len(set(found)) < 2:
            found.append(wanted.index(outlook(predictor.predict(request))))
            predictor.discard(0)
            assert len(found) < 50_000, "the other thread never came to swap"
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["ask", "end", "drop"])), max_size=30),
    st.integers(1, 200),
)
def test_taking_over_changes_no_count(steps, lessons):
    """Sequences asked about stay tracked, and every counter and instant part is as it was."""
    predictor = create_predictor("survival")
    for i, what in steps:
        if what == "ask":
            predictor.predict(PredictionRequest(i, [], 0, 500, {"client_id": "c"}))
        elif what == "end":
            predictor.update(i, 50 + i, 1.0)
        else:
            predictor.discard(i)
    state = _state_after(lessons)
    before = predictor.get_metrics()
    predictor.swap(predictor.successor(state))
    after = predictor.get_metrics()
    assert after.pop("lessons") == lessons
    before.pop("lessons")
    assert repr(after) == repr(before)  # NaN is not equal to itself


_states = {}


def _state_after(lessons):
    if lessons not in _states:
        predictor = create_predictor("survival")
        teach(predictor, lessons)
        _states[lessons] = predictor.state()
    return _states[lessons]


@pytest.mark.parametrize("name", ["survival", "lstm"])
def test_the_instant_parts_come_along_only_when_told(name):
    source = taught(name, 50, 0)
    state = source.state()
    twin, away = (create_predictor(name, **SMALL.get(name, {})) for _ in range(2))
    twin.restore(state)
    assert outlooks(twin, questions()) == outlooks(source, questions())
    away.swap(away.successor(state))
    of_away = away.state()
    moved = {k for k in state if k in of_away and np.array_equal(state[k], of_away[k])}
    stayed = {
        k for k in state if k.startswith(("timing", "predictor.conversations", "predictor.recent"))
    }
    empty = {"predictor.conversations.blocks", "timing_shares.refused"}
    assert moved & stayed <= empty, "empty or 0 in both"
    assert moved | stayed == set(state)
