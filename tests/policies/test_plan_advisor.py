"""Who is admitted next: a plan's advisor without an engine."""

import numpy as np
import pytest
from advisor_help import Clock, View, desk

from sagellm_lifetime.policies.forecast import KnownLengths
from sagellm_lifetime.policies.plan import PLANS, Plan


@pytest.fixture
def clock():
    return Clock()


def lined_up(clock, views, lengths, plan=None, **options):
    made = desk(clock, KnownLengths(lengths), plan, **options)
    waiting = list(views)
    for each in views:
        made.arrived(each)
    made.order(waiting)
    return made, waiting


def names(waiting):
    return [each.id for each in waiting]


LENGTHS = {"big": 20, "small": 21, "tiny": 22}
PATIENT = Plan(order="length", patience=1e6, slack=1e6)


def three():
    """In this order by length, whatever the clock says; the first is too big to fit."""
    return [View("big", 800), View("small", 160), View("tiny", 16)]


@pytest.mark.parametrize(
    ("free", "order"),
    [
        (50, ["big", "small", "tiny"]),  # the head fits
        (49, ["small", "tiny", "big"]),
        (10, ["small", "big", "tiny"]),
        (9, ["tiny", "big", "small"]),
        (0, ["big", "small", "tiny"]),  # nobody does
    ],
)
def test_those_that_fit_go_before_a_head_that_does_not(clock, free, order):
    made, waiting = lined_up(clock, three(), LENGTHS, PATIENT)
    # The first of all has an empty queue before it and is due at once: somebody was there already.
    for known in made.advisor._records.values():
        known.place += 1.0
    made.order(waiting, free)
    assert names(waiting) == order


def test_nobody_goes_before_a_head_that_is_due(clock):
    made, waiting = lined_up(clock, three(), LENGTHS, PATIENT)
    for known in made.advisor._records.values():
        known.place += 1.0
    clock.now = made.record("big").place
    made.order(waiting, 20)
    assert names(waiting) == ["big", "small", "tiny"]


def test_nobody_goes_before_one_in_the_middle_that_is_due(clock):
    made, waiting = lined_up(clock, three(), LENGTHS, PATIENT)
    for name, place in (("big", 9.0), ("small", 1.0), ("tiny", 9.0)):
        made.record(name).place = place
    clock.now = 2.0
    made.order(waiting, 5)  # enough for the tiny one alone
    assert names(waiting) == ["big", "small", "tiny"]


def test_no_class_fills_the_gaps_of_a_more_urgent_one(clock):
    requests = [View("big", 800), View("tiny", 16, priority=1)]
    made, waiting = lined_up(clock, requests, LENGTHS, PATIENT)
    made.record("big").place = 9.0
    made.order(waiting, 20)
    assert names(waiting) == ["big", "tiny"]


def test_what_the_cache_has_needs_no_room(clock):
    cached = {"big": 640, "small": 0, "tiny": 0}
    made, waiting = lined_up(clock, three(), LENGTHS, PATIENT, cached=lambda r: cached[r.id])
    made.record("big").place = 9.0
    made.order(waiting, 10)
    assert names(waiting) == ["big", "small", "tiny"]


CACHED_FIRST = Plan(order="length", patience=1e6, slack=1e6, cached=0.5)


@pytest.mark.parametrize(
    ("there", "order"),
    [
        ({}, ["big", "small", "tiny"]),
        ({"tiny": 8}, ["tiny", "big", "small"]),
        ({"tiny": 7}, ["big", "small", "tiny"]),  # less than half of it
        ({"tiny": 16, "small": 160}, ["small", "tiny", "big"]),  # as they would go otherwise
    ],
)
def test_those_whose_prompt_is_in_the_cache_go_first(clock, there, order):
    _, waiting = lined_up(
        clock, three(), LENGTHS, CACHED_FIRST, cached=lambda r: there.get(r.id, 0)
    )
    assert names(waiting) == order
    _, waiting = lined_up(clock, three(), LENGTHS, PATIENT, cached=lambda r: there.get(r.id, 0))
    assert names(waiting) == ["big", "small", "tiny"]


def test_the_cache_is_asked_anew_whenever_the_queue_is_put_in_order(clock):
    there, asked = {}, []

    def cached(request):
        asked.append(request.id)
        return there.get(request.id, 0)

    made, waiting = lined_up(clock, three(), LENGTHS, CACHED_FIRST, cached=cached)
    there["tiny"] = 16
    made.order(waiting)
    assert names(waiting) == ["big", "small", "tiny"], "it is put in order once in a while"
    asked.clear()
    for _ in range(32):
        made.step()
    made.order(waiting)
    assert names(waiting) == ["tiny", "big", "small"]
    assert sorted(asked) == sorted(LENGTHS)


