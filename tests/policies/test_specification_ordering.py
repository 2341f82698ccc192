"""``LifetimeAwarePass``: as the specification has it, what is wrong with that, and the repair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_help import PROPERTY
from specification_examples import ExamplePass, ExamplePriorityPass, ExampleScheduler
from specification_stubs import Broken, Says, ids, request

from sagellm_lifetime import RequestError, UnknownNameError, create_predictor
from sagellm_lifetime.policies.specification import (
    LifetimeAwarePass,
    OptimizationPass,
    SchedulePriority,
)

BOTH = (ExamplePass, LifetimeAwarePass)


@pytest.mark.parametrize("lifetime_aware", BOTH)
@pytest.mark.parametrize("name", ["baseline", "orca", "linear", "survival", "lstm", "transformer"])
def test_it_runs_as_written_with_every_predictor(lifetime_aware, name):
    the_pass = lifetime_aware(create_predictor(name))
    assert isinstance(the_pass, OptimizationPass)
    assert the_pass.name() == "LifetimeAware"
    pending = [request(str(i), cap=100 * (5 - i), at=float(i)) for i in range(5)]
    found = the_pass.apply(pending, [request("9", num_decoded_tokens=3)], 1000)
    assert sorted(ids(found)) == ["0", "1", "2", "3", "4"]
    assert all(each.estimated_remaining_tokens >= 1 for each in found)


@PROPERTY
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_specifications_order_is_there(count, seed):
    rng = np.random.default_rng(seed)
    remaining = rng.permutation(np.arange(1, 3000, 7))[:count].tolist()
    says = Says(enumerate(remaining))

    def pending():
        return [request(str(i), at=1.7e9 + 10 * i) for i in range(count)]

    ours = LifetimeAwarePass(says, order="shortest").apply(pending(), [], 1000)
    assert ids(ours) == ids(ExamplePass(says).apply(pending(), [], 1000))


def test_ids_are_names():
    with pytest.raises(ValueError, match="cmpl"):
        ExamplePass(Says({})).apply([request("cmpl-7a")], [], 1000)
    says = Says({"cmpl-7a": 30, "cmpl-7b": 20})
    found = LifetimeAwarePass(says, patience=1.0).apply(
        [request("cmpl-7a"), request("cmpl-7b")], [], 1000
    )
    assert [each.sequence_id for each in says.asked] == ["cmpl-7a", "cmpl-7b"]
    assert ids(found) == ["cmpl-7b", "cmpl-7a"]


def test_two_names_are_two_requests():
    def asked(lifetime_aware):
        predictor = create_predictor("survival")
        lifetime_aware(predictor).apply([request("7"), request("007")], [], 1000)
        return predictor.get_metrics()["running"]

    assert asked(ExamplePass) == 1
    assert asked(LifetimeAwarePass) == 2


def test_what_ends_is_learned():
    def learned(lifetime_aware):
        predictor = create_predictor("survival")
        lifetime_aware(predictor).apply([request("7")], [], 1000)
        predictor.update("7", 40, 0.8)  # as the engine names it
        metrics = predictor.get_metrics()
        return metrics["completions"], metrics["unknown_updates"]

    assert learned(ExamplePass) == (0, 1)
    assert learned(LifetimeAwarePass) == (1, 0)


def test_a_later_sort_by_arrival_does_not_undo_the_order():
    says = Says({"0": 900, "1": 5})
    pending = [request("0", at=0.0, cap=10), request("1", at=0.1, cap=10)]
    assert ids(ExamplePass(says).apply(list(pending), [], 1000)) == ["1", "0"]
    assert ids(ExampleScheduler(ExamplePass(says)).schedule(pending, [], 1000)) == ["0", "1"]
    ours = ExampleScheduler(LifetimeAwarePass(says))
    assert ids(ours.schedule(pending, [], 1000)) == ["1", "0"]
    # Only the first fits: with the example it is the long one.
    assert ids(ExampleScheduler(ExamplePass(says)).schedule(pending, [], 30)) == ["0"]
    assert ids(ours.schedule(pending, [], 30)) == ["1"]


def test_what_is_made_of_the_order_is_settled_too():
    pending = [request("0", at=0.0), request("1", at=0.1), request("2", at=0.2)]
    found = LifetimeAwarePass(Says({"0": 900, "1": 50, "2": 5})).apply(pending, [], 1000)
    late = (request("x", at=-1.0),)
    for made, order in (
        (found.copy(), ["2", "1", "0"]),
        (found[:], ["2", "1", "0"]),
        (found[::2], ["2", "0"]),
        (found[:1] + found[1:], ["2", "1", "0"]),
        (found + list(late), ["2", "1", "0", "x"]),
    ):
        made.sort(key=lambda each: each.arrived_time)
        assert ids(made) == order
        made.sort(key=lambda each: each.request_id)
        assert ids(made) == sorted(order)
    assert found[0].request_id == "2"
    assert ids(sorted(found, key=lambda each: each.arrived_time)) == ["0", "1", "2"]


def test_a_later_pass_by_priority_still_sorts():
    says = Says({"a": 5, "b": 900, "c": 50})
    pending = [request("a"), request("b", priority=2), request("c")]
    found = LifetimeAwarePass(says).apply(pending, [], 1000)
    assert ids(found) == ["b", "a", "c"]
    assert ids(ExamplePriorityPass().apply(found, [], 1000)) == ["b", "a", "c"]
    found.sort(key=lambda each: each.request_id, reverse=True)
    assert ids(found) == ["c", "b", "a"]


def simulate(the_pass, shorts: int = 300) -> float:
    """Wait of one request of 1,000 tokens among requests of 50 that come twice as fast as they are
    served, one at a time at 0.02 s a token."""
    coming = [request("0", at=0.0), request("1", at=0.0, cap=2000)]
    coming += [request(str(i), at=0.5 * i) for i in range(2, shorts)]
    waiting, now = [], 0.0
    while coming or waiting:
        while coming and coming[0].arrived_time <= now:
            waiting.append(coming.pop(0))
        first = the_pass.apply(waiting, [], 4000)[0]
        if first.request_id == "1":
            return now
        waiting.remove(first)
        now += 1.0
    raise AssertionError("it never ran")


def test_nobody_is_left_behind():
    says = Says(dict.fromkeys(range(300), 50) | {1: 1000})
    assert simulate(ExamplePass(says)) >= 299.0
    # 1,000 tokens at 0.02 s are 20 s of service; nobody goes before it that comes 40 s later.
    waited = simulate(LifetimeAwarePass(says, order="length", patience=2.0))
    assert 20.0 < waited <= 40.0 * 2 + 1
    assert simulate(LifetimeAwarePass(says, order="shortest")) >= 299.0
    assert simulate(LifetimeAwarePass(says, order="fcfs")) <= 1.0


def test_the_urgent_go_first():
    says = Says({"0": 5, "1": 900})
    pending = [
        request("0", priority=SchedulePriority.NORMAL),
        request("1", priority=SchedulePriority.URGENT),
    ]
    assert ids(ExamplePass(says).apply(list(pending), [], 1000)) == ["0", "1"]
    for order in ("cost-aware", "shortest"):
        the_pass = LifetimeAwarePass(says, order=order)
        assert ids(the_pass.apply(pending, [], 1000)) == ["1", "0"]


def test_the_callers_list_keeps_its_order():
    says = Says({"a": 900, "b": 5})
    pending = [request("a"), request("b")]
    assert ids(LifetimeAwarePass(says).apply(pending, [], 1000)) == ["b", "a"]
    assert ids(pending) == ["a", "b"]
    assert [each.estimated_remaining_tokens for each in pending] == [900, 5]


def test_a_long_prompt_counts():
    says = Says({"long prompt": 100, "short prompt": 150})
    pending = [request("long prompt", prompt=5000), request("short prompt", prompt=5)]
    assert ids(LifetimeAwarePass(says).apply(pending, [], 10_000)) == [
        "short prompt",
        "long prompt",
    ]
    assert ids(LifetimeAwarePass(says, order="shortest").apply(pending, [], 10_000)) == [
        "long prompt",
        "short prompt",
    ]


def test_what_the_predictor_does_not_know_goes_by_arrival():
    pending = [request("2", at=2.0), request("1", at=1.0), request("3", at=3.0)]
    with pytest.raises(KeyError):
        ExamplePass(Broken()).apply(list(pending), [], 1000)
    assert ids(LifetimeAwarePass(Broken()).apply(pending, [], 1000)) == ["1", "2", "3"]
    untrained = Says({"1": 900, "2": 10, "3": 100}, source="prior")
    assert ids(LifetimeAwarePass(untrained).apply(pending, [], 1000)) == ["1", "2", "3"]


def test_below_the_threshold_arrival_decides():
    says = Says({"1": 900, "2": 10}, confidence=0.4)
    pending = [request("1", at=1.0), request("2", at=1.1)]
    assert ids(LifetimeAwarePass(says).apply(pending, [], 1000)) == ["2", "1"]
    assert ids(LifetimeAwarePass(says, min_confidence=0.5).apply(pending, [], 1000)) == ["1", "2"]


def test_a_place_is_settled_when_a_request_is_first_seen():
    says = Says({"a": 100, "b": 200})
    the_pass = LifetimeAwarePass(says)
    pending = [request("a"), request("b")]
    assert ids(the_pass.apply(pending, [], 1000)) == ["a", "b"]
    says.remaining = {"a": 900, "b": 5}
    assert ids(the_pass.apply(pending, [], 1000)) == ["a", "b"]
    assert [each.estimated_remaining_tokens for each in pending] == [900, 5]
    # Both have run in between: what they wait for now is something else.
    for each in pending:
        each.num_decoded_tokens = 20
    assert ids(the_pass.apply(pending, [], 1000)) == ["b", "a"]
    assert len(the_pass._places) == 2
    the_pass.apply([], [], 1000)
    assert len(the_pass._places) == 0


def test_only_what_fits():
    says = Says({"a": 10, "b": 50, "c": 90, "r": 40})
    pending = [request(each, prompt=100) for each in "abc"]
    running = [request("r", prompt=100, num_decoded_tokens=20)]
    the_pass = LifetimeAwarePass(says, fit=0.9)
    # In 10 steps, when "a" ends, all hold most: 110 tokens each, and the running one 130.
    assert ids(the_pass.apply(pending, running, 10_000)) == ["a", "b", "c"]
    assert ids(the_pass.apply(pending, running, 320)) == ["a", "b"]
    assert ids(the_pass.apply(pending, running, 130)) == ["a"]
    assert ids(the_pass.apply(pending, running, 110)) == []
    # Somebody has to run.
    assert ids(the_pass.apply(pending, [], 50)) == ["a"]
    half = LifetimeAwarePass(says, fit=0.9, memory_per_token=0.5)
    assert ids(half.apply(pending, running, 160)) == ["a", "b"]
    assert ids(LifetimeAwarePass(says).apply(pending, running, 130)) == ["a", "b", "c"]


def test_nothing_is_kept_for_those_of_whom_little_is_known():
    told = {"a": 10, "b": 50, "c": 90, "r": 40}
    pending = [request(each, prompt=100) for each in "abc"]
    running = [request("r", prompt=100, num_decoded_tokens=20)]
    for confidence, admitted in ((0.9, ["a"]), (0.1, ["a", "b", "c"])):
        the_pass = LifetimeAwarePass(Says(told, confidence=confidence), fit=0.9, min_confidence=0.5)
        assert ids(the_pass.apply(pending, running, 130)) == admitted


def test_what_the_predictor_does_not_know_is_taken_to_run_into_its_cap():
    the_pass = LifetimeAwarePass(Broken(), fit=0.9)
    running = [request("r", prompt=100, cap=200)]
    pending = [request("a", prompt=100, cap=50)]
    # The running one may come to hold 300 tokens, and "a" 150.
    assert ids(the_pass.apply(pending, running, 320)) == ["a"]
    assert ids(the_pass.apply(pending, running, 150)) == []
    pending[0].max_tokens = 0
    assert ids(the_pass.apply(pending, running, 3000)) == []


def test_what_the_predictor_is_told():
    says = Says({"a": 5, "b": 5})
    pending = [
        request("a", at=4.0, prompt=7, cap=0, prompt_features={"client_id": "c"}),
        request("b", num_decoded_tokens=3),
    ]
    LifetimeAwarePass(says).apply(pending, [], 1000)
    first, second = says.asked
    assert first.max_length is None
    assert first.token_ids == list(range(7))
    assert first.prompt_features == {"prompt_length": 7, "arrival_time": 4.0, "client_id": "c"}
    assert second.max_length == 1000
    assert second.current_length == 3


def test_patience_is_in_seconds_of_service():
    # 1,000 tokens in a pool of 10,000, alone: 51 steps' worth of the whole pool, 1.02 s.
    says = Says({"long": 1000, "soon": 1, "late": 1})
    pending = [request("long"), request("soon", at=1.9), request("late", at=2.1)]
    found = LifetimeAwarePass(says, patience=2.0).apply(pending, [], 10_000)
    assert ids(found) == ["soon", "long", "late"]
    # In tokens it is 20 s.
    pending = [request("long"), request("soon", at=39.0), request("late", at=41.0)]
    found = LifetimeAwarePass(says, order="length", patience=2.0).apply(pending, [], 10_000)
    assert ids(found) == ["soon", "long", "late"]


def test_nothing_waits():
    assert LifetimeAwarePass(Says({})).apply([], [], 1000) == []


@pytest.mark.parametrize(
    "options", [{"fit": 1.0}, {"fit": -0.1}, {"memory_per_token": 0.0}, {"patience": float("inf")}]
)
def test_impossible_options(options):
    with pytest.raises(RequestError, match=next(iter(options))):
        LifetimeAwarePass(Says({}), **options)


def test_an_order_nobody_knows():
    with pytest.raises(UnknownNameError, match="cost-aware"):
        LifetimeAwarePass(Says({}), order="random")


def test_what_the_predictor_does_not_know_stands_between_short_and_long():
    pending = [request("900", at=0.0), request("new", at=0.0), request("10", at=0.0)]
    ordered = LifetimeAwarePass(Says({"900": 900, "10": 10})).apply(pending, [], 1000)
    assert ids(ordered) == ["10", "new", "900"]
