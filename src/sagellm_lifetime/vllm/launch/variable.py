"""The environment variable that switches prediction on in a plain vLLM."""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "SAGELLM_LIFETIME"
"""Its value is a mode (``shadow`` or ``act``), or the settings as a JSON object."""


def variable() -> str:
    """Return the value of the variable; empty if it is not set, or ``off``."""
    value = os.environ.get(VARIABLE, "")
    return "" if value == "off" else value
