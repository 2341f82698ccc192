"""Reduce a text to counts and hashed words; the text itself is not kept."""

from __future__ import annotations

import re
from math import log1p
from typing import Final
from zlib import crc32

import numpy as np

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.values import whole
from sagellm_lifetime.features.encode import LEXICAL, STRUCTURE

BUCKETS: Final = 4096
"""Hashed vocabulary shared by token ids and words."""
MOST_WORDS: Final = 128
_INT: Final = {int}
_WORD = re.compile(r"\w+|[^\w\s]")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_NUMBERED = re.compile(r"^\s*\d+[.)]\s", re.MULTILINE)
_HEADING = re.compile(r"^#+\s", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_CONCLUSIONS: Final = ("overall", "in conclusion", "in summary", "finally")
_CLOSINGS: Final = ("let me know", "hope this", "feel free", "any other")


def token_buckets(token_ids: list[int]) -> np.ndarray:
    """Return the buckets of token ids, int64; of a long list the first and the last 64.

    Raises:
        RequestError: one of those is no integer of 64 bits.
    """
    if len(token_ids) > MOST_WORDS:
        half = MOST_WORDS // 2
        token_ids = [*token_ids[:half], *token_ids[-half:]]
    ids = token_array(token_ids)
    # Fibonacci hashing spreads neighbouring ids, which vocabularies order by frequency.
    return ((ids * 2654435761) >> 7) % BUCKETS


def token_array(token_ids: list[int]) -> np.ndarray:
    """Return token ids as an array, int64, shape ``(len(token_ids),)``.

    NumPy alone would read 1.5, ``True`` and ``"1"`` as 1.

    Raises:
        RequestError: one of them is no integer of 64 bits.
    """
    if not _INT.issuperset(map(type, token_ids)):
        if any(whole(token) is None for token in token_ids):
            raise RequestError("token_ids must be a list of integers")
        token_ids = [int(token) for token in token_ids]
    try:
        return np.array(token_ids, dtype=np.int64)
    except OverflowError as error:
        raise RequestError("token_ids must be integers of at most 64 bits") from error


def word_buckets(text: str) -> np.ndarray:
    """Return the buckets of the words of a text, int64; of a long one the first and last 64."""
    half = MOST_WORDS // 2
    words = _WORD.findall(text[: 12 * MOST_WORDS].lower())
    if len(words) > half and len(text) > 12 * MOST_WORDS:
        words = words[:half] + _WORD.findall(text[-6 * MOST_WORDS :].lower())[-half:]
    hashed = [crc32(word.encode("utf-8", "surrogatepass")) % BUCKETS for word in words[:MOST_WORDS]]
    return np.array(hashed, dtype=np.int64)


def lexical(text: str) -> np.ndarray:
    """Return sizes and punctuation of a prompt, float32, shape ``(LEXICAL,)``."""
    n = max(len(text), 1)
    words = text.count(" ") + 1
    return np.array(
        [
            log1p(len(text)) / 8,
            log1p(words) / 8,
            log1p(text.count("\n")) / 4,
            text.count("?") > 0,
            text.rstrip().endswith("?"),
            log1p(text.count(",")) / 4,
            sum(map(str.isdigit, text[:2000])) / min(n, 2000),
            sum(map(str.isupper, text[:2000])) / min(n, 2000),
            "```" in text,
            log1p(len(_BULLET.findall(text))) / 3,
            text.count('"') > 1,
            1.0,
        ],
        dtype=np.float32,
    )[:LEXICAL]


def text_structure(text: str) -> np.ndarray:
    """Return the structure of a generated text so far, float32, shape ``(STRUCTURE,)``.

    Lists, headings, code, and whether it ends like a last sentence.
    """
    ending = text[-400:].lower()
    last_line = text[text.rfind("\n") + 1 :]
    open_code = text.count("```") % 2
    return np.array(
        [
            1.0,
            log1p(text.count("\n\n")) / 4,
            log1p(len(_BULLET.findall(text))) / 3,
            log1p(len(_NUMBERED.findall(text))) / 3,
            log1p(len(_HEADING.findall(text))) / 3,
            log1p(len(_SENTENCE_END.findall(text))) / 4,
            open_code,
            "```" in text,
            bool(_SENTENCE_END.search(text[-3:])),
            log1p(len(last_line)) / 6,
            bool(_BULLET.match(last_line)),
            any(phrase in ending for phrase in _CONCLUSIONS),
            any(phrase in ending for phrase in _CLOSINGS),
            log1p(len(text)) / 8,
        ],
        dtype=np.float32,
    )[:STRUCTURE]


def token_structure(recent: np.ndarray, eos: list[float], entropy: list[float]) -> np.ndarray:
    """Return the structure of a chunk of tokens, float32, shape ``(STRUCTURE,)``.

    Args:
        recent: buckets of the tokens.
        eos: log-probabilities of an end (nats), may be empty.
        entropy: entropies (nats), may be empty.
    """
    x = np.zeros(STRUCTURE, dtype=np.float32)
    x[1] = len(np.unique(recent)) / max(len(recent), 1)
    if eos:
        x[2], x[3], x[6] = sum(eos) / len(eos) / 16.0, 1.0, eos[-1] / 16.0
    if entropy:
        x[4], x[5], x[7] = sum(entropy) / len(entropy) / 4.0, 1.0, entropy[-1] / 4.0
    return x
