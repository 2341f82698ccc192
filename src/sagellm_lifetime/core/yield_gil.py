"""Release of the GIL between two pieces of work, for threads beside an engine's."""

from __future__ import annotations

import time
from typing import Final

_PAUSE_S: Final = 0.0002


def yield_gil() -> None:
    """Sleep for 0.2 ms, so that another thread gets the GIL; call it about every 0.5 ms of work.

    Python removes the GIL from a computing thread only after 5 ms, and a thread that releases and
    acquires it again at once, as NumPy does, leaves it to no waiting thread. Sleeping releases it.
    """
    time.sleep(_PAUSE_S)
