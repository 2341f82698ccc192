"""The schedulers of the benchmark: vLLM's own and ours, both with a log, and ours with an oracle.

``--scheduler-cls live.watched.scheduler``, with ``--additional-config '{"load": {"log": FILE}}'``:

    log      where the lines of ``accounts.py`` go
    detail   true: with the schedule itself
    oracle   true: the lengths that requests name as ``end_at`` in the place of predictions

Whether it is ours is said as everywhere, by the key ``lifetime``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from live import END_AT
from live.accounts import Accounts
from sagellm_lifetime.policies.forecast import KnownLengths
from sagellm_lifetime.vllm.live import LiveScheduler, Scheduler  # first: it mends imports
from sagellm_lifetime.vllm.settings import KEY

CONFIG = "load"


class Logged:
    """Goes before a scheduler class."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        said = self.vllm_config.additional_config[CONFIG]
        path = Path(said["log"])
        path.parent.mkdir(parents=True, exist_ok=True)
        self.accounts = Accounts(
            self.requests, path.open("w", encoding="utf-8"), detail=said.get("detail", False)
        )

    def add_request(self, request: Any) -> None:
        super().add_request(request)
        self.accounts.arrived(request)

    def schedule(self, *args: Any, **options: Any) -> Any:
        started = time.time()
        output = super().schedule(*args, **options)
        self.accounts.scheduled(output, started, self.running, len(self.waiting))
        return output

    def update_from_output(self, *args: Any, **options: Any) -> Any:
        found = super().update_from_output(*args, **options)
        self.accounts.updated()
        return found

    def _free_request(self, request: Any, *args: Any, **options: Any) -> Any:
        self.accounts.finished(request)
        return super()._free_request(request, *args, **options)


class LoggedScheduler(Logged, Scheduler):
    """vLLM's own."""


class LoggedLiveScheduler(Logged, LiveScheduler):
    """Ours."""


class OracleScheduler(LoggedLiveScheduler):
    """Ours, lengths known."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._lengths: dict[str, int] = {}
        super().__init__(*args, **options)

    def switch_on(self, settings: Any) -> None:
        super().switch_on(settings)
        # It predicts and counts as ever; who decides hears the truth.
        self.advisor._forecaster.forecast = KnownLengths(self._lengths).forecast

    def add_request(self, request: Any) -> None:
        # A request of somebody else, which names no length, is taken for one that fills its cap.
        said = request.sampling_params.extra_args or {}
        self._lengths[request.request_id] = int(said.get(END_AT, request.max_tokens))
        super().add_request(request)


def scheduler(vllm_config: Any, **options: Any) -> Any:
    """The scheduler that the configuration asks for."""
    if vllm_config.scheduler_config.async_scheduling:
        raise ValueError("the log is of engines without asynchronous scheduling")
    said = vllm_config.additional_config
    made = LoggedScheduler
    if KEY in said:
        made = OracleScheduler if said[CONFIG].get("oracle") else LoggedLiveScheduler
    return made(vllm_config=vllm_config, **options)
