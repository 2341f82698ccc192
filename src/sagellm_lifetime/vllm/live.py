"""vLLM's schedulers with prediction; ``--scheduler-cls`` names :func:`scheduler`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

ready_for_vllm()  # before anything of vLLM is imported

from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402

from sagellm_lifetime.vllm.circuit_breaker import LOG, named  # noqa: E402
from sagellm_lifetime.vllm.compat.interface import check_interface  # noqa: E402
from sagellm_lifetime.vllm.scheduler import LifetimeMixin  # noqa: E402
from sagellm_lifetime.vllm.settings import KEY, SWITCHBACK, LiveSettings  # noqa: E402

if TYPE_CHECKING:
    from sagellm_lifetime.vllm.guard import GuardedAdvisor
    from sagellm_lifetime.vllm.service import Service


class LiveMixin(LifetimeMixin):
    """A mixin for a scheduler class of vLLM; without settings it changes nothing.

    It adds the background service of a live engine: record, statistics and mode switch.
    """

    _service: Service | None = None
    # Attributes of vLLM's scheduler:
    vllm_config: Any
    scheduler_config: Any
    max_model_len: int
    hash_block_size: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        additional = self.vllm_config.additional_config
        if (
            isinstance(additional, Mapping)  # vLLM accepts any object with a hash
            and KEY in additional
            and self.vllm_config.model_config.runner_type != "pooling"
        ):
            check_interface()
            self.switch_on(LiveSettings.of(additional[KEY]))

    def switch_on(self, settings: LiveSettings) -> None:
        """Start to predict, record and publish, in the mode of ``settings``."""
        from sagellm_lifetime.evaluation.switchback import Design
        from sagellm_lifetime.vllm.build import make_live, served_name
        from sagellm_lifetime.vllm.engine_state import PREDICTOR, EngineState
        from sagellm_lifetime.vllm.live_outlook import FILE as OUTLOOK
        from sagellm_lifetime.vllm.live_outlook import LiveOutlook
        from sagellm_lifetime.vllm.live_view import LiveView
        from sagellm_lifetime.vllm.service import Observers, Service
        from sagellm_lifetime.vllm.startup_line import startup_line
        from sagellm_lifetime.vllm.switchback import FILE, Switchback

        rank = self.vllm_config.parallel_config.data_parallel_index
        state = EngineState(Path(settings.state), rank) if settings.state else None
        learned = state.folder / PREDICTOR if state is not None else None
        advisor, learner = make_live(self, settings, rank, learned)
        events, outlook = self.request_events, None
        who = events.adapter.who if events.adapter is not None else None
        if state is not None and settings.predict:
            design = Design(settings.switchback_period_s)
            label = switchback_label(settings, advisor)
            self.switchback = Switchback(design, state.folder / FILE, label, self.clock)
            outlook = LiveOutlook(self, state.folder / OUTLOOK, self.clock)
            advisor.outcomes = outlook.take
        observers = Observers(
            served_name(self.vllm_config),
            LiveView(self, advisor, who, self._now),
            self.switchback,
            outlook,
        )
        self._service = Service(advisor, events, settings, state, learner, rank, observers)
        if settings.mode != "off":
            advisor.set_mode("shadow")
        self._service.set_mode(settings.mode)  # if ``act`` is impossible shadow stays
        self._service.start(self.vllm_config.model_config)
        name = advisor.predictor.name if advisor.predictor is not None else None
        folder = state.folder if state is not None else None
        mode = settings.mode if settings.mode == SWITCHBACK else advisor.next_mode
        LOG.info(startup_line(settings, name, advisor.lessons, mode, folder))

    def _now(self) -> float:
        return self.clock()

    def shutdown(self) -> None:
        """Write the rest and shut vLLM down; a failure is only logged."""
        if self.advisor is not None:
            self._guarded(None, self.advisor.flush)
        try:
            if self._service is not None:
                self._service.close()
        except Exception as error:  # noqa: BLE001  # vLLM must shut down after any error
            LOG.error("what was left to be written is lost (%s)", named(error))
        finally:
            super().shutdown()  # type: ignore[misc]  # mixin


def switchback_label(settings: LiveSettings, advisor: GuardedAdvisor) -> str:
    """Return what a switchback compares, so that an earlier one of something else is not continued.

    Learning and restarts do not change it.
    """
    name = advisor.predictor.name if advisor.predictor is not None else ""
    return f"{settings.policy} {settings.min_confidence:g} {settings.watermark:g} {name}"


class LiveScheduler(LiveMixin, Scheduler):  # type: ignore[misc]  # vLLM is untyped here
    """The scheduler of engines without asynchronous scheduling."""


class LiveAsyncScheduler(LiveMixin, AsyncScheduler):  # type: ignore[misc]  # vLLM is untyped here
    """The scheduler of engines that schedule a step while the previous one runs."""


def scheduler(vllm_config: Any, **options: Any) -> LiveMixin:
    """Return the scheduler for the configuration, synchronous or asynchronous."""
    is_async = vllm_config.scheduler_config.async_scheduling
    live: LiveMixin = (LiveAsyncScheduler if is_async else LiveScheduler)(
        vllm_config=vllm_config, **options
    )
    return live
