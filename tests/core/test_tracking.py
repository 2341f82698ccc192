"""The tracker: bounded, expiring, every sequence counted once."""

import pytest

from sagellm_lifetime.core.batch import UNCAPPED
from sagellm_lifetime.core.errors import UnknownSequenceError
from sagellm_lifetime.core.tracking import Tracker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_get_admit_take():
    tracker = Tracker()
    assert tracker.get("a", 0) is None
    item = tracker.admit("a", {"evidence": 1}, 3, 100)
    assert tracker.get("a", 5) is item
    assert item.age == 3, "looking changes nothing"
    tracker.grown("a", item, 5, 100)
    assert (item.first_age, item.age, len(tracker)) == (3, 5, 1)
    assert tracker.caps[item.slot] == 100
    assert tracker.take("a") is item
    assert tracker.take("a") is None
    assert len(tracker) == 0


def test_a_falling_age_is_a_new_sequence():
    tracker = Tracker()
    old = tracker.admit(1, None, 0, None)
    tracker.grown(1, old, 50, None)
    assert tracker.get(1, 49) is None
    assert tracker.get(1, 50) is old, "it is replaced when the new one is admitted, not before"
    new = tracker.admit(1, None, 49, None)
    assert (tracker.replaced, tracker.admitted, len(tracker)) == (1, 2, 1)
    assert tracker.get(1, 49) is new
    assert tracker.slots([1]).tolist() == [new.slot]


def test_oldest_makes_room():
    tracker = Tracker(capacity=3)
    assert tracker.has_room(3)
    for i in range(3):
        tracker.admit(i, None, 0, None)
    assert tracker.has_room(0)
    assert not tracker.has_room(1)
    tracker.grown(0, tracker.get(0, 1), 1, None)
    tracker.admit("new", None, 0, None)
    assert tracker.get(1, 0) is None
    assert tracker.get(0, 1) is not None
    assert (tracker.expired, len(tracker), tracker.admitted) == (1, 3, 4)


def test_sequences_not_heard_of_expire():
    clock = Clock()
    tracker = Tracker(expire_after=10.0, clock=clock)
    tracker.admit("old", None, 0, None)
    clock.now = 5.0
    tracker.admit("young", None, 0, None)
    assert tracker.has_room(5)
    clock.now = 10.5
    assert not tracker.has_room(1), "the old one would go"
    tracker.admit("new", None, 0, None)
    assert tracker.get("old", 0) is None
    assert tracker.get("young", 0) is not None
    assert tracker.expired == 1


def test_slots_are_reused_and_grow():
    tracker = Tracker()
    slots = {tracker.admit(i, None, 0, i or None).slot for i in range(500)}
    assert len(slots) == 500
    assert len(tracker.rows) >= 500
    assert tracker.slots([7, 499]).tolist() == [tracker.get(7, 0).slot, tracker.get(499, 0).slot]
    assert tracker.caps[tracker.get(0, 0).slot] == UNCAPPED
    assert tracker.caps[tracker.get(499, 0).slot] == 499
    with pytest.raises(UnknownSequenceError, match="'nobody' is not tracked") as caught:
        tracker.slots(["nobody"])
    assert isinstance(caught.value, KeyError)
    freed = tracker.take(3).slot
    size = len(tracker.rows)
    assert tracker.admit("again", None, 0, None).slot == freed
    assert len(tracker.rows) == size


def test_cap_as_it_was_said_last():
    tracker = Tracker()
    item = tracker.admit(1, None, 0, None)
    tracker.grown(1, item, 1, 80)
    assert tracker.caps[item.slot] == 80
    tracker.grown(1, item, 1, None)
    assert tracker.caps[item.slot] == UNCAPPED


def test_capacity_must_be_positive():
    with pytest.raises(ValueError, match="capacity"):
        Tracker(capacity=0)


def test_emptied_keeps_the_settings():
    tracker = Tracker(capacity=7, expire_after=3.0)
    tracker.bounded = False
    tracker.admit(1, None, 0, None)
    twin = tracker.emptied()
    assert (twin.capacity, twin.expire_after, twin.bounded) == (7, 3.0, False)
    assert (len(twin), twin.admitted, len(tracker)) == (0, 0, 1)
