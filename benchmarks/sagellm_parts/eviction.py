"""Traces through sageLLM's real ``KVCacheManager`` under pressure, with a strategy of eviction.

A simulated engine: waiting requests start in arrival order, every running one generates a token a
step, a step costs ``STEP_S`` and each token of prefill ``PREFILL_S``. Memory is the package's: a
handle for the part of a prompt that is not cached, then one for every ``GROWTH`` generated tokens.
A prompt is read from the handles that hold its beginning; what was evicted is computed again.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.integrations.sagellm import RunningSequences
from sagellm_lifetime.integrations.sagellm.eviction import install

STEP_S, PREFILL_S, GROWTH, TICK = 0.03, 0.0001, 256, 16
STRATEGIES = (
    "lru",
    "fifo",
    "ttl",
    "lifetime",
    "lru, free memory first",
    "reuse alone",
    "lifetime, shortest first",
)


@dataclass
class Request:
    """One request: its prompt as keys of parts with their tokens."""

    name: str
    at: float
    prompt: int
    length: int
    parts: list[tuple[Any, int]]
    keep: Any
    features: dict[str, Any]
    after: str | None = None
    """Request whose end it waits for: the turn before."""
    generated: int = 0
    handles: OrderedDict[Any, Any] = field(default_factory=OrderedDict)
    started: float = 0.0
    preempted: int = 0


def sessions(frame: pl.DataFrame, rng: np.random.Generator, count: int, every_s: float) -> list:
    """Claude Code: whole sessions, each starting at a moment of its own."""
    names = frame["session_id"].unique(maintain_order=True).to_list()
    requests, start = [], 0.0
    for name in rng.permutation(names)[:count]:
        start += rng.exponential(every_s)
        parts: list[tuple[Any, int]] = []
        before = None
        turns = frame.filter(pl.col("session_id") == name).sort("turn").to_dicts()
        for row in turns[:40]:
            held = sum(size for _, size in parts)
            fresh = row["prompt_length"] - held
            if fresh <= 0:  # the client has compacted its context: nothing of it is cached
                parts, fresh = [], row["prompt_length"]
            key = (name, row["turn"])
            parts = [*parts, ((*key, "prompt"), fresh)]
            features = {k: row[k] for k in ("client_id", "session_id", "turn", "model")}
            requests.append(
                Request(f"{name}-{row['turn']}", start + row["arrival_time"], row["prompt_length"],
                        row["actual_length"], parts, (*key, "answer"), features, before)
            )  # fmt: skip
            parts = [*parts, ((*key, "answer"), row["actual_length"])]
            before = requests[-1].name
    return sorted(requests, key=lambda request: request.at)


def prefixes(frame: pl.DataFrame, count: int, slower: float) -> list:
    """Mooncake: prompts as their blocks of 512 tokens; a run of blocks not yet cached is a part."""
    requests = []
    for i, row in enumerate(frame.head(count).to_dicts()):
        parts = [(h, 512) for h in row["prefix_hashes"]]
        short = row["prompt_length"] - 512 * (len(parts) - 1)
        parts[-1] = (parts[-1][0], short)
        # What the model reads of it, as a history has it.
        features = {"prefix_hashes": row["prefix_hashes"]}
        requests.append(Request(f"m-{i}", row["arrival_time"] * slower, row["prompt_length"],
                                row["actual_length"], parts, ("m", i), features))  # fmt: skip
    return requests


def _free_first(manager: Any) -> Any:
    """Return the package's LRU, which evicts only what is missing beside the free memory."""
    from sagellm_kv_cache.eviction import LRUEviction

    class Strategy(LRUEviction):
        def select_victim(self, candidates: Any, num_tokens_needed: int, most: Any = None) -> Any:
            missing = num_tokens_needed - manager.kv_pool.get_available_tokens()
            return super().select_victim(candidates, missing, most) if missing > 0 else []

    return Strategy()


