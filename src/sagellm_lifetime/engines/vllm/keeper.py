"""A thread that writes what the engine has to say, so that the engine's own never waits."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread

from sagellm_lifetime.engines.vllm.breaker import LOG


class Keeper(Thread):
    """Does its jobs every so often, whatever becomes of any of them.

    Args:
        name: of the thread.
        every_s: seconds between two rounds.
        jobs: done in this order; one that fails is reported when its failure is a new one.
    """

    def __init__(self, name: str, every_s: float, jobs: list[Callable[[], None]]) -> None:
        super().__init__(name=name, daemon=True)
        self._every = every_s
        self._jobs = jobs
        self._stopped = Event()
        self._said: dict[int, str] = {}

    def run(self) -> None:
        """Until it is told to stop."""
        while not self._stopped.wait(self._every):
            self.round()

    def round(self) -> None:
        """Every job once."""
        for i, job in enumerate(self._jobs):
            try:
                job()
            except Exception as error:  # noqa: BLE001  # the next round may find it mended
                if self._said.get(i) != str(error):
                    LOG.error("%s: %s", self.name, error)
                self._said[i] = str(error)
            else:
                self._said.pop(i, None)

    def close(self, timeout: float = 10.0) -> None:
        """One last round, by the caller."""
        self._stopped.set()
        if self.is_alive():
            self.join(timeout)
        self.round()
