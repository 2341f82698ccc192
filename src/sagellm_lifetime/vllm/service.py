"""What goes on beside a live engine: the record, the statistics, the switch, the learner."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import ExitStack
from threading import Thread
from typing import Any, Final

from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.engine_state import EngineState
from sagellm_lifetime.vllm.guard import GuardedAdvisor
from sagellm_lifetime.vllm.learner import IDLE, Learner
from sagellm_lifetime.vllm.periodic_thread import Job, PeriodicThread
from sagellm_lifetime.vllm.request_events import RequestEvents
from sagellm_lifetime.vllm.settings import LiveSettings

_RECORD_S: Final = 0.5
"""At most the last second is lost with a process that is killed, and writing takes a moment."""
_EVERY_S: Final = 1.0
_CLOSE_S: Final = 3.5
"""For a disk to take what is left, while the learner ends. With ``_LAST_WORDS_S`` it makes 4 s: of
the ten of ``--shutdown-timeout`` vLLM's workers may take five before a scheduler is shut down, and
the process ends after it."""
_LAST_WORDS_S: Final = 0.5
"""For the last statistics, when that has been waited for."""


class Service:
    """Of one engine core.

    Args:
        lifetime: the advisor that the scheduler asks.
        request_events: what becomes of requests, with the recorder.
        settings: what was asked for.
        state: where to publish; ``None`` for nowhere.
        learner: what learns from completions; ``None`` for nothing.
        rank: of the engine core.
    """

    def __init__(
        self,
        lifetime: GuardedAdvisor,
        request_events: RequestEvents,
        settings: LiveSettings,
        state: EngineState | None,
        learner: Learner | None,
        rank: int,
    ) -> None:
        self._lifetime = lifetime
        self._request_events = request_events
        self._settings = settings
        self._state = state
        self._learner = learner
        self._rank = rank
        # Two threads: a disk that hangs while it takes the record must not disable the switch.
        recorder = request_events.recorder
        self._writer = (
            PeriodicThread("lifetime-writer", _RECORD_S, [recorder.flush], [recorder.close])
            if recorder is not None
            else None
        )
        jobs: list[Job] = []
        if learner is not None:
            jobs.append(learner.watch)
        if state is not None:
            jobs += [self._obey, self._publish]
        if jobs:
            jobs.append(lifetime.hurry)  # what is published and learned is no older than these
        self._jobs = PeriodicThread("lifetime-jobs", _EVERY_S, jobs) if jobs else None

    def start(self, model_config: Any) -> None:
        """Start the threads."""
        Thread(target=self._load, args=(model_config,), name="lifetime-load", daemon=True).start()
        Thread(target=_end_with_parent, name="lifetime-parent", daemon=True).start()
        for thread in (self._writer, self._jobs):
            if thread is not None:
                thread.start()

    def close(self) -> None:
        """Write the rest, and stop; each part, whatever becomes of the others.

        The record first, whose thread writes while the learner saves what it has learned; then the
        last statistics. Takes 4 s at most, whatever hangs.
        """
        ends = time.monotonic() + _CLOSE_S
        if self._writer is not None:
            self._writer.stop()
        with ExitStack() as last_first:
            if self._state is not None:
                last_first.callback(self._state.close)
            last_first.callback(self._lifetime.breaker.close)
            if self._jobs is not None:
                last_first.callback(self._jobs.close, ends + _LAST_WORDS_S)
            if self._writer is not None:
                last_first.callback(self._writer.close, ends)
            if self._learner is not None:
                last_first.callback(self._learner.close)

    def stats(self) -> dict[str, Any]:
        """What ``stats.json`` holds; seconds, tokens, counts."""
        lifetime, recorder = self._lifetime, self._request_events.recorder
        breaker, agreement = lifetime.breaker, lifetime.agreement
        return {
            "engine": self._rank,
            "time": time.time(),
            "predictor": lifetime.predictor.name if lifetime.predictor is not None else None,
            "policy": self._settings.policy,
            "learning": self._settings.learn,
            # Until the next step nothing is decided, so what is wanted is what is.
            "mode": lifetime.wanted,
            "cannot_act": lifetime.cannot_act,
            **(lifetime.statistics.snapshot() if lifetime.statistics is not None else {}),
            "lessons": lifetime.lessons,
            **(self._learner.counts() if self._learner is not None else IDLE),
            "decisions": {
                "admission": [agreement.admissions.made, agreement.admissions.differing],
                "preemption": [agreement.preemptions.made, agreement.preemptions.differing],
            },
            "breaker": {
                "state": breaker.state,
                "reason": breaker.reason,
                "faults": dict(breaker.faults),
                "time_limit": breaker.time_limit,
            },
            "steps": lifetime.steps,
            "step_seconds": lifetime.seconds,
            "overhead_seconds": breaker.spent_total,
            "recorded": recorder.recorded if recorder is not None else 0,
            "record_lost": recorder.lost if recorder is not None else 0,
            "record_waiting": recorder.waiting if recorder is not None else 0,
            "record_replaced": recorder.replaced if recorder is not None else 0,
        }

    def _load(self, model_config: Any) -> None:
        try:
            self._request_events.finish_reasons.load(model_config)
        except Exception as error:  # noqa: BLE001  # a foreign library's, and nothing depends on it
            LOG.warning("without a tokenizer, stop strings count as aborts (%s)", error)

    def _obey(self) -> None:
        mode = self._state.asked_for() if self._state is not None else None
        if mode is not None:
            self._lifetime.want(mode)

    def _publish(self) -> None:
        if self._state is not None:
            self._state.write(self.stats())


def _end_with_parent() -> None:
    """An engine core whose front end was killed serves nobody, and holds memory and state.

    vLLM leaves it running; a SIGTERM ends it in order.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        LOG.error("the front end has died: this engine core ends, too")
        os.kill(os.getpid(), signal.SIGTERM)
