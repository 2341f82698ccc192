"""vLLM's schedulers with prediction; ``--scheduler-cls`` names :func:`scheduler`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagellm_lifetime.engines.vllm.builds import ready_for_vllm

ready_for_vllm()  # before anything of vLLM is imported

from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402

from sagellm_lifetime.engines.vllm.interface import check_interface  # noqa: E402
from sagellm_lifetime.engines.vllm.scheduler import LifetimeMixin  # noqa: E402
from sagellm_lifetime.engines.vllm.settings import KEY, LiveSettings  # noqa: E402

if TYPE_CHECKING:
    from sagellm_lifetime.engines.vllm.guarded import LiveLifetime
    from sagellm_lifetime.engines.vllm.service import Service


class LiveMixin(LifetimeMixin):
    """Goes before a scheduler class of vLLM; without settings it changes nothing.

    Attributes:
        lifetime: what decides, predicts and counts, once :meth:`switch_on` was called.
        clock: seconds, that of ``Request.arrival_time``.
    """

    lifetime: LiveLifetime | None = None  # type: ignore[assignment]  # asked like a controller
    clock: Callable[[], float] = staticmethod(time.time)
    _service: Service | None = None
    vllm_config: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        said = (self.vllm_config.additional_config or {}).get(KEY)
        if said is not None and self.vllm_config.model_config.runner_type != "pooling":
            check_interface()
            self.switch_on(LiveSettings.of(said))

    def switch_on(self, settings: LiveSettings) -> None:
        """Predict, record and publish from now on, as ``settings`` say; in the mode they say."""
        from sagellm_lifetime.engines.vllm.build import make_lifetime
        from sagellm_lifetime.engines.vllm.service import Service
        from sagellm_lifetime.engines.vllm.state import PREDICTOR, EngineState

        rank = self.vllm_config.parallel_config.data_parallel_index
        state = EngineState(Path(settings.state), rank) if settings.state else None
        learned = state.folder / PREDICTOR if state is not None else None
        lifetime, learner = make_lifetime(self, settings, rank, learned)
        self.lifetime = lifetime
        self._service = Service(lifetime, settings, state, learner, rank)
        self._service.start(self.vllm_config.model_config)
        if settings.mode != "off":
            lifetime.want("shadow")
        lifetime.want(settings.mode)  # which may be impossible here

    def schedule(self, *args: Any, **options: Any) -> Any:
        """One step."""
        lifetime = self.lifetime
        if lifetime is None:
            return super().schedule(*args, **options)
        if lifetime.idle:  # past the mixin that asks: the step is vLLM's alone
            lifetime.passed(busy=bool(self.running))
            return super(LifetimeMixin, self).schedule(*args, **options)  # type: ignore[misc]  # mixin
        output = super().schedule(*args, **options)
        if lifetime.mode == "shadow":
            new, resumed = output.scheduled_new_reqs, output.scheduled_cached_reqs.resumed_req_ids
            if new or resumed:
                lifetime.end({each.req_id for each in new} | resumed)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take what the model has computed."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]  # mixin
        if self.lifetime is not None:
            self.lifetime.taken(scheduler_output.total_num_scheduled_tokens)
        return outputs

    def _is_tight(self) -> bool:
        # To ask about all that run takes as long as half a step of vLLM's. A replay asks in every
        # step that might run out, in simulated time; here, in those that will.
        return super()._is_tight() and self._runs_out()

    def _preempt_request(self, request: Any, *args: Any, **options: Any) -> None:
        if self.lifetime is not None:
            self.lifetime.preempting(request)
        super()._preempt_request(request, *args, **options)

    def _handle_stopped_request(self, request: Any) -> bool:
        if self.lifetime is not None and request.resumable:
            self.lifetime.turn_over(request)
        return bool(super()._handle_stopped_request(request))  # type: ignore[misc]  # mixin

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        super()._update_request_as_session(session, update)  # type: ignore[misc]  # mixin
        if self.lifetime is not None:
            self.lifetime.arrived(session)

    def shutdown(self) -> None:
        """Write what is left to be written."""
        try:
            if self.lifetime is not None:
                self.lifetime.catch_up()
        finally:
            try:
                if self._service is not None:
                    self._service.close()
            finally:
                super().shutdown()  # type: ignore[misc]  # mixin


class LiveScheduler(LiveMixin, Scheduler):  # type: ignore[misc]  # vLLM is untyped here
    """For engines without asynchronous scheduling."""


class LiveAsyncScheduler(LiveMixin, AsyncScheduler):  # type: ignore[misc]  # vLLM is untyped here
    """For engines that schedule a step while the one before runs."""


def scheduler(vllm_config: Any, **options: Any) -> LiveMixin:
    """The scheduler that an engine needs; vLLM has settled by now which it is."""
    is_async = vllm_config.scheduler_config.async_scheduling
    made: LiveMixin = (LiveAsyncScheduler if is_async else LiveScheduler)(
        vllm_config=vllm_config, **options
    )
    return made
