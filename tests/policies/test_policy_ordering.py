"""The line: who may overtake whom, and what follows for the waiting of each."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_help import (
    PROPERTY,
    any_forecast,
    any_sequences,
    exponential,
    known,
    log_logistic,
    predicted,
    sequences,
)

from sagellm_lifetime.policies.ordering import SERVICES, by_gittins, by_length, in_line, places

BOUNDED = sorted(set(SERVICES) - {"longest"})
"""Orders whose service is never negative, which the bound needs."""


def line(arrivals, services, *, patience, urgency=None) -> tuple[np.ndarray, np.ndarray]:
    """Places of known lengths, and the order of all of them."""
    waiting = sequences(
        len(arrivals), arrival=arrivals, urgency=urgency or np.zeros(len(arrivals), dtype=int)
    )
    spots = places(waiting, known(services), service=by_length, patience=patience)
    return spots, in_line(waiting, spots)


class Server:
    """One server that finishes what it starts; at each start it takes the first in line.

    Args:
        arrivals: seconds, shape ``(N,)``.
        work: seconds each really takes.
        services: tokens each is expected to take: right or wrong.
        patience: seconds per token.
        slack: bound in terms of the work that waits, none by default.
        urgency: priority classes.
    """

    def __init__(self, arrivals, work, services, patience, *, slack=np.inf, urgency=None) -> None:
        count = len(arrivals)
        self.arrivals, self.work = np.array(arrivals, dtype=float), np.array(work, dtype=float)
        self.urgency = np.zeros(count, dtype=int) if urgency is None else np.array(urgency)
        self.starts = np.full(count, np.nan)
        self.services = np.array(services, dtype=float)
        self.patience, self.slack = patience, slack
        self.horizons: list[float] = []
        """At every start."""
        self.order: list[int] = []
        self._run()

    def places(self, horizon: float) -> np.ndarray:
        """As a scheduler has them that lets ``horizon`` pass."""
        return places(
            sequences(len(self.arrivals), arrival=self.arrivals),
            known(self.services),
            service=by_length,
            patience=self.patience,
            horizon=horizon,
        )

    def _run(self) -> None:
        count = len(self.arrivals)
        everyone = sequences(count, arrival=self.arrivals, urgency=self.urgency)
        waiting = np.ones(count, dtype=bool)
        now = 0.0
        while waiting.any():
            now = max(now, self.arrivals[waiting].min())
            here = waiting & (self.arrivals <= now)
            # What waits now takes so long: the horizon moves with it.
            backlog = float(self.work[here].sum())
            self.horizons.append(self.slack * backlog if self.slack < np.inf else np.inf)
            order = in_line(everyone, self.places(self.horizons[-1]))
            first = int(order[here[order]][0])
            waiting[first] = False
            self.starts[first] = now
            self.order.append(first)
            now += self.work[first]

    def allowed(self, i: int) -> float:
        """Seconds that ``i`` could be overtaken for, at the most, while it waited."""
        until = self.order.index(i) + 1
        since = int((self.starts[self.order] < self.arrivals[i]).sum())
        horizon = max(self.horizons[since:until])
        return float(min(self.patience * self.services[i], horizon))

    def overtakings(self):
        """Pairs ``(i, j)``: ``j`` started before ``i``, and arrived after it."""
        for position, i in enumerate(self.order):
            for j in self.order[:position]:
                if self.arrivals[j] > self.arrivals[i]:
                    yield i, j

    def work_left(self, now: float, without: int) -> float:
        """Work of those that arrived by ``now`` which is not done by then, ``without`` one of them.

        The same in every order that never idles while somebody waits.
        """
        free = 0.0
        for i in np.argsort(self.arrivals, kind="stable"):
            if self.arrivals[i] <= now:
                free = max(free, self.arrivals[i]) + self.work[i]
        return max(free - now - self.work[without], 0.0)


@st.composite
def crowds(draw):
    """Arrivals, work, expected tokens: in bursts and trickles, estimates right and wrong."""
    count = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrivals = np.cumsum(rng.exponential(draw(st.sampled_from([0.1, 1.0, 10.0])), count))
    arrivals -= arrivals * (rng.random(count) < 0.3)  # some are there from the start
    services = np.ceil(np.exp(rng.uniform(0, 7, count)))
    work = services * 0.02 * np.exp(rng.normal(0, draw(st.sampled_from([0.0, 1.0])), count))
    return arrivals, work, services


SLACKS = st.sampled_from([np.inf, 0.0, 0.5, 1.0, 4.0])


def besieged(*, patience: float, shorts: int = 400) -> Server:
    """The adversary: one long request, and short ones faster than they can be served, for ever."""
    arrivals = np.concatenate([[0.0, 0.0], np.arange(1, shorts) * 0.5])
    services = np.concatenate([[50.0, 1000.0], np.full(shorts - 1, 50.0)])
    return Server(arrivals, services * 0.02, services, patience)


@PROPERTY
@given(crowds(), st.sampled_from([0.0, 0.02, 0.5, 5.0, 1e6]), SLACKS)
def test_nobody_is_overtaken_by_one_that_arrives_later_than_it_allows(crowd, patience, slack):
    """If ``j`` arrives after ``i`` and starts before it, it arrives within ``allowed`` of ``i``.

    ``allowed = min(patience · service, slack · backlog)`` of ``i`` at the time ``j`` starts, and
    the less the more ``j`` itself allows.
    """
    served = Server(*crowd, patience, slack=slack)
    for i, j in served.overtakings():
        late = served.arrivals[j] - served.arrivals[i]
        horizon = served.horizons[served.order.index(j)]
        allowed = np.minimum(patience * served.services, horizon)
        assert late <= allowed[i] - allowed[j] + 1e-6


@PROPERTY
@given(crowds(), st.sampled_from([0.0, 0.02, 0.5, 5.0, 1e6]), SLACKS)
def test_the_bound_on_waiting(crowd, patience, slack):
    """A sequence waits at most ``allowed + V``, where ``allowed = min(patience · s, slack · B)``,
    ``s`` is its own expected service, ``B`` the longest backlog while it waits, and ``V`` the work
    that is left, ``allowed`` after it arrived, of all that arrived until then.

    ``V`` is what a newcomer of that moment would wait for if all were served as they come. So a
    sequence starts no later than if it had come ``allowed`` later to a queue without predictions,
    whatever comes after it and however wrong the predictions of the others are. (One server that
    never idles and never preempts, one priority class.)
    """
    served = Server(*crowd, patience, slack=slack)
    for i in range(len(served.arrivals)):
        wait = served.starts[i] - served.arrivals[i]
        allowed = served.allowed(i)
        until = served.arrivals[i] + allowed
        assert wait <= allowed + served.work_left(until, i) + 1e-6


@PROPERTY
@given(crowds(), st.sampled_from([0.02, 5.0, 1e6]))
def test_without_slack_it_is_first_come_first_served(crowd, patience):
    served = Server(*crowd, patience, slack=0.0)
    assert (np.diff(served.arrivals[served.order]) >= 0).all()


def test_the_adversary_is_held_off():
    # The long one needs 20 s; a short one of 1 s comes every 0.5 s, so the queue only grows.
    without, with_ageing = besieged(patience=1e9), besieged(patience=0.1)
    assert without.order[-1] == 1
    assert with_ageing.starts[1] <= 0.1 * 1000 + 200
    overtakers = [j for i, j in with_ageing.overtakings() if i == 1]
    assert overtakers
    assert with_ageing.arrivals[overtakers].max() <= 0.1 * 1000
    assert any(without.arrivals[j] > 0.1 * 1000 for i, j in without.overtakings() if i == 1)


@PROPERTY
@given(crowds(), st.integers(0, 2**32 - 1))
def test_without_patience_it_is_first_come_first_served(crowd, seed):
    arrivals = np.random.default_rng(seed).permutation(len(crowd[0])).astype(float)
    served = Server(arrivals, crowd[1], crowd[2], 0.0)
    assert served.arrivals[served.order].tolist() == sorted(arrivals)


@PROPERTY
@given(crowds())
def test_with_huge_patience_it_is_shortest_first(crowd):
    arrivals, _, services = crowd
    _, order = line(arrivals, services, patience=1e9)
    assert services[order].tolist() == sorted(services)


@PROPERTY
@given(crowds(), st.sampled_from([0.0, 0.5, 1e6]), st.integers(0, 2**32 - 1))
def test_a_more_urgent_class_always_goes_first(crowd, patience, seed):
    classes = np.random.default_rng(seed).integers(-1, 2, len(crowd[0]))
    served = Server(*crowd, patience, urgency=classes)
    for position, i in enumerate(served.order):
        for j in served.order[position + 1 :]:
            was_there = served.arrivals[j] <= served.starts[i]
            assert not (was_there and classes[j] < classes[i])


@pytest.mark.parametrize("name", BOUNDED)
@PROPERTY
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 1.0, 100.0]))
def test_overtaking_is_bounded_by_the_own_service_for_every_order(name, seed, patience):
    rng = np.random.default_rng(seed)
    waiting, forecast = any_sequences(rng, 8), any_forecast(rng, 8)
    service = SERVICES[name](waiting, forecast)
    assert (service >= 0).all()
    assert np.isfinite(service).all()
    spots = places(waiting, forecast, service=SERVICES[name], patience=patience)
    for first, second in pairwise(in_line(waiting, spots)):
        if waiting.urgency[first] == waiting.urgency[second]:
            late = waiting.arrival[first] - waiting.arrival[second]
            assert late <= patience * service[second] * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_forecast_gives_an_infinite_service(name):
    # Longer than the horizon, and nothing left at all.
    service = SERVICES[name](sequences(2), known([10**7, 0]))
    assert np.isfinite(service).all()


@pytest.mark.parametrize(
    ("tokens", "order"),
    [
        ([16, 16, 16], [1, 2, 0]),
        ([2000, 16, 500], [0, 1, 2]),  # prompt and answer together
        ([2000, 16, 1500], [0, 2, 1]),
    ],
)
def test_longest_first_for_batches(tokens, order):
    spots = places(
        sequences(3, tokens=tokens, arrival=[0.0, 0.0, 0.0]),
        known([10, 1000, 100]),
        service=SERVICES["longest"],
        patience=1.0,
    )
    assert np.argsort(spots).tolist() == order


def test_a_long_prompt_counts_in_memory_time_and_not_in_length():
    waiting = sequences(2, tokens=[10_000, 10], arrival=[0.0, 0.0])
    forecast = known([100, 150])
    first = {
        name: in_line(waiting, places(waiting, forecast, service=SERVICES[name], patience=1.0))[0]
        for name in ("length", "area")
    }
    assert first == {"length": 0, "area": 1}


def test_the_index_prefers_who_may_end_at_once():
    # Half of the first kind end at 10 tokens, the others at 5,000; the second kind at 2,000.
    forecast = known([10, 5000, 2000])
    mixed = type(forecast)(
        np.stack([forecast.survival[:2].mean(axis=0), forecast.survival[2]]), np.ones(2)
    )
    waiting = sequences(2)
    assert (np.diff(by_length(waiting, mixed)) < 0).all()
    assert (np.diff(by_gittins(waiting, mixed)) > 0).all()


def test_the_index_of_known_lengths_is_their_length():
    lengths = np.array([1, 2, 5, 30, 777, 20_000])
    assert by_gittins(sequences(6), known(lengths)) == pytest.approx(lengths)


def test_the_index_of_a_memoryless_length_is_its_mean():
    found = by_gittins(sequences(3), predicted([exponential(m) for m in (20, 300, 4000)]))
    assert found == pytest.approx([20, 300, 4000], rel=0.04)


def test_doubtful_ones_take_an_average_place():
    forecast = known([10, 400, 1000, 1], [0.9, 0.1, 0.9, 0.2])
    waiting = sequences(4, arrival=[0.0, 1.0, 2.0, 3.0])
    spots = places(
        waiting, forecast, service=by_length, patience=1.0, typical=505.0, min_confidence=0.5
    )
    assert spots.tolist() == [10.0, 1 + 505.0, 1002.0, 3 + 505.0]
    # Unless said otherwise, average is the mean of those that are believed.
    spots = places(waiting, forecast, service=by_length, patience=1.0, min_confidence=0.5)
    assert spots.tolist() == [10.0, 1 + 505.0, 1002.0, 3 + 505.0]


def test_where_all_are_doubtful_arrival_decides():
    waiting = sequences(4, arrival=[3.0, 1.0, 2.0, 0.0])
    forecast = predicted([log_logistic(m, 0.5) for m in (10, 300, 50, 4000)])
    spots = places(waiting, forecast, service=by_length, patience=50.0, min_confidence=1.1)
    assert in_line(waiting, spots).tolist() == [3, 1, 2, 0]
