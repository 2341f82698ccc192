"""The model's own signals of a request, from the logits processor to predictor and history."""

from __future__ import annotations

from collections.abc import Container
from copy import copy
from typing import Any

from sagellm_lifetime.core.logit_signals import SIGNALS, windows
from sagellm_lifetime.vllm import logits_processor as eos


class LogitSignals:
    """The signals of one engine core, whose model must run in the same process."""

    def ask(self, request: Any) -> None:
        """Set a request to be watched under its own id, whatever key the client has given."""
        # A copy, as samples of one prompt may share their parameters.
        request.sampling_params = params = copy(request.sampling_params)
        params.extra_args = {**(params.extra_args or {}), eos.ASK: request.request_id}

    def receive(self, output: Any, present: Container[str]) -> None:
        """Do nothing: these signals are read in this process."""

    def seen(self, request_id: str) -> dict[str, list[float]]:
        """Return the signals of a running sequence as ``prompt_features``."""
        notes = eos.notes_of(request_id)
        return _as_features([note[0] for note in notes], [note[1] for note in notes])

    def take_fresh(self) -> set[str]:
        """Return no ids: these signals are read at the ages of other evidence."""
        return set()

    def pop(self, request_id: str, *, content: bool) -> dict[str, list[float]]:
        """Return the history columns of a finished sequence, and forget its notes."""
        return _as_features(*eos.pop(request_id))

    def keep(self, request_ids: Container[str]) -> None:
        """Forget the notes of all but these requests."""
        eos.keep(request_ids)


def _as_features(eos_logprob: list[float], entropy: list[float]) -> dict[str, list[float]]:
    return dict(zip(SIGNALS, windows(eos_logprob, entropy), strict=True)) if eos_logprob else {}