def test_a_deep_queue_is_not_sorted_for_every_newcomer(clock):
    deep = [View(f"r{i}", 100, arrival=i * 1e-6) for i in range(5 * 512)]
    lengths = dict.fromkeys([each.id for each in deep], 1000) | {"new": 1}
    made, waiting = lined_up(clock, deep, lengths, PATIENT)
    assert made.record("r7").place < np.inf, "the first time they are put in order at once"
    new = View("new", 10, arrival=0.5)
    made.arrived(new)
    waiting.append(new)
    for _ in range(5):
        assert waiting[0] is not new
        clock.now += 0.02
        made.step()
        made.order(waiting)
    assert waiting[0] is new
    # Who has lost its memory stands first in vLLM's queue, and would be back at once.
    waiting.remove(deep[3])
    made.admitted("r3")
    made.preempted("r3")
    waiting.insert(0, deep[3])
    clock.now += 0.02
    made.step()
    made.order(waiting)
    assert waiting[0] is new


def test_the_cache_lets_nobody_before_a_more_urgent_class(clock):
    requests = [View("big", 800), View("tiny", 16, priority=1)]
    _, waiting = lined_up(
        clock, requests, LENGTHS, CACHED_FIRST, cached=lambda r: 16 * (r.id == "tiny")
    )
    assert names(waiting) == ["big", "tiny"]


def test_a_long_queue_asks_the_cache_about_its_beginning(clock, monkeypatch):
    from sagellm_lifetime.policies import plan_advisor as module

    made, waiting = lined_up(clock, three(), LENGTHS, CACHED_FIRST)
    asked = []
    for view in waiting:
        view.cached = lambda each: asked.append(each.id) or 0
    monkeypatch.setattr(module, "_LOOKUPS", 2)
    for _ in range(32):
        made.step()
    made.order(waiting)
    assert asked == ["big", "small"]


def test_first_come_first_served_is_never_filled(clock):
    made, waiting = lined_up(clock, three(), LENGTHS, Plan(order="fcfs"))
    made.order(waiting, 20)
    assert names(waiting) == ["big", "small", "tiny"]


def test_the_input_counts_without_what_the_cache_has(clock):
    requests = [View("fresh", 300), View("known", 800)]
    plan = Plan(order="input", slack=1e6)
    for cached, first in ((0, "fresh"), (720, "known")):
        _, waiting = lined_up(
            clock,
            [View("before", 400), *requests],
            {"before": 50, "fresh": 50, "known": 50},
            plan,
            cached=lambda r, cached=cached: cached if r.id == "known" else 0,
        )
        assert next(name for name in names(waiting) if name != "before") == first


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_patience_means_the_same_in_every_unit_of_service(clock, scale, monkeypatch):
    from sagellm_lifetime.policies import plan_advisor as module

    monkeypatch.setitem(module.SERVICES, "input", lambda s, forecast: scale * s.tokens)
    made, _ = lined_up(clock, three(), LENGTHS, Plan(order="input", slack=1e6))
    places = [made.record(name).place for name in ("big", "small", "tiny")]
    monkeypatch.setitem(module.SERVICES, "input", lambda s, forecast: s.tokens)
    plain, _ = lined_up(clock, three(), LENGTHS, Plan(order="input", slack=1e6))
    assert places == pytest.approx([plain.record(name).place for name in ("big", "small", "tiny")])


def test_places_keep_pace_with_the_engine(clock):
    """Who came in the first, slow steps may not be overtaken for as long as they foretold."""
    made, waiting = lined_up(clock, three(), LENGTHS)
    found = []
    for pace in (0.5, 0.02):
        made.advisor._pace.seconds = pace
        for _ in range(32):
            made.step()
        made.order(waiting)
        found.append([made.record(each.id).place for each in waiting])
    assert min(found[1]) > 0
    assert found[0] == pytest.approx([place * 0.5 / 0.02 for place in found[1]])


LONG = {"first": 400, "second": 300, "third": 300, "short": 5}
HARDLY = Plan(order="length", patience=1e6, slack=1.0)
"""All have patience for more than is allowed."""


def place_of(made, name):
    return made.record(name).place


def test_the_horizon_moves_with_the_queue(clock):
    """Who came early waits no longer than a newcomer would: longer while the queue grows."""
    made, waiting = lined_up(clock, [View("first", 160), View("second", 160)], LONG, HARDLY)
    early = place_of(made, "first")
    clock.now = 1.0
    late = View("third", 160, arrival=1.0)
    made.arrived(late)
    waiting.append(late)
    made.order(waiting)
    grown = place_of(made, "first")
    assert grown > early
    # All have the same horizon, so they keep the order of their arrival, whoever is shorter.
    assert names(waiting) == ["first", "second", "third"]
    assert place_of(made, "third") - grown == pytest.approx(1.0)
    made.admitted("second")
    waiting.remove(next(each for each in waiting if each.id == "second"))
    made.order(waiting)
    assert place_of(made, "first") == grown, "nobody has joined"
    for _ in range(32):
        made.step()
    made.order(waiting)
    assert place_of(made, "first") < grown


