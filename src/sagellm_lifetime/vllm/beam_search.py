"""Detection of beam search steps.

vLLM's front end makes every step of every beam a request of its own, for one token, with
``detokenize=False`` and the log-probabilities for the choice of beams. Served, their ids contain
``-beam-``; offline they have plain ids. They are not answers: they are scheduled like other
requests, but neither predicted, recorded, learned from nor scored.
"""

from __future__ import annotations

from typing import Any, Final

_MARK: Final = "-beam-"


def is_beam_step(request: Any) -> bool:
    """Return True if a request is one step of a beam, or a prompt scored in the same way."""
    if request.max_tokens != 1:
        return False
    params = request.sampling_params
    return not params.detokenize and (bool(params.logprobs) or _MARK in request.request_id)