class Engine:
    """The simulated engine around a real manager."""

    def __init__(self, requests: list, tokens: int, strategy: str, predictor: Any) -> None:
        from sagellm_kv_cache import EvictionPolicy, KVCacheManager

        policy = {"lru": EvictionPolicy.LRU, "fifo": EvictionPolicy.FIFO}.get(strategy)
        policy = EvictionPolicy.TTL if strategy == "ttl" else policy or EvictionPolicy.LRU
        self.manager = KVCacheManager(tokens, 128, eviction_policy=policy)
        self.sequences = RunningSequences(predictor)
        if strategy.startswith(("lifetime", "reuse")):
            order = {"lifetime": "cost-aware", "reuse alone": "engine"}.get(strategy, "shortest")
            install(self.manager, self.sequences, order=order)
        if strategy == "lru, free memory first":
            self.manager.eviction_manager._strategy = _free_first(self.manager)
        self.now = 0.0
        self.requests = requests
        self.index: dict[Any, Any] = {}
        """Handle that holds each part."""
        self.keys: dict[Any, list] = {}
        self.running: dict[str, Request] = {}
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.spent_s = 0.0

    def run(self) -> dict[str, float]:
        """Serve all requests, and return the figures."""
        with patch("time.time", lambda: self.now):
            began = time.perf_counter()
            self._serve()
            self.counts["wall"] = round(time.perf_counter() - began)
        waits = np.array(self.latencies)
        return {
            "hit": self.counts["hit"] / self.counts["prompt"],
            "recomputed": self.counts["recomputed"] / len(self.requests),
            "preempted": self.counts["preempted"] / len(self.requests),
            "prefill_s": PREFILL_S * (self.counts["computed"] + self.counts["recomputed"]),
            "makespan_s": self.now,
            "mean_s": float(waits.mean()),
            "p99_s": float(np.quantile(waits, 0.99)),
            "strategy_s": self.spent_s,
            "wall_s": self.counts["wall"],
        }

    def _serve(self) -> None:
        coming = deque(self.requests)
        later: dict[str, list[Request]] = {}
        open_ = {request.name for request in self.requests}
        ready: list[tuple[float, int, Request]] = []
        number = 0
        while coming or ready or self.running or later:
            while coming and coming[0].at <= self.now:
                request = coming.popleft()
                if request.after in open_:
                    later.setdefault(str(request.after), []).append(request)
                    continue
                number += 1
                heapq.heappush(ready, (request.at, number, request))
            while ready and len(self.running) < 64 and self._start(ready[0][2]):
                heapq.heappop(ready)
            if not self.running:
                if not coming:
                    assert not ready, "the pool is too small for one request"
                    break
                self.now = max(self.now, coming[0].at)
                continue
            self.now += TICK * STEP_S
            for request in list(self.running.values()):
                if request.name not in self.running:
                    continue
                request.generated = min(request.generated + TICK, request.length)
                if not self._grow(request):
                    self._release(request, kept=False)
                    number += 1
                    heapq.heappush(ready, (request.at, number, request))
                elif request.generated >= request.length:
                    self._end(request)
                    open_.discard(request.name)
                    for follower in later.pop(request.name, []):
                        number += 1
                        follower.at = max(follower.at, self.now)
                        heapq.heappush(ready, (follower.at, number, follower))

    # -- one request ---------------------------------------------------------------------------

    def _start(self, request: Request) -> bool:
        hits, tokens = self._cached(request)
        missing = request.prompt + request.generated - tokens
        free = self.manager.kv_pool.get_available_tokens()
        # As engines do, admission takes what nobody runs on, and preempts nobody.
        idle = sum(h.num_tokens for h in self.keys_of_idle(exclude={id(h) for h in hits}))
        if missing > free + idle:
            return False
        for handle in hits:
            self.manager.kv_pool.pin(handle)
            handle.metadata["request_id"] = request.name
        again = request.preempted > 0
        handle = self._alloc(request, missing) if missing > 0 else None
        for hit in hits:
            self.manager.kv_pool.unpin(hit)
        if missing > 0 and handle is None:
            return False
        for hit in hits:
            hit.touch()
            if any(id(hit) in map(id, other.handles.values()) for other in self.running.values()):
                hit.incr_ref()
            request.handles[id(hit)] = hit
        if handle is not None:
            self._hold(request, handle, [key for key, _ in request.parts if key not in self.index])
        self.counts["prompt"] += 0 if again else request.prompt
        self.counts["hit"] += 0 if again else min(tokens, request.prompt)
        self.counts["recomputed" if again else "computed"] += missing
        self.now += PREFILL_S * missing
        self.running[request.name] = request
        features = {**request.features, "prompt_length": request.prompt, "arrival_time": request.at}
        if request.name not in self.sequences:
            self.sequences.arrived(PredictionRequest(request.name, [], 0, None, features))
        return True

    def keys_of_idle(self, exclude: set[int]) -> list[Any]:
        """Return the handles that no running request holds."""
        held = {id(h) for request in self.running.values() for h in request.handles.values()}
        handles = self.manager.kv_pool.handles.values()
        return [h for h in handles if id(h) not in held and id(h) not in exclude]

    def _cached(self, request: Request) -> tuple[list[Any], int]:
        handles: OrderedDict[int, Any] = OrderedDict()
        tokens = 0
        for key, size in request.parts:
            holders = self.index.get(key)
            if holders is None:
                break
            handles.update((id(handle), handle) for handle in holders)
            tokens += size
        return list(handles.values()), tokens

    def _grow(self, request: Request) -> bool:
        there = self.manager.kv_pool.handles
        lost = [key for key, handle in request.handles.items() if handle.handle_id not in there]
        for key in lost:
            del request.handles[key]
        if lost:  # a strategy has taken memory that the sequence runs on: it starts again
            return False
        for handle in request.handles.values():
            handle.last_access = self.now
        self.sequences.progressed(request.name, request.generated)
        held = sum(handle.num_tokens for handle in request.handles.values())
        if request.prompt + request.generated <= held:
            return True
        handle = self._alloc(request, GROWTH)
        if handle is None:
            return False
        self._hold(request, handle, [])
        return True

    def _alloc(self, request: Request, tokens: int) -> Any:
        from sagellm_kv_cache.errors import KVCacheError

        mine = list(request.handles.values())
        for handle in mine:
            self.manager.kv_pool.pin(handle)
        began = time.perf_counter()
        try:
            return self.manager.alloc(tokens, metadata={"request_id": request.name})
        except KVCacheError:
            return None
        finally:
            self.spent_s += time.perf_counter() - began
            for handle in mine:
                self.manager.kv_pool.unpin(handle)
            self._forget_evicted()

    def _forget_evicted(self) -> None:
        for handle_id in [h for h in self.keys if h not in self.manager.kv_pool.handles]:
            for key in self.keys.pop(handle_id):
                self.index.pop(key, None)

    def _hold(self, request: Request, handle: Any, keys: list) -> None:
        request.handles[id(handle)] = handle
        self.keys[handle.handle_id] = keys
        self.index.update(dict.fromkeys(keys, (handle,)))

    def _release(self, request: Request, *, kept: bool) -> None:
        del self.running[request.name]
        if not kept:
            request.preempted += 1
            self.counts["preempted"] += 1
        for handle in request.handles.values():
            if handle.ref_count > 1:
                handle.decr_ref()
            elif not kept and not self.keys[handle.handle_id]:
                self.manager.free(handle)
                self.keys.pop(handle.handle_id)
        request.handles.clear()

    def _end(self, request: Request) -> None:
        answer = [h for h in request.handles.values() if not self.keys[h.handle_id]]
        if answer:
            self.keys.update((handle.handle_id, [request.keep]) for handle in answer)
            self.index[request.keep] = tuple(answer)
        self._release(request, kept=True)
        seconds = self.now - request.at
        self.latencies.append(seconds)
        self.sequences.finished(request.name, request.length, seconds=seconds)


def trained(frame: pl.DataFrame) -> Any:
    """Return a predictor fitted on rows that are not served."""
    predictor = create_predictor("survival")
    predictor.fit(frame)
    return predictor


def plain(frame: pl.DataFrame, count: int, faster: float) -> list:
    """A trace without shared prefixes: every prompt is a part of its own."""
    requests = []
    first = frame["arrival_time"][0]
    for i, row in enumerate(frame.head(count).to_dicts()):
        features = {"client_id": row.get("client_id")} if row.get("client_id") else {}
        at, prompt = (row["arrival_time"] - first) / faster, row["prompt_length"]
        parts = [((i, "prompt"), prompt)]
        length, keep = row["actual_length"], (i, "answer")
        requests.append(Request(f"p-{i}", at, prompt, length, parts, keep, features))
    return requests
