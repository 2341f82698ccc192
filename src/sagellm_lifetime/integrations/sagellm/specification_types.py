"""The packages' objects as the types of the specification, so that one code serves both.

With these, ``PredictiveEvictionWithML`` and ``LifetimeAwarePass`` of the specification's page 2.5
run on KV handles of ``sagellm_kv_cache`` and on scheduler requests of ``sagellm_protocol``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sagellm_lifetime.core.values import number
from sagellm_lifetime.integrations.sagellm.running import RunningSequences
from sagellm_lifetime.integrations.sagellm.scores import request_id_of
from sagellm_lifetime.policies.specification import (
    EvictionCandidate,
    EvictionPriority,
    RequestPhase,
    ScheduleRequest,
)


def candidates_of(
    handles: Iterable[Any], sequences: RunningSequences, block_size: int
) -> list[EvictionCandidate]:
    """Return KV handles as candidates of page 2.3.

    A handle without a running sequence keeps its own id and counts as a sequence of its tokens.

    Args:
        handles: ``KVHandle`` objects.
        sequences: the running sequences, which know ages, prompts and caps.
        block_size: tokens per block; block ids are made up, since handles do not tell theirs.
    """
    candidates = []
    first = 0
    for handle in handles:
        request_id = request_id_of(handle)
        request = sequences.request(request_id)
        count = -(-int(handle.num_tokens) // block_size)
        metadata = handle.metadata if isinstance(handle.metadata, Mapping) else {}
        priority: Any = metadata.get("priority")
        if number(priority) is None:
            priority = EvictionPriority.NORMAL
        features = dict((request.prompt_features if request else None) or {})
        prompt = int(features.get("prompt_length", 0))
        length = int(handle.num_tokens) if request is None else prompt + request.current_length
        cap = 0 if request is None or request.max_length is None else prompt + request.max_length
        candidates.append(
            EvictionCandidate(
                sequence_id=str(handle.handle_id) if request_id is None else request_id,
                block_ids=list(range(first, first + count)),
                last_access_time=float(handle.last_access),
                access_count=int(handle.access_count),
                priority=priority,
                is_pinned=not handle.is_evictable() or int(handle.ref_count) > 1,
                sequence_length=length,
                max_length=cap,
                prompt_length=None if request is None else prompt,
                prompt_features=features or None,
            )
        )
        first += count
    return candidates


def schedule_requests_of(requests: Iterable[Any]) -> list[ScheduleRequest]:
    """Return ``SchedulerRequest`` objects of ``sagellm_protocol`` as requests of page 2.4.

    They tell the length of a prompt and not its tokens, so the token ids are zeros.
    """
    return [
        ScheduleRequest(
            request_id=str(request.request_id),
            token_ids=[0] * int(request.prompt_len),
            max_tokens=int(request.max_new_tokens),
            priority=int(request.priority),
            arrived_time=float(request.queued_at),
            prefix_cache_hit=int(request.prefix_hit_len),
            kv_blocks_needed=int(request.kv_tokens_required),
            phase=RequestPhase.DECODE if request.generated_len else RequestPhase.PREFILL,
            num_decoded_tokens=int(request.generated_len),
            prompt_features={"session_id": request.session_id} if request.session_id else None,
        )
        for request in requests
    ]
