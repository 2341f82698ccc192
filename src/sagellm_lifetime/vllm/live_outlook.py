"""The outlook of a running engine, computed beside its steps, and the file it is published in.

STATE/engine-0/outlook.json      figures, and when each present sequence ends
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sagellm_lifetime.core.atomic import write_atomically
from sagellm_lifetime.core.errors import CheckpointError, LifetimeError
from sagellm_lifetime.core.regular_files import read_regular
from sagellm_lifetime.policies.events import Admitted, Arrived, Event, Finished
from sagellm_lifetime.policies.outlook import (
    LEVELS,
    MOST_QUEUED,
    Outlook,
    Situation,
    look_ahead,
    merged,
    probability,
)
from sagellm_lifetime.policies.outlook_calibration import OutlookCalibration
from sagellm_lifetime.policies.state import SurvivalForecast

if TYPE_CHECKING:
    from sagellm_lifetime.vllm.guard import GuardedAdvisor

FILE: Final = "outlook.json"
_MOST_BYTES: Final = 1 << 20
_SHARE: Final = 0.005
"""Largest share of the time that outlooks may take: after a long one the next comes later."""
_PACE_S: Final = 30.0
"""Seconds over which the duration of a step is averaged."""
_MOST_EVENTS: Final = 16_384
"""Largest number of events between two looks; of more the oldest are lost."""
_OUTCOMES: Final = (Arrived, Admitted, Finished)
_STALE_S: Final = 30.0
"""Seconds after which an outlook is out of date."""
Forecast = Callable[[Sequence[str], np.ndarray], SurvivalForecast]


def situation_of(
    scheduler: Any,
    forecast: Forecast,
    known: Container[str],
    *,
    seconds_per_step: float,
    reserve: int,
) -> tuple[Situation, list[str], list[int]]:
    """Return the situation of a scheduler of vLLM, its sequences' ids, and their generated tokens.

    Any thread may call it. Sequences without a prediction yet are left out.

    Args:
        scheduler: vLLM's.
        forecast: returns the survival of sequences at given ages.
        known: ids of the sequences with a prediction.
        seconds_per_step: duration of a step.
        reserve: blocks that admission leaves free.
    """
    # Copies of a list and a deque are made under the GIL in one piece.
    running = [r for r in list(scheduler.running) if r.request_id in known]
    queue = list(scheduler.waiting)
    waiting = [r for r in queue[:MOST_QUEUED] if r.request_id in known]
    requests = [*running, *waiting]
    names = [request.request_id for request in requests]
    ages = np.array([request.num_output_tokens for request in requests], dtype=np.int64)
    survival = forecast(names, ages) if names else SurvivalForecast.exact(np.zeros(0))
    count, pool = len(running), scheduler.kv_cache_manager.block_pool
    first, rest = np.arange(count), np.arange(count, len(requests))
    prompts = [request.num_prompt_tokens for request in requests]
    situation = Situation(
        running=survival.take(first),
        running_tokens=np.array([request.num_tokens for request in running], dtype=np.int64),
        waiting=survival.take(rest),
        waiting_tokens=np.array([request.num_tokens for request in waiting], dtype=np.int64),
        queue_length=max(len(queue), len(waiting)),
        total_blocks=pool.num_gpu_blocks - 1,
        free_blocks=pool.get_num_free_blocks(),
        reserve=reserve,
        block_size=scheduler.block_size,
        # The first is lowered during a step in which an advisor limits admissions.
        places=max(scheduler.max_num_active_reqs, scheduler.scheduler_config.max_num_seqs),
        prompt_tokens=float(np.mean(prompts)) if prompts else 0.0,
        seconds_per_step=seconds_per_step,
    )
    return situation, names, ages.tolist()


class LiveOutlook:
    """The outlook of one engine core, computed in another thread than the engine's.

    Args:
        scheduler: vLLM's, with an advisor.
        file: to publish it in; ``None`` to keep it in memory.
        clock: seconds of wall time.

    Attributes:
        latest: the figures of the latest outlook, with its ``time``; ``None`` without one.
    """

    def __init__(
        self, scheduler: Any, file: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.latest: dict[str, Any] | None = None
        self._scheduler = scheduler
        self._file = file
        self._clock = clock
        self._due = 0.0
        self._paces: deque[tuple[float, int, float]] = deque()
        """Moments, with the steps and their seconds until then."""
        self._calibration = OutlookCalibration()
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        """What the engine's thread tells, until the next update."""

    def take(self, events: Sequence[Event]) -> None:
        """Keep events that tell what became of earlier outlooks; the engine's thread calls it."""
        self._events.extend(event for event in events if isinstance(event, _OUTCOMES))

    def update(self) -> None:
        """Compute the outlook anew, if it is time, and publish it.

        Raises:
            CheckpointError: if it cannot be written.
        """
        advisor: GuardedAdvisor | None = self._scheduler.advisor
        now = self._clock()
        if advisor is None or advisor.mode == "off" or advisor.breaker.state != "closed":
            self.latest = None
            self._events.clear()
            self._calibration.forget_pending()
            return
        self._calibration.on_events(self._taken(), now)
        pace = self._pace(now, advisor.steps, advisor.seconds)
        if pace is None or now < self._due:
            return
        began = time.thread_time()
        found = self._look(advisor, pace, now)
        if found is None:
            return
        outlook, names = found
        self.latest = {"time": now, "seconds_per_step": pace, **outlook.json()}
        if self._file is not None:
            ends = [[round(seconds, 3) for seconds in row] for row in outlook.ends_s.tolist()]
            content = {"time": now, "ends_s": dict(zip(names, ends, strict=True))}
            write_atomically(
                self._file, json.dumps(content).encode(), private=True, error=CheckpointError
            )
        self._due = now + (time.thread_time() - began) / _SHARE

    def _taken(self) -> list[Event]:
        """Return the events so far, and empty the queue, while another thread adds to it."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def _look(
        self, advisor: GuardedAdvisor, pace: float, now: float
    ) -> tuple[Outlook, list[str]] | None:
        """Return the outlook and the ids of its sequences; None while they come and go."""
        if advisor.statistics is None or (forecast := advisor.forecast_beside) is None:
            return None
        try:
            situation, names, ages = situation_of(
                self._scheduler,
                forecast,
                set(advisor.statistics.running()),
                seconds_per_step=pace,
                reserve=advisor.blocks_withheld(self._scheduler.kv_cache_manager.watermark_blocks),
            )
            self._calibration.look(dict(zip(names, ages, strict=True)), now)
            outlook = look_ahead(situation, correct=self._calibration.correct)
        except LifetimeError:  # a sequence has ended in this moment; the next look is soon
            return None
        self._calibration.remember(now, situation, outlook, names, ages)
        return outlook, names

    def _pace(self, now: float, steps: int, seconds: float) -> float | None:
        """Return the mean duration of the latest steps, or None before the first."""
        paces = self._paces
        paces.append((now, steps, seconds))
        while len(paces) > 2 and paces[1][0] < now - _PACE_S:
            paces.popleft()
        _, steps_before, seconds_before = paces[0]
        if steps > steps_before:
            return (seconds - seconds_before) / (steps - steps_before)
        return seconds / steps if steps else None


def answer(
    folders: Sequence[Path],
    outlooks: Sequence[Mapping[str, Any]],
    request: str | None = None,
    within_s: float | None = None,
    now: float | None = None,
) -> tuple[int, dict[str, Any]]:
    """Return status and answer of ``GET /lifetime/outlook``.

    Args:
        folders: of the engine cores.
        outlooks: of their statistics, checked, those that have one.
        request: id of a request, as the server told the client; ``None`` for no request.
        within_s: seconds from now until its deadline.
        now: seconds of wall time; ``None`` for the present.
    """
    now = time.time() if now is None else now
    current = [found for found in outlooks if now - found["time"] < _STALE_S]
    if not current:
        return 503, {"error": "no outlook: nothing has run yet, or the mode is off"}
    together = merged([{k: v for k, v in found.items() if k != "time"} for found in current])
    together["age_s"] = round(max(now - min(found["time"] for found in current), 0.0), 3)
    if request is None:
        return 200, together
    ends = _ends_of(folders, request, now)
    if ends is None:
        return 404, {"error": "no such request runs or waits near the head of the queue"}
    quantiles = {f"p{round(100 * q)}": s for q, s in zip(LEVELS, ends, strict=True)}
    together["request"] = {"id": request, "ends_s": quantiles}
    if within_s is not None:
        together["request"] |= {"within_s": within_s, "probability": probability(ends, within_s)}
    return 200, together


def _ends_of(folders: Sequence[Path], request: str, now: float) -> list[float] | None:
    """Return the quantiles of the seconds from now until a request ends, or None."""
    for folder in folders:
        try:
            content = json.loads(read_regular(folder / FILE, _MOST_BYTES))
            at, sequences = float(content["time"]), dict(content["ends_s"])
            # vLLM's engine core appends to the id that a client sees.
            names = [n for n in sequences if n == request or n.startswith(f"{request}-")]
            if names:
                rows = [[float(seconds) for seconds in sequences[name]] for name in names]
                last = max(rows, key=lambda row: row[len(row) // 2])
                if len(last) != len(LEVELS):
                    raise ValueError
                return [max(at + seconds - now, 0.0) for seconds in last]
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            continue  # written by another version, or damaged: as if it was not there
    return None
