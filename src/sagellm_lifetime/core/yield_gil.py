"""Taking a breath between two pieces of work, beside an engine's thread.

Python takes the GIL from a thread that computes only after 5 ms, and one that waits for it does not
get it from one that lets it go and takes it back at once, as NumPy does. It gets it from one that
sleeps.
"""

from __future__ import annotations

import time
from typing import Final

_BREATH_S: Final = 0.0002


def breathe() -> None:
    """Let the other threads have the GIL. Between two breaths: half a ms."""
    time.sleep(_BREATH_S)
