"""Reduce a prompt to hashed terms: single words or token ids, and pairs of neighbours.

Only the numbers of 65,536 buckets are kept, sorted and without counts: neither the words nor
their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple
from zlib import crc32

import numpy as np

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.text import token_array

TERM_BITS: Final = 16
"""Terms are hashed into ``2**16`` buckets (Weinberger et al. 2009)."""
_FIRST: Final = 1024
_LAST: Final = 512
"""Bytes of a text that are read: the question is at the beginning or at the end."""
_FIRST_IDS: Final = 170
_LAST_IDS: Final = 86
"""The same in token ids."""
_SHIFT: Final = np.uint64(64 - TERM_BITS)
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
"""``2**64`` over the golden ratio (Fibonacci hashing)."""
_PAIR: Final = np.uint64(0xD6E8FEB86659FD93)
_BASE: Final = 0x100000001B3
"""Base of the polynomial hash of a word, odd, so that it has an inverse modulo ``2**64``."""
_LONGEST: Final = _FIRST + _LAST + 8


def _powers(base: int) -> np.ndarray:
    powers = [1]
    for _ in range(_LONGEST):
        powers.append(powers[-1] * base % 2**64)
    return np.array(powers, dtype=np.uint64)


_POWERS: Final = _powers(_BASE)
_INVERSES: Final = _powers(pow(_BASE, -1, 2**64))
_SPACE, _WORD, _SINGLE = 0, 1, 2


def _classes() -> np.ndarray:
    """Return the class of each byte of UTF-8.

    A first byte of three or four (Chinese, Japanese and Korean characters among them) begins a word
    of its own, since these languages write no spaces; a continuation belongs to the byte before.
    """
    classes = np.full(256, _SINGLE, dtype=np.uint8)
    for byte in range(256):
        if chr(byte).isspace() and byte < 128:
            classes[byte] = _SPACE
        elif (byte < 128 and (chr(byte).isalnum() or byte == ord("_"))) or 128 <= byte < 0xE0:
            classes[byte] = _WORD
    return classes


_CLASSES: Final = _classes()
_CONTINUES: Final = np.array([0x80 <= byte < 0xC0 for byte in range(256)])
_VALUES: Final = np.where(
    _CLASSES == _SPACE, 0, (np.arange(1, 257, dtype=np.uint64) * _MIX) | np.uint64(1)
).astype(np.uint64)
"""Value of each byte in the hash of its word; a space adds nothing."""


class TermKind(Enum):
    """Source of terms; the two kinds share nothing."""

    TOKENS = "tokens"
    WORDS = "words"


class PromptTerms(NamedTuple):
    """Terms of a prompt.

    Attributes:
        kind: source of the terms.
        buckets: distinct buckets in ascending order, uint16.
    """

    kind: TermKind
    buckets: np.ndarray


def prompt_terms(request: PredictionRequest) -> tuple[PromptTerms, ...]:
    """Return the terms of a prompt: of its token ids and of its text, as far as there are any.

    Raises:
        RequestError: the token ids are no integers of 64 bits.

    Example:
        >>> from sagellm_lifetime import PredictionRequest
        >>> given = {"prompt_text": "Write a story. Write a story."}
        >>> (terms,) = prompt_terms(PredictionRequest(1, [], 0, None, given))
        >>> terms.kind, len(terms.buckets)  # write, a, story, the dot, and their four pairs
        (<TermKind.WORDS: 'words'>, 8)
    """
    terms = []
    prompt = len(request.token_ids) - request.current_length
    if prompt > 0:
        ids = request.token_ids[:prompt]
        if prompt > _FIRST_IDS + _LAST_IDS:
            ids = [*ids[:_FIRST_IDS], *ids[-_LAST_IDS:]]
        codes = token_array(ids).view(np.uint64)
        terms.append(PromptTerms(TermKind.TOKENS, _hashed(codes)))
    text = (request.prompt_features or {}).get("prompt_text")
    if text and len(words := _words(text)):
        terms.append(PromptTerms(TermKind.WORDS, _hashed(words)))
    return tuple(terms)


def prompt_key(terms: Sequence[PromptTerms]) -> int:
    """Return a checksum of the terms of a prompt, from 1 to ``2**32``; 0 if there are none."""
    return 1 + crc32(terms[0].buckets.data) if terms else 0


def _hashed(codes: np.ndarray) -> np.ndarray:
    """Return the buckets of codes and of pairs of neighbours, distinct and sorted, uint16."""
    count = len(codes)
    both = np.empty(2 * count - 1, dtype=np.uint64)
    both[:count] = codes
    np.multiply(codes[:-1], _PAIR, out=both[count:])
    both[count:] += codes[1:] * _MIX
    # The upper bits of a product depend on all lower bits of its factor, the reverse is not true.
    both ^= both >> np.uint64(32)
    both *= _MIX
    buckets = (both >> _SHIFT).astype(np.uint16)
    buckets.sort()
    keep = np.empty(len(buckets), dtype=bool)
    keep[0] = True
    np.not_equal(buckets[1:], buckets[:-1], out=keep[1:])
    distinct: np.ndarray = buckets[keep]
    return distinct


def _words(text: str) -> np.ndarray:
    """Return a 64-bit hash of each word and mark of a text, in order, uint64."""
    if len(text) > _FIRST + _LAST:
        text = f"{text[:_FIRST]} {text[-_LAST:]}"
    raw = text.lower().encode("utf-8", "surrogatepass")
    if len(raw) > _FIRST + _LAST:
        raw = raw[:_FIRST] + b" " + raw[-_LAST:]
    data = np.frombuffer(raw, dtype=np.uint8)
    classes = _CLASSES[data]
    begins = np.empty(len(data), dtype=bool)
    begins[0] = True
    np.not_equal(classes[1:], classes[:-1], out=begins[1:])
    begins |= classes == _SINGLE
    begins &= classes != _SPACE
    begins &= ~(_CONTINUES[data] & _follows_byte_above_127(data))
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, dtype=np.uint64)
    values = _VALUES[data] * _POWERS[: len(data)]
    values[: starts[0]] = 0
    sums: np.ndarray = np.add.reduceat(values, starts)
    sums *= _INVERSES[starts]
    return sums


def _follows_byte_above_127(data: np.ndarray) -> np.ndarray:
    """Return True for each byte whose predecessor is part of a character of several bytes."""
    follows = np.zeros(len(data), dtype=bool)
    np.greater(data[:-1], 127, out=follows[1:])
    return follows
