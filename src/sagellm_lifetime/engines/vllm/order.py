"""The order in which vLLM would have its sequences, after somebody else had them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def as_vllm(requests: Iterable[Any]) -> list[Any]:
    """A queue or the running sequences, first come first.

    vLLM puts a preempted sequence at the head of its queue, and those still in prefill behind the
    others that run, since they came last.
    """
    return sorted(
        requests,
        key=lambda r: (
            r.is_prefill_chunk and r.num_computed_tokens > 0,
            not (r.num_preemptions and r.num_computed_tokens == 0),
            r.arrival_time,
        ),
    )
