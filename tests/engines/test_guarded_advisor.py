"""A guard round any advisor, beside an engine of which nothing is there."""

import pytest

from sagellm_lifetime.policies.events import Admitted, Arrived, Finished, Progressed
from sagellm_lifetime.vllm.circuit_breaker import CircuitBreaker, OpenLine
from sagellm_lifetime.vllm.guard import GuardedAdvisor


class Named:
    """All that a guard reads of a sequence."""

    def __init__(self, name):
        self.id = name


class Reversed:
    """Turns everything round; what it answers may be replaced."""

    limits_admission = True

    def __init__(self):
        self.heard = []
        self.answers = {}

    def on_events(self, events):
        self.heard += events

    def order(self, waiting, free_blocks):
        return self.answers.get("order", range(len(waiting))[::-1])

    def victims(self, running):
        return self.answers.get("victims", range(len(running))[::-1])

    def reserve(self):
        return self.answers.get("reserve", 7)

    def admit_limit(self, running, waiting, free_blocks):
        return self.answers.get("limit", 1)


class Nowhere:
    """The engine's side; counts what it is told."""

    def __init__(self):
        self.told = []

    def sequences(self):
        return [Arrived(Named("there"), 1.0)], [Admitted("there", 0.5)]

    def present(self):
        return {"there"}

    def take_over(self):
        self.told.append("take over")

    def give_back(self):
        self.told.append("give back")

    def restore(self):
        self.told.append("restore")


@pytest.fixture
def engine():
    return Nowhere()


@pytest.fixture
def advisor():
    return Reversed()


def guarded(engine, advisor, mode="act", breaker=None):
    breaker = breaker or CircuitBreaker(floor_s=60.0)
    guard = GuardedAdvisor(
        lambda acts: advisor, engine, clock=lambda: 2.0, breaker=breaker, limits_admission=True
    )
    guard.want(mode)
    guard.begin_step(1)
    return guard


VIEWS = [Named(name) for name in "abc"]


def asked(guard):
    """Everything, as it is answered in one step."""
    order, victims = guard.order(VIEWS, 10), guard.victims(VIEWS)
    return (
        order if order is None else list(order),
        victims if victims is None else list(victims),
        guard.admit_limit(1, VIEWS, 10),
        guard.reserve(),
    )


def test_what_is_there_is_told_before_anything_else(engine, advisor):
    guarded(engine, advisor)
    assert [type(event) for event in advisor.heard] == [Arrived, Admitted]
    assert engine.told[-1] == "take over"


@pytest.mark.parametrize(
    ("mode", "answers"),
    [
        ("off", (None, None, 3, 0)),
        ("shadow", (None, None, 3, 7)),
        ("act", ([2, 1, 0], [2, 1, 0], 1, 7)),
    ],
)
def test_only_in_act_are_answers_carried_out(engine, advisor, mode, answers):
    guard = guarded(engine, advisor, mode)
    assert asked(guard) == answers
    assert guard.acting == (mode == "act")
    assert ("take over" in engine.told) == (mode == "act")


@pytest.mark.parametrize(
    "answers",
    [
        {"order": [0, 0, 1]},
        {"order": [3]},
        {"victims": [1, 0]},
        {"victims": [0, 1, 1]},
        {"limit": 4},
        {"limit": -1},
        {"limit": 1.5},
        {"reserve": -1},
    ],
    ids=str,
)
def test_nonsense_leaves_everything_to_the_engine(engine, advisor, answers):
    guard = guarded(engine, advisor)
    advisor.answers = answers
    guard.on_events([Admitted("a", 2.0)])
    asked(guard)
    assert guard.breaker.faults["nonsense"] == 1
    assert engine.told[-1] == "give back"
    assert asked(guard) == (None, None, 3, 0)
    assert not guard.acting


def test_events_wait_for_a_question_where_many_run(engine, advisor):
    guard = guarded(engine, advisor)
    guard.begin_step(64)
    advisor.heard.clear()
    events = [Admitted("a", 2.0), Finished("a", 1, 1.0, "stop", 3.0)]
    for event in events:
        guard.on_events([event])
    assert not advisor.heard
    guard.order(VIEWS, 1)
    assert [event for event in advisor.heard if type(event) is not Progressed] == events


def test_a_replay_hears_of_every_error(engine, advisor):
    guard = guarded(engine, advisor, breaker=OpenLine())
    advisor.answers = {"order": [1]}
    with pytest.raises(ValueError, match="no permutation"):
        guard.order(VIEWS, 1)


@pytest.mark.parametrize("first", [[2], [0]], ids=["differs", "agrees"])
def test_shadow_compares_with_what_was_done(engine, advisor, first):
    guard = guarded(engine, advisor, "shadow")
    order = [*first, *(place for place in range(3) if place not in first)]
    advisor.answers = {"order": order, "victims": order[::-1]}
    assert guard.compares_admission(1)
    guard.compare_admission(VIEWS[:1], VIEWS[1:])
    admissions = guard.agreement.admissions
    assert (admissions.made, admissions.differing) == (1, int(first == [2]))
    guard.compare_preemption(VIEWS[2], lambda: VIEWS[:2])
    preemptions = guard.agreement.preemptions
    assert (preemptions.made, preemptions.differing) == (1, int(first == [0]))
