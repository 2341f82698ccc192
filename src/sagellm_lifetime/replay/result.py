"""The result of one replayed run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

SAMPLES = 2000
"""Largest number of points of memory over time."""


@dataclass
class RunResult:
    """Times and counts of a run.

    Times are in simulated seconds; arrays have one entry per request, in the order of the trace.

    Attributes:
        arrival: time of arrival.
        first: time of the first token.
        finish: time of the last token.
        waited: seconds not running, before the first admission and while preempted.
        prompt: prompt tokens.
        output: generated tokens.
        preempted: number of preemptions.
        steps: steps that computed something.
        preemptions: of all requests together.
        recomputed_tokens: prompt and generated tokens computed again after a preemption, without
            those that were still in the prefix cache.
        cached_tokens: prompt tokens found in the prefix cache on first admission.
        prefill_tokens: tokens computed as prefill, recomputed ones included.
        reserved_unused_block_s: blocks free but reserved by the policy (its reserve, or the
            watermark while a sequence runs), times seconds.
        withheld_block_s: the same, while a request waited for them.
        idle_block_s: blocks free while a request waited, for any reason, times seconds.
        backlog_s: seconds during which a request waited.
        backlog_tokens: tokens generated during them.
        scheduler_cpu_s: CPU seconds of this thread inside the scheduler's methods.
        cpu_s: CPU seconds of this thread for the whole replay.
        wall_s: seconds the replay took.
        memory: ``(time, blocks in use, running, waiting)``, at most :data:`SAMPLES`.
        blocks: blocks of the pool.
    """

    arrival: np.ndarray
    first: np.ndarray
    finish: np.ndarray
    waited: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    preempted: np.ndarray
    blocks: int = 0
    steps: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0
    reserved_unused_block_s: float = 0.0
    withheld_block_s: float = 0.0
    idle_block_s: float = 0.0
    backlog_s: float = 0.0
    backlog_tokens: int = 0
    scheduler_cpu_s: float = 0.0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    memory: list[tuple[float, int, int, int]] = field(default_factory=list)


class Samples:
    """A bounded sample of the steps of a run of unknown length, idle times included.

    Args:
        most: largest number of points.
    """

    def __init__(self, most: int = SAMPLES) -> None:
        self._most = most
        self._every = 1
        self._idle = True
        self.kept: list[tuple[float, int, int, int]] = []

    def wants(self, step: int) -> bool:
        """Return True if this step must be kept; the first after an idle time always is."""
        return self._idle or step % self._every == 0

    def add(self, time: float, used: int, running: int, waiting: int) -> None:
        """Record a point; when there are too many, drop the shorter of every two.

        Long idle times are kept, or the blocks held before them would seem to be held throughout.

        Args:
            time: simulated seconds.
            used: blocks in use.
            running: running requests.
            waiting: waiting requests.
        """
        self.kept.append((time, used, running, waiting))
        self._idle = not (running or waiting)
        if len(self.kept) >= self._most:
            ends = [*(at for at, *_ in self.kept[1:]), math.inf]
            lasted = [end - point[0] for point, end in zip(self.kept, ends, strict=True)]
            places = [
                max(range(i, min(i + 2, len(lasted))), key=lasted.__getitem__)
                for i in range(0, len(lasted), 2)
            ]
            self.kept = [self.kept[i] for i in places]
            self._every *= 2
