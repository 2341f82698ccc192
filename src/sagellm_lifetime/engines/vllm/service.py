"""What goes on beside a live engine: the writer thread, the statistics, the switch, the saver."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from threading import Thread
from typing import Any, Final

from sagellm_lifetime.engines.vllm.breaker import LOG
from sagellm_lifetime.engines.vllm.guarded import LiveLifetime
from sagellm_lifetime.engines.vllm.keeper import Keeper
from sagellm_lifetime.engines.vllm.settings import LiveSettings
from sagellm_lifetime.engines.vllm.state import EngineState

_EVERY_S: Final = 1.0
_SAVE_EVERY_S: Final = 60.0


class Service:
    """Of one engine core.

    Args:
        lifetime: what the scheduler asks.
        settings: what was asked for.
        state: where to publish; ``None`` for nowhere.
        learned: where to save what was learned; ``None`` for nowhere.
        rank: of the engine core.
    """

    def __init__(
        self,
        lifetime: LiveLifetime,
        settings: LiveSettings,
        state: EngineState | None,
        learned: Path | None,
        rank: int,
    ) -> None:
        self._lifetime = lifetime
        self._settings = settings
        self._state = state
        self._learned = learned
        self._rank = rank
        self._saved = lifetime.lessons
        jobs = [lifetime.recorder.flush] if lifetime.recorder is not None else []
        if state is not None:
            jobs += [self._obey, self._publish]
        self._keeper = Keeper("lifetime-writer", _EVERY_S, jobs) if jobs else None
        # Apart from the writer: a predictor that hangs may hold the lock that saving needs.
        self._saver = Keeper("lifetime-saver", _SAVE_EVERY_S, [self._save]) if learned else None

    def start(self, model_config: Any) -> None:
        """Start the threads."""
        Thread(target=self._load, args=(model_config,), name="lifetime-load", daemon=True).start()
        Thread(target=_end_with_parent, name="lifetime-parent", daemon=True).start()
        for keeper in (self._keeper, self._saver):
            if keeper is not None:
                keeper.start()

    def close(self) -> None:
        """Write the rest, and stop."""
        if self._lifetime.recorder is not None:
            self._lifetime.recorder.close()
        for keeper in (self._keeper, self._saver):
            if keeper is not None:
                keeper.close()
        self._lifetime.breaker.close()
        if self._state is not None:
            self._state.close()

    def stats(self) -> dict[str, Any]:
        """What ``stats.json`` holds; seconds, tokens, counts."""
        lifetime, recorder = self._lifetime, self._lifetime.recorder
        breaker, shadow = lifetime.breaker, lifetime.shadow
        return {
            "engine": self._rank,
            "time": time.time(),
            "predictor": lifetime.predictor.name if lifetime.predictor is not None else None,
            "policy": self._settings.policy,
            "learning": self._settings.learn,
            # Until the next step nothing is decided, so what is wanted is what is.
            "mode": lifetime.wanted,
            "cannot_act": lifetime.cannot_act,
            **lifetime.tally.snapshot(),
            "lessons": lifetime.lessons,
            "decisions": {
                "admission": [shadow.admissions, shadow.admissions_differing],
                "preemption": [shadow.preemptions, shadow.preemptions_differing],
            },
            "breaker": {
                "state": breaker.state,
                "reason": breaker.reason,
                "faults": dict(breaker.faults),
            },
            "steps": lifetime.steps,
            "step_seconds": lifetime.seconds,
            "overhead_seconds": breaker.spent_total,
            "recorded": recorder.recorded if recorder is not None else 0,
            "record_lost": recorder.lost if recorder is not None else 0,
        }

    def _load(self, model_config: Any) -> None:
        try:
            self._lifetime.endings.load(model_config)
        except Exception as error:  # noqa: BLE001  # a foreign library's, and nothing depends on it
            LOG.warning("without a tokenizer, stop strings count as aborts (%s)", error)

    def _obey(self) -> None:
        mode = self._state.asked_for() if self._state is not None else None
        if mode is not None:
            self._lifetime.want(mode)

    def _publish(self) -> None:
        if self._state is not None:
            self._state.write(self.stats())

    def _save(self) -> None:
        lifetime = self._lifetime
        lessons, predictor = lifetime.lessons, lifetime.predictor
        if lessons == self._saved or predictor is None or not lifetime.breaker.allows:
            return
        if self._learned is not None:
            # A copy, so that nobody waits for the disk.
            predictor.clone().save(self._learned)
            self._saved = lessons


def _end_with_parent() -> None:
    """An engine core whose front end was killed serves nobody, and holds memory and state.

    vLLM leaves it running; a SIGTERM ends it in order.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        LOG.error("the front end has died: this engine core ends, too")
        os.kill(os.getpid(), signal.SIGTERM)
