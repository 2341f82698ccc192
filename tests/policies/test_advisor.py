"""The seam between an engine and who decides: events, answers, and what is no answer."""

import doctest
import sys
from dataclasses import FrozenInstanceError, fields
from itertools import count

import numpy as np
import pytest
from advisor_help import Clock, View, desk

import sagellm_lifetime
from sagellm_lifetime.policies import advisor as seam
from sagellm_lifetime.policies import events
from sagellm_lifetime.policies import plan_advisor as module
from sagellm_lifetime.policies.advisor import AdviceError, check_count, check_order
from sagellm_lifetime.policies.events import (
    Admitted,
    Arrived,
    Finished,
    Preempted,
    Progressed,
)
from sagellm_lifetime.policies.forecast import KnownLengths
from sagellm_lifetime.policies.plan import PLANS, Plan
from sagellm_lifetime.policies.plan_advisor import PlanAdvisor


class Told:
    """A forecaster that notes what it hears."""

    def __init__(self):
        self.heard = []
        self._known = KnownLengths({})

    def arrived(self, request):
        self.heard.append(("arrived", request.sequence_id))

    def grown(self, requests):
        self.heard.append(("grown", [request.sequence_id for request in requests]))

    def forecast(self, ids, ages):
        self.heard.append(("asked", list(ids)))
        return KnownLengths(dict.fromkeys(ids, 100)).forecast(ids, ages)

    def finished(self, sequence_id, length, seconds, reason):
        self.heard.append(("finished", sequence_id, length, seconds, reason))


def plan_advisor(forecaster, plan=None, **options):
    return PlanAdvisor(
        plan or Plan(), forecaster, total_blocks=100, block_size=16, clock=Clock(), **options
    )


def test_it_is_public():
    assert sagellm_lifetime.Advisor is seam.Advisor


@pytest.mark.parametrize("of", [seam, events])
def test_the_examples_hold(of):
    found = doctest.testmod(of)
    assert found.attempted > 0
    assert not found.failed


