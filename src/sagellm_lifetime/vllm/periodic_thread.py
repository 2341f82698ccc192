"""A thread for periodic jobs, so that the engine's thread never waits for a disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Event, Thread

from sagellm_lifetime.core.errors import CheckpointError
from sagellm_lifetime.vllm.circuit_breaker import LOG, named

Job = Callable[[], None]


class PeriodicThread(Thread):
    """A thread that runs jobs periodically; one failure does not stop the others.

    Args:
        name: of the thread.
        every_s: seconds between two rounds.
        jobs: run in this order; a failure is logged unless it repeats the job's last one.
        last: jobs to run at the end; by default ``jobs`` once more.
    """

    def __init__(
        self, name: str, every_s: float, jobs: Sequence[Job], last: Sequence[Job] = ()
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._every = every_s
        self._jobs = jobs
        self._last = last or jobs
        self._stopped = Event()
        self._logged: dict[Job, str] = {}

    def run(self) -> None:
        """Run the jobs periodically until :meth:`stop`, then the last ones."""
        while not self._stopped.wait(self._every):
            self.round()
        self._run_jobs(self._last)

    def round(self) -> None:
        """Run every job once."""
        self._run_jobs(self._jobs)

    def _run_jobs(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            try:
                job()
            except Exception as error:  # noqa: BLE001  # the next round may succeed
                # The message of a file error is safe to log, as it quotes no request.
                message = str(error) if isinstance(error, CheckpointError) else named(error)
                if self._logged.get(job) != message:
                    LOG.error("%s: %s", self.name, message)
                self._logged[job] = message
            else:
                self._logged.pop(job, None)

    def stop(self) -> None:
        """Start the last jobs without waiting for them."""
        self._stopped.set()

    def close(self, ends: float) -> None:
        """Stop it and wait for the last jobs, but no longer than ``ends``, as a disk may hang.

        Args:
            ends: time limit on ``time.monotonic()``, seconds.
        """
        self.stop()
        self.join(max(ends - time.monotonic(), 0.0))
        if self.is_alive():
            LOG.error("%s hangs: nobody waits for it any longer", self.name)
