"""The policies of this package through vLLM's scheduler: they hold what they say."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from sagellm_lifetime import create_predictor
from sagellm_lifetime.policies.forecast import KnownLengths, MaxTokens
from sagellm_lifetime.policies.plan import PLANS, Plan
from sagellm_lifetime.replay.compare import replay
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.planned import planned_policies
from sagellm_lifetime.replay.policies import POLICIES
from sagellm_lifetime.replay.trace import at_rate

# Preemptions, steps and mean latency of each policy on the small trace, at a rate at which no two
# policies do the same, so that no change goes unseen.
GOLDEN = {
    "lifetime": (8, 3726, 17.1267),
    "lifetime-oracle": (20, 3857, 15.8943),
    "sjf": (10, 4228, 17.004),
    "sjf-oracle": (13, 3834, 15.5045),
    "gittins": (9, 4038, 17.1185),
    "gittins-oracle": (13, 3901, 16.698),
    "evict-shortest": (11, 4001, 19.1533),
    "evict-shortest-oracle": (17, 3634, 20.5196),
    "evict-longest": (6, 3921, 16.8341),
    "evict-longest-oracle": (13, 3817, 16.6724),
    "evict-engine": (9, 3915, 18.9829),
    "evict-engine-oracle": (13, 3570, 18.7777),
    "longest-first": (43, 3425, 20.284),
    "longest-first-oracle": (49, 3287, 22.9101),
    "reserve": (0, 4179, 22.4227),
    "reserve-oracle": (0, 3808, 20.99),
    "fair-input": (31, 3467, 20.2251),
    "reserve-max-tokens": (0, 21508, 113.012),
    "reserve-ratio": (0, 14535, 80.3017),
    "reserve-average": (53, 3390, 20.1097),
}


@pytest.fixture(scope="module")
def policies(frame):
    return planned_policies(create_predictor("survival").fit(frame))


def test_every_policy_is_tested(policies):
    assert list(policies) == list(GOLDEN)


@pytest.mark.parametrize("name", list(GOLDEN))
def test_golden_counts(vllm, name, policies, trace, tight, cost):
    busy = at_rate(trace, 10.0)
    found = replay(busy, tight, cost, policies[name]).metrics
    again = replay(busy, tight, cost, policies[name]).metrics
    counts, repeated = (
        (each["preemptions"], each["steps"], float(f"{each['mean_latency_s']:.6g}"))
        for each in (found, again)
    )
    assert counts == repeated
    assert counts == GOLDEN[name]


def test_no_two_policies_do_the_same():
    assert len(set(GOLDEN.values())) == len(GOLDEN)


def test_every_plan_is_replayed_beside_an_oracle(policies):
    assert {f"{name}-oracle" for name in PLANS} <= set(policies)


class Overheard:
    """A predictor, and all that reaches it; a clone is overheard, too."""

    def __init__(self, predictor, told):
        self._predictor, self._told = predictor, told

    def clone(self):
        return Overheard(self._predictor.clone(), self._told)

    def __getattr__(self, name):
        found = getattr(self._predictor, name)
        if not callable(found):
            return found

        def call(*args, **options):
            plain = [each.tolist() if isinstance(each, np.ndarray) else each for each in args]
            self._told.append(deepcopy((name, plain, options)))
            return found(*args, **options)

        return call


def told_before_an_end(frame, trace, engine, cost, name):
    """What reaches the predictor of a policy until it is told that a request has ended."""
    told = []
    predictor = Overheard(create_predictor("survival").fit(frame), told)
    result = replay(trace, engine, cost, planned_policies(predictor)[name]).result
    assert (result.finish > result.arrival).all()
    ends = [name for name, *_ in told].index("update")
    return told[:ends]


@pytest.mark.parametrize("name", ["lifetime", "reserve"])
def test_everything_finishes_and_nothing_leaks(vllm, frame, trace, cost, name):
    """Of a length nothing is told before the end: of others as long, the predictor hears more, but
    until then the same, in the same order."""
    engine = EngineSettings(blocks=130, max_num_seqs=16)  # tight from the start
    open_ended = [
        replace(one, max_length=800 if k % 2 else None, finish_reason="stop")
        for k, one in enumerate(at_rate(trace[:30], 20.0))
    ]
    soon = [replace(one, output_length=150 + 7 * k % 20) for k, one in enumerate(open_ended)]
    late = [replace(one, output_length=700 - 11 * k % 90) for k, one in enumerate(open_ended)]
    heard, longer = (told_before_an_end(frame, each, engine, cost, name) for each in (soon, late))
    assert sum(each == "predict" for each, *_ in heard) > 20
    assert sum(each == "distributions" for each, *_ in heard) > 5
    assert len(heard) < len(longer)
    assert heard == longer[: len(heard)]


def test_no_harm_where_nothing_waits(vllm, policies, trace, cost, tight):
    relaxed, roomy = at_rate(trace, 0.05), replace(tight, blocks=20_000)
    ours = replay(relaxed, roomy, cost, policies["lifetime"]).result
    stock = replay(relaxed, roomy, cost, POLICIES["fcfs"]).result
    assert np.array_equal(ours.finish, stock.finish)
    assert ours.steps == stock.steps


def test_an_oracle_is_not_worse_than_what_it_knows_better(vllm, policies, trace, tight, cost):
    ours, oracle, stock = (
        replay(trace, tight, cost, policy).metrics["mean_latency_s"]
        for policy in (policies["lifetime"], policies["lifetime-oracle"], POLICIES["fcfs"])
    )
    assert oracle <= ours * 1.05
    assert oracle < stock


def test_reserving_for_the_cap_never_preempts(vllm, policies, trace, tight, cost):
    capped = [replace(request, max_length=request.output_length + 10) for request in trace]
    found = replay(capped, tight, cost, policies["reserve-max-tokens"]).metrics
    assert found["preemptions"] == 0
    assert found["reserved_unused_block_s"] > 0


def test_arrival_order_without_a_gate_is_vllms_own(vllm, policies, trace, tight, cost):
    from sagellm_lifetime.replay.planned import planned_policy

    plain = planned_policy(
        "plain", "", Plan(order="fcfs", evict=""), lambda _: MaxTokens(4096), 0.0
    )
    ours = replay(trace, tight, cost, plain).result
    stock = replay(trace, tight, cost, POLICIES["fcfs"]).result
    assert np.array_equal(ours.finish, stock.finish)


def test_a_reservation_that_believes_nothing_is_vllms_own(vllm, frame, trace, tight, cost):
    from sagellm_lifetime.policies.forecast import PredictedLengths
    from sagellm_lifetime.replay.planned import planned_policy

    predictor = create_predictor("survival").fit(frame)

    def asked(_):
        return PredictedLengths(predictor.clone(), uses_confidence=True)

    plan = Plan(order="fcfs", evict="", fit=0.99, min_confidence=1.0)
    stock = replay(trace, tight, cost, POLICIES["fcfs"]).result
    uses_confidence = replay(trace, tight, cost, planned_policy("", "", plan, asked, 0.0)).result
    believing = planned_policy("", "", replace(plan, min_confidence=0.0), asked, 0.0)
    assert np.array_equal(uses_confidence.finish, stock.finish)
    assert not np.array_equal(replay(trace, tight, cost, believing).result.finish, stock.finish)


def test_an_ended_request_is_forgotten(vllm, trace, tight, cost):
    from sagellm_lifetime.policies.forecast import PredictedLengths
    from sagellm_lifetime.policies.plan_advisor import PlanAdvisor
    from sagellm_lifetime.replay.planned import advised_policy

    seen = []

    def make(_, pool):
        forecaster = PredictedLengths(create_predictor("survival"))
        seen.append(
            PlanAdvisor(
                Plan(),
                forecaster,
                total_blocks=pool.blocks,
                block_size=pool.block_size,
                clock=pool.clock,
                watermark=0.05,
            )
        )
        return seen[-1]

    replay(trace, tight, cost, advised_policy("held", "", make))
    (advisor,) = seen
    assert not advisor._records
    assert abs(advisor._backlog) < 1.0
    metrics = advisor._forecaster.predictor.get_metrics()
    assert metrics["running"] == 0
    assert metrics["completions"] + metrics["censored"] == len(trace)


def test_confidence_is_asked_for_where_there_is_a_threshold(vllm, frame, trace, tight, cost):
    predictor = create_predictor("survival").fit(frame)
    believed, doubted = (
        replay(trace, tight, cost, planned_policies(predictor, doubt)["lifetime"]).result.finish
        for doubt in (0.0, 1.0)
    )
    assert not np.array_equal(believed, doubted)


def test_known_lengths_are_the_oracles(trace):
    forecast = KnownLengths({r.id: r.output_length for r in trace}).forecast(
        [r.id for r in trace], np.zeros(len(trace), dtype=np.int64)
    )
    assert forecast.expected() == pytest.approx([r.output_length for r in trace])


def test_victims_are_chosen_by_what_is_left_now(vllm, policies, trace, tight, cost, monkeypatch):
    from sagellm_lifetime.policies.plan_advisor import PlanAdvisor
    from sagellm_lifetime.policies.state import SurvivalForecast

    lengths = {request.id: request.output_length for request in trace}
    choose, gaps = PlanAdvisor.victims, []

    def watched(advisor, running):
        order = choose(advisor, running)
        for view in running:
            record = advisor._records[view.id]
            said = SurvivalForecast(record.survival[None], np.ones(1)).expected()[0]
            gaps.append(said - (lengths[view.id] - view.generated))
        return order

    monkeypatch.setattr(PlanAdvisor, "victims", watched)
    replay(trace, tight, cost, policies["lifetime-oracle"])
    assert len(gaps) > 100
    assert min(gaps) >= 0
    assert max(gaps) <= 8
