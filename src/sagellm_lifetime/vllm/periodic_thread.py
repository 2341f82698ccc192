"""A thread that writes what the engine has to say, so that the engine's own never waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Event, Thread

from sagellm_lifetime.core.errors import CheckpointError
from sagellm_lifetime.vllm.circuit_breaker import LOG, named

Job = Callable[[], None]


class PeriodicThread(Thread):
    """Does its jobs every so often, whatever becomes of any of them, and nobody else does them.

    Args:
        name: of the thread.
        every_s: seconds between two rounds.
        jobs: done in this order; one that fails is reported when its failure is a new one.
        last: done in the end; without any, the jobs once more.
    """

    def __init__(
        self, name: str, every_s: float, jobs: Sequence[Job], last: Sequence[Job] = ()
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._every = every_s
        self._jobs = jobs
        self._last = last or jobs
        self._stopped = Event()
        self._said: dict[Job, str] = {}

    def run(self) -> None:
        """Until it is told to stop."""
        while not self._stopped.wait(self._every):
            self.round()
        self._do(self._last)

    def round(self) -> None:
        """Every job once."""
        self._do(self._jobs)

    def _do(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            try:
                job()
            except Exception as error:  # noqa: BLE001  # the next round may find it mended
                # Of a file that cannot be written the reason is said; it quotes nothing else.
                said = str(error) if isinstance(error, CheckpointError) else named(error)
                if self._said.get(job) != said:
                    LOG.error("%s: %s", self.name, said)
                self._said[job] = said
            else:
                self._said.pop(job, None)

    def stop(self) -> None:
        """Begin what is done in the end; does not wait for it."""
        self._stopped.set()

    def close(self, ends: float) -> None:
        """Stop it, and wait until it is done, until ``time.monotonic() == ends`` at the latest: a
        disk may hang."""
        self.stop()
        self.join(max(ends - time.monotonic(), 0.0))
        if self.is_alive():
            LOG.error("%s hangs: nobody waits for it any longer", self.name)
