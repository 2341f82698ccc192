"""vLLM 0.31 to 0.33: the names that our scheduler mixin uses are vLLM's own."""

from __future__ import annotations

from typing import Final

ATTRIBUTES: Final = ("max_num_active_reqs", "kv_holding_waiting", "deferred_waiting")
"""What 0.30 has under other names."""


class SchedulerNames:
    """Nothing to add to vLLM's scheduler."""
