"""``PredictiveEvictionWithML``: as the specification has it, what is wrong with it, the repair."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_help import PROPERTY
from specification_examples import ExampleEviction
from specification_stubs import Broken, Says, Spread, candidate

from sagellm_lifetime import PredictionRequest, UnknownNameError, create_predictor
from sagellm_lifetime.policies.specification import (
    EvictionPolicyProtocol,
    EvictionPriority,
    PredictiveEvictionWithML,
)

BOTH = (ExampleEviction, PredictiveEvictionWithML)


@pytest.mark.parametrize("policy", BOTH)
def test_it_runs_as_written(policy):
    victims = policy().select_victims(
        [candidate(i, 3, length=50 * i, cap=500, is_pinned=i == 2) for i in range(5)], 5
    )
    assert len(victims) == 2
    assert set(victims) <= {0, 1, 3, 4}


@pytest.mark.parametrize("policy", BOTH)
@pytest.mark.parametrize("name", ["baseline", "orca", "linear", "survival", "lstm", "transformer"])
def test_it_runs_with_every_predictor(policy, name):
    candidates = [candidate(f"r-{i}", length=20 * i) for i in range(6)]
    victims = policy(create_predictor(name)).select_victims(candidates, 9)
    assert len(victims) == 3
    assert all(each.estimated_lifetime >= 0.0 for each in candidates)


def test_it_is_a_policy_of_page_2_3():
    policy = PredictiveEvictionWithML(Says({}))
    assert isinstance(policy, EvictionPolicyProtocol)
    assert policy.select_victims([], 5) == []


@PROPERTY
@given(st.integers(1, 12), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_the_specifications_order_is_there(count, required, seed):
    rng = np.random.default_rng(seed)
    remaining = rng.permutation(np.arange(1, 3000, 7))[:count].tolist()
    # No room for the example's faults: lengths differ, nothing is shared, all matter the same.
    says = Says(dict(enumerate(remaining)))
    blocks, pinned = rng.integers(1, 20, count), rng.random(count) < 0.3

    def candidates():
        return [candidate(i, int(blocks[i]), is_pinned=bool(pinned[i])) for i in range(count)]

    example = ExampleEviction(says).select_victims(candidates(), required)
    ours = PredictiveEvictionWithML(says, order="shortest", max_preemptions=99)
    assert ours.select_victims(candidates(), required) == example


def test_the_shortest_is_about_to_free_its_memory_by_itself():
    says = Says({"ending": 3, "long": 1500})
    assert ExampleEviction(says).select_victims([candidate("ending"), candidate("long")], 4) == [
        "ending"
    ]
    policy = PredictiveEvictionWithML(says)
    assert policy.select_victims([candidate("ending"), candidate("long")], 4) == ["long"]
    assert policy.select_victims([candidate("ending"), candidate("long")], 5) == ["long", "ending"]


def test_what_is_dear_to_compute_again_goes_later():
    says = Says({"long prompt": 400, "short prompt": 300})
    candidates = [candidate("long prompt", 128, length=2000), candidate("short prompt", 7)]
    assert PredictiveEvictionWithML(says).select_victims(candidates, 5) == ["short prompt"]
    candidates[0].cached_tokens = 1990
    assert PredictiveEvictionWithML(says).select_victims(candidates, 5) == ["long prompt"]


def test_what_blocks_hold_counts_where_no_length_is_said():
    # As page 2.3's own pool builds its candidates: without lengths. The more they hold, the dearer.
    says = Says({"large": 300, "small": 300})
    candidates = [candidate("large", 90, length=0), candidate("small", 5, length=0)]
    assert PredictiveEvictionWithML(says).select_victims(candidates, 1) == ["small"]


@pytest.mark.parametrize("required", [0, -3])
def test_nothing_is_required(required):
    says = Says({"a": 5, "b": 7})
    candidates = [candidate("a"), candidate("b")]
    assert ExampleEviction(says).select_victims(list(candidates), required) == ["a"]
    says.asked.clear()
    assert PredictiveEvictionWithML(says).select_victims(candidates, required) == []
    assert says.asked == []


def test_a_lifetime_of_zero_is_the_shortest():
    says = Says({"ends now": 0, "lives": 50})
    candidates = [candidate("lives"), candidate("ends now")]
    assert ExampleEviction(says).select_victims(list(candidates), 1) == ["lives"]
    policy = PredictiveEvictionWithML(says, order="shortest")
    assert policy.select_victims(candidates, 1) == ["ends now"]


def test_without_max_length_there_is_no_cap():
    predictor = create_predictor("baseline")
    for i in range(20):
        predictor.predict(PredictionRequest(f"old-{i}", [], 0, None))
        predictor.update(f"old-{i}", 400, 8.0)

    def lifetimes(policy):
        candidates = [candidate("old", length=390, cap=0), candidate("new", length=5, cap=0)]
        policy(predictor.clone()).select_victims(candidates, 1)
        return [each.estimated_lifetime for each in candidates]

    assert lifetimes(ExampleEviction) == [0.0, 0.0]
    old, new = lifetimes(PredictiveEvictionWithML)
    assert 0.0 < old < new


@pytest.mark.parametrize("order", ["shortest", "cost-aware"])
def test_pinned_is_never_evicted(order):
    says = Says(dict.fromkeys("abc", 100))
    candidates = [candidate(each, is_pinned=True) for each in "abc"]
    assert PredictiveEvictionWithML(says, order=order).select_victims(candidates, 99) == []
    candidates[1].is_pinned = False
    assert PredictiveEvictionWithML(says, order=order).select_victims(candidates, 99) == ["b"]


def test_the_less_important_goes_first():
    says = Says({"high": 10, "low": 900, "normal": 500})
    candidates = [
        candidate("normal", priority=EvictionPriority.NORMAL),
        candidate("high", priority=EvictionPriority.HIGH),
        candidate("low", priority=EvictionPriority.LOW),
    ]
    assert ExampleEviction(says).select_victims(list(candidates), 1) == ["high"]
    policy = PredictiveEvictionWithML(says, order="shortest")
    assert policy.select_victims(candidates, 12) == ["low", "normal", "high"]


def really_freed(candidates, victims) -> int:
    """Blocks that nobody holds any more."""
    stay = {b for c in candidates if c.sequence_id not in victims for b in c.block_ids}
    return len({b for c in candidates for b in c.block_ids} - stay)


def test_a_shared_block_comes_free_with_its_last_holder():
    prefix = list(range(10))
    candidates = [candidate("a", [*prefix, 20]), candidate("b", [*prefix, 30]), candidate("c", 4)]
    says = Says({"a": 100, "b": 200, "c": 300})
    example = ExampleEviction(says).select_victims(list(candidates), 11)
    assert example == ["a"]
    assert really_freed(candidates, example) == 1
    ours = PredictiveEvictionWithML(says, order="shortest")
    victims = ours.select_victims(candidates, 11)
    assert victims == ["a", "b"]
    assert really_freed(candidates, victims) == 12
    assert ours.get_metrics()["freed_blocks"] == 12


@PROPERTY
@given(
    st.lists(st.lists(st.integers(0, 15), max_size=6), min_size=1, max_size=7),
    st.integers(1, 20),
    st.integers(0, 2**32 - 1),
)
def test_shared_or_not_enough_comes_free_and_nobody_goes_in_vain(held, required, seed):
    rng = np.random.default_rng(seed)
    pinned = rng.random(len(held)) < 0.3
    candidates = [candidate(i, blocks, is_pinned=bool(pinned[i])) for i, blocks in enumerate(held)]
    says = Says({i: int(n) for i, n in enumerate(rng.integers(1, 2000, len(held)))})
    victims = PredictiveEvictionWithML(says).select_victims(candidates, required)
    able = [i for i in range(len(held)) if not pinned[i]]
    assert set(victims) <= set(able)
    freed = really_freed(candidates, victims)
    assert freed >= min(required, really_freed(candidates, able))
    assert all(
        really_freed(candidates, [v for v in victims if v != each]) < freed for each in victims
    )
    assert freed - required < max((len(set(blocks)) for blocks in held), default=0) or not victims


def test_who_holds_nothing_is_not_evicted():
    says = Says({"empty": 1, "full": 500})
    candidates = [candidate("empty", 0), candidate("full")]
    assert ExampleEviction(says).select_victims(list(candidates), 4) == ["empty", "full"]
    policy = PredictiveEvictionWithML(says, order="shortest")
    assert policy.select_victims(candidates, 4) == ["full"]


def test_the_callers_list_keeps_its_order():
    says = Says({"a": 900, "b": 5, "c": 50})
    candidates = [candidate(each) for each in "abc"]
    PredictiveEvictionWithML(says, order="shortest").select_victims(candidates, 1)
    assert [each.sequence_id for each in candidates] == ["a", "b", "c"]
    assert [each.estimated_lifetime for each in candidates] == pytest.approx([18.0, 0.1, 1.0])
    ExampleEviction(says).select_victims(candidates, 1)
    assert [each.sequence_id for each in candidates] == ["b", "c", "a"]


def test_what_the_predictor_does_not_know_goes_by_the_oldest_access():
    candidates = [
        candidate("b", access=2.0),
        candidate("a", access=1.0),
        candidate("c", access=3.0),
    ]
    with pytest.raises(KeyError):
        ExampleEviction(Broken()).select_victims(list(candidates), 9)
    policy = PredictiveEvictionWithML(Broken())
    assert policy.select_victims(candidates, 12) == ["a", "b", "c"]
    # Who is known goes first: of the others nothing says that they are worth it.
    policy = PredictiveEvictionWithML(Says({"c": 700}))
    assert policy.select_victims(candidates, 12) == ["c", "a", "b"]


def test_one_bad_candidate_does_not_spoil_the_others():
    def candidates():
        # A turn that is no number: the predictor refuses the request, and with it the batch.
        return [candidate("bad", prompt_features={"turn": "first"}), candidate("good", cap=-1)]

    with pytest.raises(ValueError, match="good"):
        ExampleEviction(create_predictor("survival")).select_victims(candidates(), 1)
    asked = candidates()
    ours = PredictiveEvictionWithML(create_predictor("survival"))
    assert len(ours.select_victims(asked, 8)) == 2
    assert [each.estimated_lifetime is None for each in asked] == [True, False]


@pytest.mark.parametrize("source", ["prior", "fallback"])
def test_before_anything_was_learned_the_oldest_access_goes_first(source):
    says = Says({"new": 1500, "old": 10}, source=source)
    candidates = [candidate("new", access=9.0), candidate("old", access=1.0)]
    assert PredictiveEvictionWithML(says).select_victims(candidates, 1) == ["old"]


def test_below_the_threshold_the_engines_rule_decides():
    says = Says({"old": 100, "new": 1500}, confidence=0.4)
    candidates = [candidate("new", access=9.0), candidate("old", access=1.0)]
    assert PredictiveEvictionWithML(says).select_victims(candidates, 1) == ["new"]
    gated = PredictiveEvictionWithML(says, min_confidence=0.5)
    assert gated.select_victims(candidates, 1) == ["old"]


def test_the_prompt_is_not_generated():
    def replaced(policy, **more):
        predictor = create_predictor("survival")
        predictor.predict(PredictionRequest("r", [], 99, None))
        policy(predictor).select_victims([candidate("r", length=1000, cap=4000, **more)], 1)
        # The engine asks again, one token later.
        predictor.predict(PredictionRequest("r", [], 101, None))
        return predictor.get_metrics()["replaced"]

    # To the predictor an age that falls is another sequence: it forgets what it knew.
    assert replaced(ExampleEviction) == 1
    assert replaced(PredictiveEvictionWithML, prompt_length=900) == 0


def test_lengths_with_the_prompt_are_told_to_the_predictor_without():
    says = Says({"r": 10})
    PredictiveEvictionWithML(says).select_victims(
        [candidate("r", length=1000, cap=4000, prompt_length=900, prompt_features={"model": "m"})],
        1,
    )
    assert says.asked[0].current_length == 100
    assert says.asked[0].max_length == 3100
    assert says.asked[0].prompt_features == {"model": "m", "prompt_length": 900}


def test_ids_come_back_as_they_went_in():
    says = Says({"cmpl-7a": 10, 7: 20})
    victims = PredictiveEvictionWithML(says).select_victims([candidate("cmpl-7a"), candidate(7)], 9)
    assert sorted(map(str, victims)) == ["7", "cmpl-7a"]
    assert {type(each) for each in victims} == {int, str}


def test_the_distribution_counts_and_not_the_point_alone():
    says = Spread({"narrow": 300, "wide": 299}, {"narrow": 0.1, "wide": 1.2})
    candidates = [candidate("narrow"), candidate("wide")]
    assert PredictiveEvictionWithML(says).select_victims(candidates, 1) == ["wide"]
    assert PredictiveEvictionWithML(says, order="shortest").select_victims(candidates, 1) == [
        "narrow"
    ]


def test_nobody_is_evicted_again_and_again():
    says = Says({"long": 1500, "short": 200})
    turns = {}
    for policy in (ExampleEviction(says), PredictiveEvictionWithML(says, max_preemptions=2)):
        turns[type(policy)] = [
            policy.select_victims([candidate("long"), candidate("short")], 1)[0] for _ in range(4)
        ]
    assert turns[ExampleEviction] == ["short"] * 4
    assert turns[PredictiveEvictionWithML] == ["long", "long", "short", "short"]


def test_the_engines_own_count_of_evictions_is_believed():
    says = Says({"long": 1500, "short": 200})
    candidates = [candidate("long", preemptions=3), candidate("short")]
    assert PredictiveEvictionWithML(says).select_victims(candidates, 1) == ["short"]


def test_who_was_used_last_stays_longest():
    policy = PredictiveEvictionWithML(Broken())
    for each in "bca":
        policy.update_access(each)
    assert policy.select_victims([candidate(each) for each in "abc"], 12) == ["b", "c", "a"]


def test_metrics():
    policy = PredictiveEvictionWithML(Says({"a": 500, "b": 400, "c": 300}))
    none = policy.get_metrics()
    assert none["total_evictions"] == none["freed_blocks"] == 0
    assert isnan(none["re_prefill_rate"])
    assert isnan(none["avg_eviction_time"])
    assert isnan(none["fairness_score"])
    assert policy.select_victims([candidate(each) for each in "abc"], 5) == ["a", "b"]
    policy.update_access("a")  # it is back
    policy.update_access("a")
    assert policy.select_victims([candidate(each) for each in "ac"], 1) == ["a"]
    found = policy.get_metrics()
    assert found["strategy"] == "predictive"
    assert found["order"] == "cost-aware"
    assert found["total_evictions"] == 3
    assert found["freed_blocks"] == 12
    assert found["re_prefill_rate"] == pytest.approx(1 / 3)
    assert found["fairness_score"] == pytest.approx(9 / (2 * 5))
    assert 0.0 < found["avg_eviction_time"] < 1000.0


def test_a_victim_that_is_seen_again_was_computed_again():
    says = Says({"a": 500, "b": 400})
    used, held = PredictiveEvictionWithML(says), PredictiveEvictionWithML(says)
    for policy in (used, held):
        assert policy.select_victims([candidate("a"), candidate("b")], 8) == ["a", "b"]
    used.update_access("a")
    used.update_access("a")
    assert held.select_victims([candidate("a")], 0) == []
    for policy in (used, held):
        assert policy.get_metrics()["re_prefill_rate"] == pytest.approx(0.5)


def test_what_is_remembered_is_bounded():
    from sagellm_lifetime.policies.specification.counting import EvictionCounts

    counts = EvictionCounts(capacity=3)
    for each in range(10):
        counts.evicted([each], 1, 0.0)
    assert [counts.times(each) for each in range(10)] == [0] * 7 + [1] * 3
    counts.seen(range(10))
    assert counts.metrics()["re_prefill_rate"] == pytest.approx(0.3)


def test_an_order_nobody_knows():
    with pytest.raises(UnknownNameError, match="shortest"):
        PredictiveEvictionWithML(Says({}), order="random")
