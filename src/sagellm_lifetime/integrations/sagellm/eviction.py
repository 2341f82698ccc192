"""The eviction strategy that ``EvictionPolicy.LIFETIME_AWARE`` names, for ``sagellm_kv_cache``.

The package has the name without a strategy: its ``EvictionManager`` falls back to LRU silently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import LifetimeError, RequestError
from sagellm_lifetime.integrations.sagellm.orders import Polarity
from sagellm_lifetime.integrations.sagellm.packages import KV_CACHE, require
from sagellm_lifetime.integrations.sagellm.running import RunningSequences, sequences_or_new
from sagellm_lifetime.integrations.sagellm.scores import (
    HandleScores,
    HandleView,
    Scores,
    request_id_of,
)

require(KV_CACHE, "evicting in sageLLM")

from sagellm_kv_cache.errors import KVNoVictimError  # noqa: E402
from sagellm_kv_cache.eviction import EvictionStrategy  # noqa: E402
from sagellm_kv_cache.models import EvictionPolicy  # noqa: E402

_INSTALLED: Final = "_sagellm_lifetime_replaced"


@dataclass(frozen=True)
class Evicted:
    """Victim of the last decision.

    Attributes:
        handle_id: of the handle.
        request_id: of its sequence, None without one.
        num_tokens: freed.
        score: from 0 to 1; the highest went first.
        reason: one sentence.
    """

    handle_id: str
    request_id: str | None
    num_tokens: int
    score: float
    reason: str


def view_of(handle: Any) -> HandleView:
    """Return what a score needs of a ``KVHandle``."""
    return HandleView(
        handle_id=str(handle.handle_id),
        request_id=request_id_of(handle),
        num_tokens=int(handle.num_tokens),
        last_access=float(handle.last_access),
        created_at=float(handle.created_at),
    )


class LifetimeAwareEviction(EvictionStrategy):
    """Choose victims among KV handles: idle ones by reuse, running ones by remaining life.

    Handles are joined to sequences by ``metadata["request_id"]``. Pinned handles and shared ones
    (``ref_count`` above 1, of whose other holders the handle tells nothing) are never chosen. A
    lower class of ``metadata["priority"]`` goes before a higher one, as in ``PriorityEviction``.

    Args:
        sequences: the running sequences; none by default.
        clock: seconds on the handles' clock.
        free_tokens: tokens of the pool that are free now. The package asks for all tokens of an
            allocation, also where some are free; with this only the rest is evicted.
        polarity: of ``metadata["priority"]``.
        options: of :class:`~sagellm_lifetime.integrations.sagellm.scores.HandleScores`:
            ``order``, ``near_completion``, ``max_evictions``.
    """

    def __init__(
        self,
        sequences: RunningSequences | None = None,
        *,
        clock: Callable[[], float] | None = None,
        free_tokens: Callable[[], int] | None = None,
        polarity: Polarity = Polarity.HIGHER_FIRST,
        **options: Any,
    ) -> None:
        self.sequences = sequences_or_new(sequences)
        self.scores = HandleScores(self.sequences, **options)
        self.last: list[Evicted] = []
        """Victims of the last decision, in their order."""
        self._clock = clock
        self._free_tokens = free_tokens
        self._polarity = Polarity(polarity)

    def select_victim(
        self, candidates: Sequence[Any], num_tokens_needed: int, max_victims: int | None = None
    ) -> list[Any]:
        """Return the handles to evict, first victim first, as few as free what is needed.

        Args:
            candidates: ``KVHandle`` objects.
            num_tokens_needed: tokens that must be free; none are chosen for 0 or less.
            max_victims: most handles to evict, None for any number.

        Raises:
            KVNoVictimError: the handles that may be evicted free fewer tokens, or would take more
                than ``max_victims``. Nothing is evicted then.
        """
        self.last = []
        views = [view_of(handle) for handle in candidates]
        self.scores.observe(views)
        if self._free_tokens is not None:
            num_tokens_needed -= self._free_tokens()
        if num_tokens_needed <= 0:
            return []
        allowed = [i for i, handle in enumerate(candidates) if _may_go(handle)]
        pinned = len(candidates) - len(allowed)
        urgency = np.array([self._urgency(candidates[i]) for i in allowed])
        idle = [i for i in allowed if self.sequences.request(views[i].request_id) is None]
        if (
            max_victims is None
            and len(set(urgency.tolist())) == 1
            and sum(views[i].num_tokens for i in idle) >= num_tokens_needed
        ):  # they go before all others, so no prediction is needed
            allowed, urgency = idle, urgency[: len(idle)]
        now = (self._clock or time.time)()
        scores = self.scores.score([views[i] for i in allowed], now)
        order = np.lexsort((-scores.score, -urgency)).tolist()
        tokens = [views[i].num_tokens for i in allowed]
        chosen = _fewest(order, tokens, num_tokens_needed, max_victims)
        if chosen is None:
            # The package calls the number bytes and passes tokens.
            raise KVNoVictimError(
                num_tokens_needed,
                pinned_count=pinned,
                total_count=len(candidates),
            )
        self.last = [self._told(views[allowed[k]], scores, k) for k in chosen]
        self.scores.evicted([views[allowed[k]] for k in chosen], now)
        return [candidates[allowed[k]] for k in chosen]

    def get_policy_name(self) -> Any:
        """Return ``EvictionPolicy.LIFETIME_AWARE``."""
        return EvictionPolicy.LIFETIME_AWARE

    def _told(self, view: HandleView, scores: Scores, k: int) -> Evicted:
        request = scores.requests[k]
        if request is None:
            reason = (
                f"no sequence runs on it, unused for {scores.idle_s[k]:.1f} s, "
                f"{scores.reuses[k]} reuses seen"
            )
        else:
            (result,) = self.sequences.predictions([request])
            left = "?" if result is None else result.estimated_remaining_tokens
            reason = (
                f"its sequence has generated {request.current_length} tokens and has about "
                f"{left} to go"
            )
            if scores.spared[k]:
                reason += "; taken since nothing else was left"
        score = float(scores.score[k])
        return Evicted(view.handle_id, view.request_id, view.num_tokens, score, reason)

    def _urgency(self, handle: Any) -> float:
        metadata = handle.metadata if isinstance(handle.metadata, Mapping) else {}
        return self._polarity.urgency(metadata.get("priority", 0))


def _may_go(handle: Any) -> bool:
    return bool(handle.is_evictable()) and int(handle.ref_count) <= 1


def _fewest(
    order: Sequence[int], tokens: Sequence[int], needed: int, most: int | None
) -> list[int] | None:
    """Return the first of ``order`` that free ``needed`` tokens, without those not needed for it.

    Where that takes more than ``most``, the largest are taken; None if those do not suffice.
    """
    chosen: list[int] = []
    freed = 0
    for i in order:
        if freed >= needed:
            break
        chosen.append(i)
        freed += tokens[i]
    if freed < needed:
        return None
    for i in reversed(chosen[:-1]):
        if freed - tokens[i] >= needed:
            chosen.remove(i)
            freed -= tokens[i]
    if most is None or len(chosen) <= most:
        return chosen
    largest = sorted(order, key=lambda i: -tokens[i])[: max(most, 0)]
    if sum(tokens[i] for i in largest) < needed:
        return None
    return [i for i in order if i in set(largest)]


def install(
    manager: Any, sequences: RunningSequences | None = None, **options: Any
) -> LifetimeAwareEviction:
    """Make a manager of sageLLM evict by lifetime, and return the strategy that it uses now.

    Args:
        manager: an ``EvictionManager``, or a ``KVCacheManager`` or ``SchedulerBridge`` with one.
        sequences: the running sequences.
        options: of :class:`LifetimeAwareEviction`.

    Raises:
        LifetimeError: it is no such manager.
    """
    inner = _manager(manager)
    pool = getattr(manager, "kv_pool", None)
    if pool is not None:
        options.setdefault("free_tokens", pool.get_available_tokens)
    strategy = LifetimeAwareEviction(sequences, **options)
    uninstall_if_there(inner)  # after the options are known to be good
    setattr(inner, _INSTALLED, (strategy, inner._strategy, inner.policy))
    inner._strategy, inner.policy = strategy, EvictionPolicy.LIFETIME_AWARE
    return strategy


def uninstall(manager: Any) -> None:
    """Give a manager the strategy back that it had before :func:`install`.

    Raises:
        LifetimeError: it is no manager with an eviction strategy.
        RequestError: nothing is installed in it.
    """
    if not uninstall_if_there(_manager(manager)):
        raise RequestError("no lifetime-aware eviction is installed in this manager")


def uninstall_if_there(inner: Any) -> bool:
    """Undo :func:`install` where it was called; return True if something was installed."""
    replaced = vars(inner).pop(_INSTALLED, None)
    if replaced is None:
        return False
    ours, strategy, policy = replaced
    if inner._strategy is ours:  # else set_policy() has replaced it since
        inner._strategy, inner.policy = strategy, policy
    return True


def is_installed_in(manager: Any) -> bool:
    """Return True if a manager evicts by lifetime now."""
    return isinstance(_manager(manager)._strategy, LifetimeAwareEviction)


def _manager(manager: Any) -> Any:
    inner = getattr(manager, "eviction_manager", manager)
    if not (hasattr(inner, "_strategy") and hasattr(inner, "policy")):
        raise LifetimeError(
            f"a {type(manager).__name__} has no eviction strategy: give an EvictionManager, a "
            f"KVCacheManager or a SchedulerBridge of {KV_CACHE.distribution} {KV_CACHE.tested}"
        )
    return inner