@pytest.mark.parametrize(
    "event",
    [
        Arrived(View("a", 10), 1.0),
        Admitted("a", 1.0),
        Progressed(0.02, 1.0),
        Preempted("a", 1.0),
        Finished("a", 3, 0.5, "stop", 1.0),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_is_a_fact_with_its_moment(event):
    assert event.at == 1.0
    assert not hasattr(event, "__dict__")
    with pytest.raises(FrozenInstanceError):
        event.at = 2.0
    assert "at" in [field.name for field in fields(event)]


@pytest.mark.parametrize("order", [[], [0], [1, 0], [2, 0, 1], np.array([1, 0]), range(3)])
def test_an_order_of_the_first_places_is_copied(order):
    copy = check_order(order, 3)
    assert copy == list(order)
    assert copy is not order
    assert {type(place) for place in copy} <= {int}
    assert check_order(None, 0) is None


class Twice:
    """An order that is a permutation when it is read first, and none afterwards."""

    def __init__(self, count):
        self.answers = [list(range(count))]

    def __len__(self):
        return len(next(iter(self)))

    def __iter__(self):
        return iter(self.answers.pop() if self.answers else [0, 0, 0])

    def __getitem__(self, place):
        return 0


def test_an_order_is_read_once():
    assert check_order(Twice(3), 3) == [0, 1, 2]


@pytest.mark.parametrize(
    "order",
    [
        [1],
        [0, 0],
        [0, 2],
        [-1, 0],
        [0, 1, 2, 3],
        [0.5],
        [2, 1, 3],
        [1.0, 0.0],
        np.array([1.0, 0.0]),
        np.zeros((2, 1), int),
        [0, None],
        [float("nan")],
        "abc",
        7,
        count(),
    ],
    ids=str,
)
def test_what_is_no_permutation_is_no_order(order):
    with pytest.raises(AdviceError, match="no permutation") as error:
        check_order(order, 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [-1, 4, 1.0, True, None, float("nan"), np.True_, np.float64(1)])
def test_what_is_no_number_of_them_is_refused(number):
    assert check_count(3, 3, "admissions") == 3
    with pytest.raises(AdviceError, match="admissions of 3"):
        check_count(number, 3, "admissions")


def test_a_message_about_a_number_quotes_no_text_and_no_limit_that_is_none():
    for number, shown in ((-3, "-3"), (2.5, "2.5"), ("a prompt", "str"), (None, "NoneType")):
        with pytest.raises(AdviceError, match=f"^{shown} blocks to keep free$"):
            check_count(number, sys.maxsize, "blocks to keep free")


@pytest.mark.parametrize("number", [np.int64(2), np.uint8(2), np.array([True, True]).sum()])
def test_a_number_of_numpy_is_one(number):
    counted = check_count(number, 3, "admissions")
    assert (counted, type(counted)) == (2, int)


def test_the_forecaster_hears_of_all_in_its_order():
    told = Told()
    advisor = plan_advisor(told)
    advisor.on_events(
        [
            Arrived(View("a", 10), 0.0),
            Arrived(View("beam", 10), 0.0, is_predicted=False),
            Admitted("a", 0.1),
            Progressed(0.02, 0.2, (View("a", 26),)),
            Finished("beam", 1, 0.0, "stop", 0.3, is_predicted=False),
            Finished("a", 7, 0.4, "length", 0.4),
            Finished("nobody", 1, 0.4, "stop", 0.4),
        ]
    )
    assert told.heard == [("arrived", "a"), ("grown", ["a"]), ("finished", "a", 7, 0.4, "length")]


def test_events_handed_on_late_make_the_same_decisions():
    """A batch of events says when each was: nothing depends on how they are cut."""

    def decided(size):
        advisor = plan_advisor(KnownLengths({f"r{i}": 10 + 37 * i % 200 for i in range(40)}))
        views = [View(f"r{i}", 20 + 13 * i % 90, arrival=0.01 * i) for i in range(40)]
        happened = []
        for i, view in enumerate(views):
            happened += [Arrived(view, view.arrival), Progressed(0.02, view.arrival)]
            if i % 3 == 0:
                happened.append(Admitted(view.id, view.arrival + 0.3))
            if i % 6 == 0:
                happened.append(Preempted(view.id, view.arrival + 0.5))
        for start in range(0, len(happened), size):
            advisor.on_events(happened[start : start + size])
        waiting = [view for i, view in enumerate(views) if i % 3 or i % 6 == 0]
        return advisor.order(waiting, 50), advisor.victims([views[3], views[9], views[15]])

    whole = decided(1000)
    assert whole == decided(1)
    assert whole == decided(7)
    assert list(whole[0]) != sorted(whole[0])


def test_a_name_used_again_is_another_sequence():
    advisor = plan_advisor(Told(), PLANS["reserve"])
    advisor.on_events([Arrived(View("a", 160), 0.0), Admitted("a", 0.0)])
    advisor.on_events([Arrived(View("a", 160), 1.0), Finished("a", 1, 0.1, "stop", 1.1)])
    assert advisor.growth() == 0
    assert not advisor._records
    assert not advisor._waiting


def test_a_step_of_beam_search_ends_after_one_token_whatever_is_predicted():
    told = Told()
    made = desk(Clock(), told, Plan(order="length", patience=1e6, slack=1e6))
    views = [View("long", 16), View("beam", 16, arrival=1e-9)]
    made.advisor.on_events([Arrived(views[0], 0.0), Arrived(views[1], 0.0, is_predicted=False)])
    assert list(made.advisor.order(views, 1000)) == [1, 0]
    assert ("asked", ["long"]) in told.heard


def test_many_that_come_at_once_are_one_question():
    told = Told()
    views = [View(f"r{i}", 16) for i in range(40)]
    plan_advisor(told).on_events([Arrived(view, 0.0) for view in views])
    assert told.heard == [("grown", [view.id for view in views])]


def test_a_long_queue_is_looked_at_in_pieces(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 8)
    told = Told()
    advisor = plan_advisor(told)
    views = [View(f"r{i}", 16) for i in range(30)]
    for start in range(0, 30, 8):
        advisor.on_events([Arrived(view, 0.0) for view in views[start : start + 8]])
    advisor.order(views, 1000)
    asked = [names for kind, names, *_ in told.heard if kind == "asked"]
    assert [len(names) for names in asked] == [8, 8, 8, 6]
    assert sorted(name for names in asked for name in names) == sorted(view.id for view in views)


def test_what_is_not_carried_out_is_ordered_whenever_it_is_asked():
    lengths = {"a": 300, "b": 10}
    views = [View("a", 16), View("b", 16)]
    plan = Plan(order="length", patience=1e6, slack=1e6)
    found = []
    for is_applied in (True, False):
        advisor = plan_advisor(KnownLengths(lengths), plan, is_applied=is_applied)
        advisor.on_events([Arrived(view, 0.0) for view in views])
        found.append([advisor.order(views, 1000) for _ in range(2)])
    assert found == [[[1, 0], None], [[1, 0], [1, 0]]]


def test_victims_in_prefill_stay_behind():
    lengths = {"short": 50, "long": 500, "prefill": 200}
    advisor = plan_advisor(KnownLengths(lengths), Plan(evict="longest"))
    views = [View("prefill", 16, is_prefilling=True), View("long", 16), View("short", 16)]
    for view in views:
        advisor.on_events([Arrived(view, 0.0), Admitted(view.id, 0.0)])
    order = advisor.victims(views)
    assert [views[place].id for place in order] == ["short", "long", "prefill"]
    assert plan_advisor(KnownLengths(lengths), Plan(evict="")).victims(views) is None
