"""Release of the GIL between two pieces of work, for threads beside an engine's."""

from __future__ import annotations

import time
from typing import Final

_PAUSE_S: Final = 0.0002


def yield_gil() -> None:
    """Sleep for 0.2 ms, so that another thread gets the GIL; call it about every 0.5 ms of work.

    Python takes the GIL from a computing thread only after 5 ms, and a thread that releases it and
    takes it back at once, as NumPy does, keeps it from those that wait. Sleeping gives it away.
    """
    time.sleep(_PAUSE_S)
