"""Notice of the end of an engine core, at its SIGTERM.

vLLM ends its workers before it shuts the scheduler down, which takes 5 to 9 s of the 10 s of
``--shutdown-timeout 10``, and then kills the engine core with all its processes, the one that
learns among them. So what was learned is saved from the signal on, and not only at the shutdown.
"""

from __future__ import annotations

import multiprocessing
import signal
from threading import current_thread, main_thread
from typing import Any


class Termination:
    """Request to end this engine core, by SIGTERM.

    Attributes:
        is_requested: True from the first SIGTERM on.
    """

    def __init__(self) -> None:
        self.is_requested = False

    def watch(self) -> bool:
        """Put a handler of SIGTERM before the present one, if that is vLLM's; return True if so.

        An engine in the process of a program of the user's has no handler to be put before.
        """
        if multiprocessing.parent_process() is None or current_thread() is not main_thread():
            return False
        theirs = signal.getsignal(signal.SIGTERM)
        if not callable(theirs):
            return False

        def note(number: int, frame: Any) -> None:
            self.is_requested = True
            theirs(number, frame)

        signal.signal(signal.SIGTERM, note)
        return True
