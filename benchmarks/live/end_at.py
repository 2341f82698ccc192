"""A logits processor that ends an answer at a length that was given: neither before nor after.

So that every arm generates the same tokens' worth of work, whatever it decides. The request says
``"vllm_xargs": {"end_at": N}``; nobody but this class, the log and the oracle reads it.
"""

from __future__ import annotations

from typing import Any

from sagellm_lifetime.vllm.logits_processor import ends  # first: it mends imports

import torch  # isort: skip
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from live import END_AT


class EndAt(LogitsProcessor):
    """Follows the requests of one engine core."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        found = ends(vllm_config.model_config)
        if not found:
            raise ValueError("the model names no token that ends a sequence")
        self._ends = torch.tensor(found, device=device)
        self._asked: dict[int, tuple[int, list[int]]] = {}
        """Row of the batch -> length, tokens generated so far (vLLM's own list, which grows)."""

    def is_argmax_invariant(self) -> bool:
        """No: it decides what the likeliest token is."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests through the rows of the batch."""
        process_dict_updates(self._asked, batch_update, _asked)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Forbid an end, or allow nothing else; ``logits`` has shape (rows, vocabulary)."""
        last = [row for row, (end, output) in self._asked.items() if len(output) + 1 >= end]
        early = [row for row, (end, output) in self._asked.items() if len(output) + 1 < end]
        if early:
            logits[torch.tensor(early)[:, None], self._ends] = float("-inf")
        if last:
            logits[last] = float("-inf")
            logits[last, self._ends[0]] = 0.0
        return logits


def _asked(params: Any, _prompt: Any, output: list[int]) -> tuple[int, list[int]] | None:
    end = (params.extra_args or {}).get(END_AT)
    return None if end is None else (int(end), output)
