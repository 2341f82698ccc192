"""vLLM's schedulers with prediction; ``--scheduler-cls`` names :func:`scheduler`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

ready_for_vllm()  # before anything of vLLM is imported

from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402

from sagellm_lifetime.vllm.circuit_breaker import LOG, named  # noqa: E402
from sagellm_lifetime.vllm.compat.interface import check_interface  # noqa: E402
from sagellm_lifetime.vllm.override import restore_order  # noqa: E402
from sagellm_lifetime.vllm.scheduler import LifetimeMixin  # noqa: E402
from sagellm_lifetime.vllm.settings import KEY, LiveSettings  # noqa: E402
from sagellm_lifetime.vllm.time_budget import from_signal_handler  # noqa: E402

if TYPE_CHECKING:
    from sagellm_lifetime.vllm.guard import LiveLifetime
    from sagellm_lifetime.vllm.service import Service


class LiveMixin(LifetimeMixin):
    """Goes before a scheduler class of vLLM; without settings it changes nothing.

    Attributes:
        lifetime: what decides, predicts and counts, once :meth:`switch_on` was called.
        clock: seconds, that of ``Request.arrival_time``.
    """

    lifetime: LiveLifetime | None = None  # type: ignore[assignment]  # asked like a controller
    clock: Callable[[], float] = staticmethod(time.time)
    _service: Service | None = None
    _is_abandoned = False
    """Whether queue and running sequences are to be put in vLLM's order for the last time."""
    _stock_watermark: int | None = None
    """Blocks that vLLM itself leaves free at admission."""
    vllm_config: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        additional = self.vllm_config.additional_config
        if (
            isinstance(additional, Mapping)  # vLLM takes any object that has a hash
            and KEY in additional
            and self.vllm_config.model_config.runner_type != "pooling"
        ):
            check_interface()
            self.switch_on(LiveSettings.of(additional[KEY]))

    def switch_on(self, settings: LiveSettings) -> None:
        """Predict, record and publish from now on, as ``settings`` say; in the mode they say."""
        from sagellm_lifetime.vllm.build import make_lifetime
        from sagellm_lifetime.vllm.engine_state import PREDICTOR, EngineState
        from sagellm_lifetime.vllm.service import Service

        rank = self.vllm_config.parallel_config.data_parallel_index
        state = EngineState(Path(settings.state), rank) if settings.state else None
        learned = state.folder / PREDICTOR if state is not None else None
        lifetime, learner = make_lifetime(self, settings, rank, learned)
        self._stock_watermark = self.kv_cache_manager.watermark_blocks
        self.lifetime = lifetime
        self._service = Service(lifetime, settings, state, learner, rank)
        self._service.start(self.vllm_config.model_config)
        if settings.mode != "off":
            lifetime.want("shadow")
        lifetime.want(settings.mode)  # which may be impossible here

    def schedule(self, *args: Any, **options: Any) -> Any:
        """One step."""
        if self._is_abandoned:
            self._is_abandoned = False
            self._ours(None, restore_order, self)
        return super().schedule(*args, **options)

    def _ours(self, fallback: Any, function: Callable[..., Any], *args: Any) -> Any:
        """Return ``function(*args)``, or ``fallback`` where it raises: the step goes on as vLLM's.

        The predictor and the policies have a circuit breaker of their own; this one is for all
        that surrounds it. What may still raise here ends the engine, so it is nothing but this.
        An error of a caller's signal handler goes on to the caller.
        """
        try:
            return function(*args)
        except Exception as error:  # whatever it is, the engine goes on
            is_callers = False
            try:
                assert self.lifetime is not None
                is_callers = from_signal_handler(error)
                self.lifetime.failed(error)
                if function == self._prepare:  # vLLM's step has not begun: the order may change
                    self.lifetime.restore()
            except Exception as again:  # noqa: BLE001  # the handling of a fault is broken, too
                self._give_up(again)
            if is_callers:
                raise
            return fallback

    def _give_up(self, error: Exception) -> None:
        """Leave all to vLLM until restart: what handles faults has failed."""
        lifetime, self.lifetime = self.lifetime, None
        self._is_abandoned = lifetime is not None  # its order is restored when no step is under way
        if self._stock_watermark is not None:
            self.kv_cache_manager.watermark_blocks = self._stock_watermark
        try:
            if lifetime is not None:
                lifetime.breaker.state = "stuck"
                lifetime.breaker.reason = f"exception: {type(error).__name__}, after a fault"
            LOG.error(
                "lifetime prediction and its record are off until restart (%s, after a fault)",
                type(error).__name__,
            )
            LOG.debug("what was raised", exc_info=error)
        except Exception:  # noqa: BLE001  # logging is broken: there is nobody left to tell
            return

    def _prepare(self) -> int:
        lifetime = self.lifetime
        assert lifetime is not None
        if lifetime.idle:  # the step is vLLM's alone
            lifetime.passed(busy=bool(self.running))
            return sys.maxsize
        return super()._prepare()

    def _account(self, output: Any) -> None:
        lifetime = self.lifetime
        assert lifetime is not None
        if lifetime.idle:
            return
        super()._account(output)
        if lifetime.mode == "shadow":
            new, resumed = output.scheduled_new_reqs, output.scheduled_cached_reqs.resumed_req_ids
            if new or resumed:
                lifetime.end({each.req_id for each in new} | resumed)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take what the model has computed."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]  # mixin
        if self.lifetime is not None:
            tokens = scheduler_output.total_num_scheduled_tokens
            self._ours(None, self.lifetime.taken, tokens)
        return outputs

    def _is_tight(self) -> bool:
        # To ask about all that run takes as long as half a step of vLLM's. A replay asks in every
        # step that might run out, in simulated time; here, in those that will.
        return super()._is_tight() and self._runs_out()

    def _preempt_request(self, request: Any, *args: Any, **options: Any) -> None:
        if self.lifetime is not None:
            self._ours(None, self.lifetime.preempting, request)
        super()._preempt_request(request, *args, **options)

    def _handle_stopped_request(self, request: Any) -> bool:
        if self.lifetime is not None and request.resumable:
            self._ours(None, self.lifetime.turn_over, request)
        return bool(super()._handle_stopped_request(request))  # type: ignore[misc]  # mixin

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        super()._update_request_as_session(session, update)  # type: ignore[misc]  # mixin
        if self.lifetime is not None:
            self._ours(None, self.lifetime.arrived, session)

    def shutdown(self) -> None:
        """Write what is left to be written; what fails is logged, and vLLM shuts down."""
        if self.lifetime is not None:
            self._ours(None, self.lifetime.catch_up)
        try:
            if self._service is not None:
                self._service.close()
        except Exception as error:  # noqa: BLE001  # nothing of ours keeps vLLM from its own
            LOG.error("what was left to be written is lost (%s)", named(error))
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
