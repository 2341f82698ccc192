"""Steps of beam search, told from sequences.

vLLM's front end makes every step of every beam a request of its own: it asks for one token, and
with ``detokenize=False`` for the log-probabilities that the beams are chosen by. Served, their ids
contain ``-beam-``; offline they have plain ids. None of them is an answer, however many there are:
they are scheduled like the others, and neither predicted nor recorded, learned from nor scored.
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