def test_what_a_preempted_sequence_has_waited_counts(clock):
    made, waiting = lined_up(clock, [View("first", 160), View("second", 160)], LONG, HARDLY)
    clock.now = 3.0
    made.admitted("first")
    made.admitted("second", 1.0)
    clock.now = 5.0
    for each in waiting:
        each.preemptions = 1
        made.preempted(each.id)
    made.order(waiting)
    assert place_of(made, "second") - place_of(made, "first") == pytest.approx(3.0 - 1.0)
    clock.now = 6.0
    made.admitted("first")
    made.preempted("first", 6.5)
    assert made.record("first").waited == pytest.approx(3.0 + 1.0)
    assert made.record("first").joined == 6.5


def test_seconds_per_step_are_a_mean_at_first(clock):
    made = desk(clock, KnownLengths({}))
    durations = np.random.default_rng(0).uniform(0.01, 0.5, 100)
    made.step()
    for seconds in durations.tolist():
        made.step(seconds)
    assert made.advisor._pace.seconds == pytest.approx(durations.mean())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"order": "random"}, "area"),
        ({"evict": "random"}, "cost-aware"),
        ({"fit": 1.0}, "fit"),
        ({"cached": 1.5}, "cached"),
        ({"horizon": 0}, "horizon"),
        ({"patience": -1.0}, "patience"),
        ({"patience": float("inf")}, "patience"),
        ({"slack": -1.0}, "slack"),
        ({"slack": float("nan")}, "slack"),
        ({"slack": float("inf")}, "slack"),
        ({"min_confidence": -0.1}, "min_confidence"),
        ({"min_confidence": 1.1}, "min_confidence"),
        ({"min_confidence": float("nan")}, "min_confidence"),
        ({"max_preemptions": -1}, "max_preemptions"),
    ],
)
def test_an_impossible_plan_says_so(options, says):
    from sagellm_lifetime.core.errors import LifetimeError

    with pytest.raises(LifetimeError, match=says) as error:
        Plan(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "sign"), [("sjf", 1), ("longest-first", -1)])
def test_without_ageing_no_queue_is_too_short_for_the_order(clock, name, sign):
    """After a hundred long ones a few short ones wait alone: by length, whatever came before."""
    lengths = {f"long{i}": 4000 for i in range(100)} | {"b": 40, "c": 30, "d": 20, "a": 50}
    requests = [View(each, 16, arrival=float(i)) for i, each in enumerate(lengths)]
    made, waiting = lined_up(clock, requests, lengths, PLANS[name])
    for each in requests[:100]:
        made.admitted(each.id)
        waiting.remove(each)
    for _ in range(32):
        made.step()
    made.order(waiting)
    assert names(waiting) == ["d", "c", "b", "a"][::sign]


def test_room_is_left_for_what_runs_and_comes(clock):
    """With known lengths: the newcomer's blocks and all that grow before the first of them ends."""
    lengths = {"runs": 160, "next": 320, "last": 16}
    queue = [View(name, 160) for name in lengths]
    plan = Plan(order="fcfs", evict="", fit=0.5)
    made, waiting = lined_up(clock, queue, lengths, plan)
    made.admitted("runs")
    waiting.pop(0)
    grown = made.advisor.growth()
    assert 10 <= grown <= 12  # 160 tokens, and what the end of a gap adds
    assert [made.advisor.admit_limit(1, waiting, free) for free in (80, 45, 19)] == [2, 2, 0]
    assert made.advisor.admit_limit(1, waiting, 80) == 0, (
        "asked again after some steps, if nothing ends"
    )
    near = Plan(order="fcfs", evict="", fit=0.5, horizon=16)
    made, _ = lined_up(clock, queue, lengths, near)
    made.admitted("runs")
    assert made.advisor.growth() == 1


def test_what_is_set_aside_is_of_now_though_nobody_waits(clock):
    made, _ = lined_up(clock, [View("runs", 160)], {"runs": 160}, Plan(order="fcfs", fit=0.5))
    made.admitted("runs")
    whole = made.advisor.growth()
    running = made.record("runs").view
    running.generated, running.tokens = 144, 304
    for _ in range(8):
        made.step()
    assert 1 <= made.advisor.growth() <= 2 < whole


def test_headroom_learns_from_those_that_come_not_from_those_preempted(clock):
    made, waiting = lined_up(clock, [View("first", 160)], {"first": 400, "second": 400})
    learned = (made.advisor._sizes.prompt, made.advisor._sizes.answer)
    assert learned[0] == 160
    made.admitted("first")
    first = waiting[0]
    first.preemptions, first.generated, first.tokens = 1, 390, 550
    made.preempted("first")
    made.order(waiting)
    assert (made.advisor._sizes.prompt, made.advisor._sizes.answer) == learned
    second = View("second", 80)
    made.preempted("first")
    made.arrived(second)
    waiting.append(second)
    made.order(waiting)
    assert made.advisor._sizes.prompt == pytest.approx(120)
    assert made.advisor._sizes.answer == pytest.approx(learned[1])
