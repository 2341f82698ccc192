"""vLLM 0.29 and 0.30: one limit of running sequences, and one queue of skipped requests.

0.31 has a limit of admissions apart from the number of slots of the model runner, and it keeps the
requests that hold memory in a queue of their own, apart from the set of those that were skipped.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

ATTRIBUTES: Final = ("max_num_running_reqs", "skipped_waiting")
"""What this file uses of the scheduler's constructor."""


class SchedulerNames:
    """The names of 0.31 for what the scheduler of 0.29 and 0.30 has, as a base of our mixin.

    >>> class Scheduler(SchedulerNames):
    ...     skipped_waiting, max_num_running_reqs = ["held back"], 256
    >>> scheduler = Scheduler()
    >>> scheduler.max_num_active_reqs = 8
    >>> scheduler.max_num_running_reqs, scheduler.kv_holding_waiting
    (8, ['held back'])
    """

    skipped_waiting: Any
    max_num_running_reqs: int

    @property
    def max_num_active_reqs(self) -> int:
        """Return the limit of running sequences, which a step compares before each admission."""
        return self.max_num_running_reqs

    @max_num_active_reqs.setter
    def max_num_active_reqs(self, limit: int) -> None:
        self.max_num_running_reqs = limit

    @property
    def kv_holding_waiting(self) -> Any:
        """Return the queue from which vLLM admits before ``waiting``."""
        return self.skipped_waiting

    @property
    def deferred_waiting(self) -> Container[Any]:
        """Return the skipped requests in ``waiting``: none, as they are in the other queue."""
        return ()
