"""The specification's import lines, and its two integration examples on both kinds of types."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sagellm_help import Tells, running

from sagellm_lifetime.policies import specification

LINES = (
    "from sage.llm.engines.sagellm.kv_policy.lifetime import "
    "LifetimePredictorProtocol, PredictionRequest",
    "from sage.llm.engines.sagellm.kv_policy.lifetime import "
    "LSTMLifetimePredictor, PredictionRequest",
    "from sage.llm.engines.sagellm.kv_policy.lifetime import LifetimePredictorProtocol",
    "from sage.llm.engines.sagellm.scheduler_ir import OptimizationPass",
    "from sage.llm.engines.sagellm.kv_runtime.kv_pool import "
    "KVPoolProtocol, BlockAllocationRequest",
    "from sage.llm.engines.sagellm.kv_policy.eviction import EvictionCandidate",
)
"""As they stand on the pages 2.2 to 2.5."""


@pytest.mark.parametrize("line", LINES)
def test_an_import_line_works_as_it_is_written(line):
    exec(line, {})
    exec(line.replace("engines.", ""), {})


def test_both_paths_give_the_same_objects():
    from sage.llm.engines.sagellm import scheduler_ir as written
    from sage.llm.sagellm import scheduler_ir as ours

    assert written.__all__ == ours.__all__
    assert written.OptimizationPass is ours.OptimizationPass is specification.OptimizationPass


def test_the_folders_above_are_namespaces():
    code = (
        "import sage.llm.engines.sagellm.kv_policy as a, sage.llm.engines.sagellm.kv_runtime as b\n"
        "import sage.llm.engines.sagellm as c, sage.llm.engines as d, sage.llm as e, sage as f\n"
        "print([m.__file__ for m in (a, b, c, d, e, f) if getattr(m, '__file__', None)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def kinds(example):
    """The example as the page has it, and the repaired class."""
    sys.path.insert(0, str(example))
    try:
        import specification_examples
    finally:
        sys.path.remove(str(example))
    return specification_examples


@pytest.fixture(params=["example", "repaired"])
def classes(request):
    examples = kinds(request.path.parents[1] / "policies")
    if request.param == "example":
        return examples.ExampleEviction, examples.ExamplePass
    return (
        lambda predictor: specification.PredictiveEvictionWithML(predictor, order="shortest"),
        lambda predictor: specification.LifetimeAwarePass(predictor, order="shortest"),
    )


TOTALS = {"1": 400, "2": 90, "3": 900}


@pytest.mark.parametrize("types", ["specification", "packages"])
def test_eviction(classes, types, request):
    sequences = running(TOTALS)
    if types == "specification":
        candidates = [
            specification.EvictionCandidate(name, list(range(10 * int(name), 10 * int(name) + 7)),
                                            0.0, 0, 1, False)
            for name in TOTALS
        ]  # fmt: skip
    else:
        kv_cache = request.getfixturevalue("kv_cache")
        from sagellm_lifetime.integrations.sagellm.specification_types import candidates_of

        pool = kv_cache.KVPool(10_000, 16)
        handles = [
            pool.alloc(100, "fp16", "contiguous", "cpu", {"request_id": name}) for name in TOTALS
        ]
        candidates = candidates_of(handles, sequences, 16)
        assert [len(candidate.block_ids) for candidate in candidates] == [7, 7, 7]
    assert classes[0](sequences.predictor).select_victims(candidates, 8) == ["2", "1"]


@pytest.mark.parametrize("types", ["specification", "packages"])
def test_the_pass(classes, types, request):
    if types == "specification":
        requests = [specification.ScheduleRequest(name, [0] * 20, 1000) for name in TOTALS]
    else:
        kv_cache = request.getfixturevalue("kv_cache")
        from sagellm_kv_cache.models import RequestType

        from sagellm_lifetime.integrations.sagellm.specification_types import schedule_requests_of

        requests = schedule_requests_of(
            kv_cache.SchedulerRequest(request_id=name, trace_id="t", prompt_len=20,
                                      max_new_tokens=1000, request_type=RequestType.PREFILL)
            for name in TOTALS
        )  # fmt: skip
    # The example calls int() on ids.
    predictor = Tells(TOTALS | {int(name): total for name, total in TOTALS.items()})
    ordered = classes[1](predictor).apply(requests, [], 10_000)
    assert [each.request_id for each in ordered] == ["2", "1", "3"]
    assert ordered[0].estimated_remaining_tokens == 90


def test_pinned_and_shared_handles_are_pinned_candidates(kv_cache):
    from sagellm_lifetime.integrations.sagellm.specification_types import candidates_of

    pool = kv_cache.KVPool(1000, 16)
    free, pinned, shared = (pool.alloc(16, "fp16", "contiguous", "cpu") for _ in range(3))
    pinned.pin()
    shared.incr_ref()
    free.metadata["priority"] = "high"  # no number: it counts as none
    found = candidates_of([free, pinned, shared], running({}), 16)
    assert [candidate.is_pinned for candidate in found] == [False, True, True]
    assert found[0].sequence_id == str(free.handle_id)
