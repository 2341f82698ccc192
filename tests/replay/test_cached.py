"""What the engine's prefix cache spares a sequence."""

from dataclasses import replace

import pytest

from sagellm_lifetime.replay.engine import EngineSettings, build_scheduler, make_requests
from sagellm_lifetime.replay.trace import TraceRequest

BLOCK, PROMPT = 16, 100


def engine(vllm, *, caching):
    from sagellm_lifetime.vllm.scheduler import LifetimeScheduler

    settings = EngineSettings(blocks=100, block_size=BLOCK, prefix_caching=caching)
    scheduler = build_scheduler(settings, 1024, LifetimeScheduler)
    make = make_requests(settings, 1024, None)
    one = TraceRequest("one", 0.0, PROMPT, 50, given=tuple(range(PROMPT)))
    same = replace(one, id="same")
    other = replace(one, id="other", given=tuple(range(48)) + tuple(range(500, 552)))
    requests = [make(each, 0.0) for each in (one, same, other)]
    scheduler.add_request(requests[0])
    scheduler.schedule()
    return scheduler, requests


@pytest.mark.parametrize(("caching", "same", "other"), [(True, 96, 48), (False, 0, 0)])
def test_of_a_waiting_one_what_the_cache_has(vllm, caching, same, other):
    scheduler, requests = engine(vllm, caching=caching)
    for request in requests[1:]:
        scheduler.add_request(request)
    assert [scheduler.cached_tokens(request) for request in requests[1:]] == [same, other]


@pytest.mark.parametrize(("caching", "shared"), [(True, [96, 96, 48]), (False, [0, 0, 0])])
def test_of_a_running_one_what_others_hold(vllm, caching, shared):
    scheduler, requests = engine(vllm, caching=caching)
    assert scheduler.cached_tokens(requests[0]) == 0  # it is alone
    for request in requests[1:]:
        scheduler.add_request(request)
    scheduler.schedule()
    assert [scheduler.cached_tokens(request) for request in requests] == shared
