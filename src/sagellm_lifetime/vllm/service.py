"""The background service of a live engine: record, statistics, mode switch and learner."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Thread
from typing import Any, Final

from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.engine_state import EngineState
from sagellm_lifetime.vllm.guard import GuardedAdvisor
from sagellm_lifetime.vllm.learner import IDLE, WEIGHTS, Learner
from sagellm_lifetime.vllm.live_outlook import LiveOutlook
from sagellm_lifetime.vllm.live_view import LiveView
from sagellm_lifetime.vllm.periodic_thread import Job, PeriodicThread
from sagellm_lifetime.vllm.published import DRIFT
from sagellm_lifetime.vllm.request_events import RequestEvents
from sagellm_lifetime.vllm.run_counts import RunCounts
from sagellm_lifetime.vllm.settings import SWITCHBACK, LiveSettings, StartMode
from sagellm_lifetime.vllm.switchback import Switchback
from sagellm_lifetime.vllm.termination import Termination

_RECORD_S: Final = 0.5
"""Seconds between two writes of the record: with the time of a write, a killed process loses at
most the last second."""
_EVERY_S: Final = 1.0
_CLOSE_S: Final = 3.5
"""Time limit for writing the rest of the record while the learner ends. With ``_FINAL_STATS_S`` it
makes 4 s: vLLM's workers may take five of the ten seconds of ``--shutdown-timeout`` before a
scheduler is shut down, and the process ends after it."""
_FINAL_STATS_S: Final = 0.5
"""Further time limit for the last statistics."""


@dataclass(frozen=True, slots=True)
class Observers:
    """What looks at an engine beside its steps.

    Attributes:
        model_name: under which the model is served.
        live_view: what runs and waits.
        switchback: measures what acting changes; ``None`` if that is impossible here.
        outlook: of the engine; ``None`` for none.
    """

    model_name: str
    live_view: LiveView
    switchback: Switchback | None = None
    outlook: LiveOutlook | None = None


class Service:
    """The background threads of one engine core.

    Args:
        lifetime: the scheduler's advisor.
        request_events: events of requests, with the recorder.
        settings: of the engine.
        state: folder for the statistics; ``None`` for none.
        learner: learns from completions; ``None`` for none.
        rank: of the engine core.
        observers: of the engine.
    """

    def __init__(
        self,
        advisor: GuardedAdvisor,
        request_events: RequestEvents,
        settings: LiveSettings,
        state: EngineState | None,
        learner: Learner | None,
        rank: int,
        observers: Observers,
    ) -> None:
        self._advisor = advisor
        self._request_events = request_events
        self._settings = settings
        self._state = state
        self._learner = learner
        self._rank = rank
        self._observers = observers
        self._switchback, self._outlook = observers.switchback, observers.outlook
        self._termination = Termination()
        self._run_counts = RunCounts(self._continued(self._drift(), self._learner_counts()))
        # Two threads, so that a hanging disk under the record does not disable the mode switch.
        recorder = request_events.recorder
        self._writer = (
            PeriodicThread("lifetime-writer", _RECORD_S, [recorder.flush], [recorder.close])
            if recorder is not None
            else None
        )
        jobs: list[Job] = []
        if learner is not None:
            jobs += [learner.watch, self._save_if_ending]
        if state is not None:
            jobs += [self._apply_mode_request, self._advance, self._publish]
        if jobs:
            jobs.append(advisor.request_flush)  # bounds the age of published and learned events
        self._jobs = PeriodicThread("lifetime-jobs", _EVERY_S, jobs) if jobs else None
        # A thread of its own, as it waits for the lock of a predictor, which may hang.
        self._outlooks = (
            PeriodicThread("lifetime-outlook", _EVERY_S, [self._outlook.update], [_nothing])
            if self._outlook is not None
            else None
        )

    def start(self, model_config: Any) -> None:
        """Start the threads, and publish for the first time, all counts being 0."""
        if self._learner is not None:
            self._termination.watch()
        if self._jobs is not None:
            self._jobs.round()
        Thread(target=self._load, args=(model_config,), name="lifetime-load", daemon=True).start()
        Thread(target=_end_with_parent, name="lifetime-parent", daemon=True).start()
        for thread in (self._writer, self._jobs, self._outlooks):
            if thread is not None:
                thread.start()

    def close(self) -> None:
        """Write the rest and stop; a failure of one part does not stop the others.

        The record is written while the learner saves its state; then the last statistics. It takes
        4 s at most, even if a part hangs.
        """
        ends = time.monotonic() + _CLOSE_S
        if self._writer is not None:
            self._writer.stop()
        if self._outlooks is not None:
            self._outlooks.stop()
        with ExitStack() as last_first:
            if self._state is not None:
                last_first.callback(self._state.close)
            last_first.callback(self._advisor.breaker.close)
            if self._jobs is not None:
                last_first.callback(self._jobs.close, ends + _FINAL_STATS_S)
            if self._writer is not None:
                last_first.callback(self._writer.close, ends)
            if self._learner is not None:
                last_first.callback(self._learner.close)

    def stats(self) -> dict[str, Any]:
        """Return the content of ``stats.json``: seconds, tokens, counts."""
        advisor, recorder = self._advisor, self._request_events.recorder
        breaker, agreement = advisor.breaker, advisor.agreement
        drift, learner = self._drift(), self._learner_counts()
        return {
            "engine": self._rank,
            "time": time.time(),
            "model_name": self._observers.model_name,
            "predictor": advisor.predictor.name if advisor.predictor is not None else None,
            "policy": self._settings.policy,
            "learning": self._settings.learn,
            # The wanted mode takes effect before the next decision, so it counts as the mode.
            "mode": advisor.next_mode,
            "cannot_act": advisor.cannot_act,
            "switchback": self._status(),
            "outlook": self._outlook.latest if self._outlook is not None else None,
            **(advisor.statistics.snapshot() if advisor.statistics is not None else {}),
            "lessons": advisor.lessons,
            "drift": drift,
            **learner,
            "decisions": {
                "admission": [agreement.admissions.made, agreement.admissions.differing],
                "preemption": [agreement.preemptions.made, agreement.preemptions.differing],
                **advisor.counts.snapshot(),
            },
            "breaker": {
                "state": breaker.state,
                "reason": breaker.reason,
                "faults": dict(breaker.faults),
                "time_limit": breaker.time_limit,
            },
            "steps": advisor.steps,
            "step_seconds": advisor.seconds,
            "overhead_seconds": breaker.spent_total,
            "recorded": recorder.recorded if recorder is not None else 0,
            "record_lost": recorder.lost if recorder is not None else 0,
            "record_waiting": recorder.waiting if recorder is not None else 0,
            "record_replaced": recorder.replaced if recorder is not None else 0,
            "this_run": self._run_counts.update(self._continued(drift, learner)),
            "live": self._observers.live_view.snapshot(),
        }

    def _drift(self) -> dict[str, Any]:
        predictor = self._advisor.predictor
        return predictor.drift() if predictor is not None else {}

    def _learner_counts(self) -> dict[str, Any]:
        return self._learner.counts() if self._learner is not None else IDLE

    def _continued(self, drift: dict[str, Any], learner: dict[str, Any]) -> dict[str, float | None]:
        """Return the counts that go on from an earlier run, or may fall."""
        return {
            "lessons": self._advisor.lessons,
            **{name: learner[name] for name in WEIGHTS},
            **{f"drift_{name}": drift.get(name) for name in DRIFT},
        }

    def _save_if_ending(self) -> None:
        if self._learner is not None and self._termination.is_requested:
            self._learner.save_soon()

    def _load(self, model_config: Any) -> None:
        try:
            self._request_events.finish_reasons.load(model_config)
        except Exception as error:  # noqa: BLE001  # a foreign library's, and not essential
            LOG.warning("without a tokenizer, stop strings count as aborts (%s)", error)

    def _apply_mode_request(self) -> None:
        mode = self._state.asked_for() if self._state is not None else None
        if mode is not None:
            self.set_mode(mode)

    def set_mode(self, mode: StartMode) -> None:
        """Set the mode from the next step on; any mode but ``switchback`` ends a switchback."""
        switchback, advisor = self._switchback, self._advisor
        if mode != SWITCHBACK:
            if switchback is not None:
                switchback.stop()
            advisor.set_mode(mode)  # refused if ``act`` is impossible
        elif switchback is None or advisor.cannot_act:
            advisor.set_mode("act")  # refused, which is logged
        else:
            switchback.start(switchback.clock())
            self._advance()

    def _advance(self) -> None:
        """Set the mode that a switchback is to be in, and save its complete blocks."""
        switchback, advisor = self._switchback, self._advisor
        if switchback is None or not switchback.is_running:
            return
        now = switchback.clock()
        due = switchback.mode(now)
        if advisor.next_mode != due:
            advisor.set_mode(due)
        if switchback.advance(now):
            switchback.save()

    def _status(self) -> dict[str, Any] | None:
        switchback = self._switchback
        if switchback is None or not switchback.is_used:
            return None
        return switchback.status(switchback.clock())

    def _publish(self) -> None:
        if self._state is not None:
            self._state.write(self.stats())


def _nothing() -> None:
    """Do nothing: an outlook is of no use when the engine ends."""


def _end_with_parent() -> None:
    """Send this process a SIGTERM when its front end has died.

    vLLM leaves such an engine core running, where it holds memory and the state folder.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        LOG.error("the front end has died: this engine core ends, too")
        os.kill(os.getpid(), signal.SIGTERM)
