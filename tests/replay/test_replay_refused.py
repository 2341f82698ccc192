"""Loads and names of a replay, told apart before any engine is made: these need no vLLM."""

import pytest

from sagellm_lifetime.core.errors import HistoryError, LifetimeError, UnknownNameError
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.load import at_load
from sagellm_lifetime.replay.policies import POLICIES, policy
from sagellm_lifetime.replay.run import Run
from sagellm_lifetime.replay.trace import rate_of


def test_a_load_in_requests_a_second(trace, tight, cost):
    found = at_load("2.5", trace, tight, cost)
    assert rate_of(found.trace) == pytest.approx(2.5)
    with pytest.raises(UnknownNameError, match="load"):
        at_load("heavy", trace, tight, cost)
    with pytest.raises(LifetimeError, match="above 0"):
        at_load("0", trace, tight, cost)


def test_names_and_emptiness():
    with pytest.raises(UnknownNameError, match="policy"):
        policy("best")
    with pytest.raises(HistoryError, match="empty"):
        Run([], EngineSettings(), None, POLICIES["fcfs"])
