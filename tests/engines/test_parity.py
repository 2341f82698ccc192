"""A replay and a live engine decide alike: the same arrivals, step by step."""

import pytest
from engine_help import MODEL, fitted

from sagellm_lifetime.policies.plan import PLANS
from sagellm_lifetime.replay.cost import StepCost
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.planned import WATERMARK, planned_policy
from sagellm_lifetime.replay.policies import ReplayPolicy
from sagellm_lifetime.replay.run import Run
from sagellm_lifetime.replay.trace import TraceRequest
from sagellm_lifetime.vllm.forecaster import CheckedForecaster
from sagellm_lifetime.vllm.settings import LiveSettings

CAP = 400
LIVE = "sagellm_lifetime.vllm.live:LiveScheduler"


def arrivals(n=200):
    """Long and short answers, some of whose prompts are alike; they come in two waves."""
    return [
        TraceRequest(
            f"r{i}",
            arrival=0.01 * i + 20.0 * (i >= n // 2),
            prompt_length=40 + 7 * i % 90,
            output_length=150 + 11 * i % 80 if i % 3 == 0 else 5 + i % 12,
            max_length=CAP,
            model=MODEL,
            client_id="long" if i % 3 == 0 else "short",
            row=i % 20,
        )
        for i in range(n)
    ]


def steps_of(settings, policy):
    """What every step admits, runs, preempts, and leaves in the queue, in its order."""
    run = Run(arrivals(), settings, StepCost("test", 0.02, 0.0005, 0.0001), policy)
    scheduler, steps = run.scheduler, []
    schedule = scheduler.schedule

    def watched():
        out = schedule()
        steps.append(
            {
                "new": [request.req_id for request in out.scheduled_new_reqs],
                "resumed": sorted(out.scheduled_cached_reqs.resumed_req_ids),
                "preempted": sorted(out.preempted_req_ids or ()),
                "tokens": list(out.num_scheduled_tokens.items()),
                "running": [request.request_id for request in scheduler.running],
                "waiting": [request.request_id for request in scheduler.waiting],
                "watermark": scheduler.kv_cache_manager.watermark_blocks,
            }
        )
        return out

    scheduler.schedule = watched
    run.execute()
    return run, steps


def live(predictor, name):
    """A live engine, with its settings, statistics and circuit breaker."""

    def install(scheduler, trace, run):
        from sagellm_lifetime.vllm import build

        scheduler.vllm_config.model_config.served_model_name = MODEL
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "make_predictor", lambda *_: predictor)
            # A busy machine may keep a call waiting; simulated steps are no budget.
            scheduler.switch_on(LiveSettings(mode="act", policy=name, limit_s=60.0, floor_s=60.0))

    return ReplayPolicy(name, "", LIVE, install=install)


@pytest.mark.parametrize("seats", [256, 12], ids=["memory is short", "seats are short"])
@pytest.mark.parametrize("caching", [False, True], ids=["", "prefix cache"])
@pytest.mark.parametrize("name", ["lifetime", "gittins", "reserve", "longest-first"])
def test_replay_and_live_engine_do_the_same_in_every_step(vllm, name, caching, seats):
    settings = EngineSettings(
        blocks=280 if seats > 12 else 400,
        max_num_seqs=seats,
        max_num_batched_tokens=512,
        max_model_len=2048,
        prefix_caching=caching,
    )
    plan = PLANS[name]
    replayed = planned_policy(
        name,
        "",
        plan,
        lambda _: CheckedForecaster(fitted(), learn=False),
        0.0 if plan.fit else WATERMARK,
    )
    replay, theirs = steps_of(settings, replayed)
    engine, ours = steps_of(settings, live(fitted(), name))
    for step, (in_replay, in_engine) in enumerate(zip(theirs, ours, strict=True)):
        assert in_replay == in_engine, f"step {step}"
    arrived = [request.id for request in arrivals()]
    # vLLM's newer model runner gets a resumed request as a new one, so once each.
    admitted = list(dict.fromkeys(each for step in ours for each in step["new"]))
    assert sorted(admitted) == sorted(arrived)
    assert any(len(step["waiting"]) > 10 for step in ours)
    most = max(len(step["running"]) for step in ours)
    assert most > 32 if seats > 12 else most == 12, "events are handed on many at a time, and each"
    if plan.order != "fcfs":
        assert admitted != arrived, "the queue was put in another order"
    if seats > 12 and not plan.fit:
        assert sum(len(step["preempted"]) for step in ours) > 5
    stats = engine.scheduler._service.stats()
    assert (stats["completions"], stats["breaker"]["state"]) == (len(arrived), "closed")
    assert not any(stats["breaker"]["faults"].values())
    assert replay.scheduler.advisor.steps == engine.scheduler.advisor.steps
    engine.scheduler.shutdown()
