"""What one replayed run leaves behind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

SAMPLES = 2000
"""Most points kept of memory over time."""


@dataclass
class RunResult:
    """Times in simulated seconds; arrays have one entry per request, in the order of the trace.

    Attributes:
        arrival: when it came.
        first: when its first token was there.
        finish: when its last token was there.
        waited: seconds it was not running, before it was first admitted and while preempted.
        prompt: prompt tokens.
        output: generated tokens.
        preempted: how often.
        steps: steps that did work.
        preemptions: of all requests together.
        recomputed_tokens: prompt and generated tokens computed once more after a preemption; what
            the prefix cache still had is not among them.
        cached_tokens: prompt tokens found in the prefix cache on first admission.
        prefill_tokens: tokens computed as prefill, recomputed ones included.
        reserved_unused_block_s: blocks free, but set aside by the policy (its reserve, or the
            watermark while something runs), times seconds.
        withheld_block_s: the same, while a request waited for them.
        idle_block_s: blocks free while a request waited, for whatever reason, times seconds.
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
    """Every so-manieth step of a run of unknown length, and when it fell idle; at most ``most``."""

    def __init__(self, most: int = SAMPLES) -> None:
        self._most = most
        self._every = 1
        self._idle = True
        self.kept: list[tuple[float, int, int, int]] = []

    def wants(self, step: int) -> bool:
        """Whether this step is to be kept: the first after an idle time always is."""
        return self._idle or step % self._every == 0

    def add(self, time: float, used: int, running: int, waiting: int) -> None:
        """Keep a point; when there are too many, of every two the one that lasted less goes: a
        long idle time stays, or the blocks held before it would seem to be held all along."""
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
