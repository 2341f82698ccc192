"""Traces through sageLLM's real ``KVPool``: memory set aside, overflows, stalls, fragmentation.

Every running sequence generates a token a step; requests wait in arrival order; the pool is full
most of the time. A rule says what is allocated at the start and ahead of need, and who is admitted.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagellm_lifetime import PredictionRequest
from sagellm_lifetime.integrations.sagellm import (
    LifetimeAllocationPlanner,
    RunningSequences,
    SageLLMPool,
)
from sagellm_lifetime.policies.specification import BlockAllocationRequest

BLOCK = 16


@dataclass
class Job:
    """A request of the trace."""

    name: str
    prompt: int
    length: int
    features: dict[str, Any]
    generated: int = 0
    again: bool = False


class ByRatio:
    """Reserve a share of ``max_tokens`` at the start; allocate block by block beyond it."""

    def __init__(self, pool: SageLLMPool, cap: int, ratio: float) -> None:
        self.pool, self.cap, self.ratio = pool, cap, ratio
        self.blocks: dict[str, list[int]] = {}

    def start(self, job: Job) -> bool:
        tokens = job.prompt + max(round(self.ratio * self.cap), job.generated + 1)
        wish = BlockAllocationRequest(-(-tokens // BLOCK), job.name)
        if self.pool.get_free_blocks() < wish.num_blocks:
            return False
        self.blocks[job.name] = self.pool.allocate(wish)
        return True

    def ahead(self) -> None:
        """Nothing is allocated ahead."""

    def held(self, job: Job) -> int:
        return len(self.blocks[job.name])

    def grow(self, job: Job) -> None:
        """Allocate a block now; a MemoryError where there is none."""
        self.blocks[job.name] += self.pool.allocate(BlockAllocationRequest(1, job.name))

    def progressed(self, job: Job) -> None:
        """Nobody is told."""

    def ended(self, job: Job, step: int, *, finished: bool) -> None:
        self.pool.free(self.blocks.pop(job.name))


class ByPlanner:
    """The planner: room for the predicted peak, blocks ahead of need."""

    def __init__(
        self, pool: SageLLMPool, cap: int, predictor: Any, fit: float, lead: int, chance: float
    ) -> None:
        self.pool, self.cap = pool, cap
        self.sequences = RunningSequences(predictor)
        self.planner = LifetimeAllocationPlanner(
            pool, self.sequences, block_size=BLOCK, fit=fit, lead=lead, min_probability=chance
        )

    def start(self, job: Job) -> bool:
        if job.name not in self.sequences:
            features = {**job.features, "prompt_length": job.prompt}
            self.sequences.arrived(PredictionRequest(job.name, [], 0, self.cap, features))
        self.sequences.progressed(job.name, job.generated)
        if not self.planner.admits(job.name):
            return False
        self.planner.start(job.name)
        return True

    def ahead(self) -> None:
        self.planner.carry_out(self.planner.plan())

    def held(self, job: Job) -> int:
        return self.planner.held(job.name)

    def grow(self, job: Job) -> None:
        self.planner.make_room(job.name)

    def progressed(self, job: Job) -> None:
        self.sequences.progressed(job.name, job.generated)

    def ended(self, job: Job, step: int, *, finished: bool) -> None:
        self.planner.ended(job.name)
        if finished:
            self.sequences.finished(job.name, job.length, seconds=0.03 * job.length)


def serve(jobs: list[Job], rule: Any, pool: SageLLMPool, tokens: int) -> dict[str, float]:
    """Serve all jobs, all waiting from the start, and return the figures.

    ``idle`` and ``unused`` are shares of the pool while somebody waits: all that holds no token,
    and the part of it that is allocated to somebody.
    """
    waiting = deque(jobs)
    running: list[Job] = []
    counts: Counter[str] = Counter()
    alloc_s = 0.0
    while waiting or running:
        while waiting and rule.start(waiting[0]):
            running.append(waiting.popleft())
        assert running, "the pool is too small for one request"
        if waiting:
            used = sum(job.prompt + job.generated for job in running)
            held = sum(rule.held(job) for job in running) * BLOCK
            tail = sum(-(job.prompt + job.generated) % BLOCK for job in running)
            counts.update(time=tokens, idle=tokens - used, unused=held - used, tail=tail)
        counts["steps"] += 1
        for job in list(running):
            if job not in running:
                continue
            while job.prompt + job.generated + 1 > rule.held(job) * BLOCK:
                counts["stalls"] += 1
                began = time.perf_counter()
                try:
                    rule.grow(job)
                except MemoryError:
                    victim = running.pop()
                    rule.ended(victim, counts["steps"], finished=False)
                    waiting.appendleft(victim)
                    counts["overflows"] += 1
                    if victim is job:
                        break
                alloc_s += time.perf_counter() - began
            if job not in running:
                continue
            job.generated += 1
            rule.progressed(job)
            counts["tokens"] += 1
            if job.generated >= job.length:
                running.remove(job)
                rule.ended(job, counts["steps"], finished=True)
        rule.ahead()
    return {
        "idle": counts["idle"] / max(counts["time"], 1),
        "unused": counts["unused"] / max(counts["time"], 1),
        "tail": counts["tail"] / max(counts["time"], 1),
        "overflows": counts["overflows"] / len(jobs),
        "stalls": 1000 * counts["stalls"] / counts["tokens"],
        "alloc_us": 1e6 * alloc_s / max(counts["stalls"], 1),
        "steps": float(counts["steps"]),
    }


def jobs_of(rows: list[dict[str, Any]], cap: int) -> list[Job]:
    """Return the jobs of a history; answers longer than the cap are cut there."""
    jobs = []
    for i, row in enumerate(rows):
        names = ("client_id", "model", "prefix_hashes", "session_id", "turn")
        features = {k: row[k] for k in names if row.get(k) is not None}
        jobs.append(Job(f"j-{i}", row["prompt_length"], min(row["actual_length"], cap), features))
    return jobs


def cap_of(lengths: np.ndarray) -> int:
    """Return the ``max_tokens`` of a trace: its longest training answer, up to a power of two."""
    return int(2 ** np.ceil(np.log2(lengths.max())))
