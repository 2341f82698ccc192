"""The generation so far, read in chunks: two per octave, so that it stays short at any length."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from sagellm_lifetime.core.grid import MAX_LENGTH
from sagellm_lifetime.core.protocol import PredictionRequest


def _ages() -> list[int]:
    ages, base = [16], 32
    while base <= MAX_LENGTH:
        ages += [base, base * 3 // 2]
        base *= 2
    return ages


CHUNK_AGES: Final[list[int]] = _ages()
"""16, 32, 48, 64, 96, 128, 192, … : a chunk ends at each."""


def chunks_at(age: int) -> int:
    """How many chunks are complete at ``age``."""
    return bisect_right(CHUNK_AGES, age)


def generated_tokens(request: PredictionRequest, prompt_length: int | None) -> list[int]:
    """The generated part of ``token_ids``, empty when only the prompt was passed.

    By contract ``token_ids`` is the prompt followed by what was generated; the generated part alone
    is understood too. An engine that always passes the prompt alone is told apart by the prompt
    length, where that is known.
    """
    age, n = request.current_length, len(request.token_ids)
    if age == 0 or n < age:
        return []
    alone = n == age and n != prompt_length
    if prompt_length is not None and n != prompt_length + age and not alone:
        return []
    return request.token_ids[n - age :]
