"""The sequence that a network reads: recent completions, admission, chunks of the output."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from math import isnan
from typing import Any, Final, NamedTuple

import numpy as np

from sagellm_lifetime.core.errors import RequestError, shown
from sagellm_lifetime.core.grid import MAX_LENGTH
from sagellm_lifetime.core.logit_signals import SIGNAL_EVERY, SIGNALS
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.context import RecentCompletions
from sagellm_lifetime.features.encode import admission_step, chunk_step, finished_step
from sagellm_lifetime.features.hidden_state import HiddenReadings
from sagellm_lifetime.features.prompt_terms import PromptTerms
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.features.text import (
    lexical,
    text_structure,
    token_array,
    token_buckets,
    token_structure,
    word_buckets,
)

NAME_BUCKETS: Final = 2048
MOST_CHUNKS: Final = 6
"""Chunks that a network reads, the newest; older ones are in the cumulative counts."""
_SIGNAL: Final = 100.0
_ODD: Final = 2_654_435_769
"""Factor in the bucket of a pair, so that the pair of client and model has another."""
_NONE: Final = np.zeros(0, dtype=np.int64)


class Step(NamedTuple):
    """Step of evidence: numbers ``(WIDTH,)``, buckets of tokens, buckets of names (int64)."""

    numbers: np.ndarray
    tokens: np.ndarray
    names: np.ndarray


@dataclass(slots=True)
class Evidence:
    """Evidence of a running sequence; a model may extend it.

    Attributes:
        features: features of the first request.
        session: key of its session or conversation, 0 for none.
        terms: hashed terms of its prompt; empty without content.
        hidden: readings of the served model's hidden state.
    """

    features: RequestFeatures
    session: int
    terms: tuple[PromptTerms, ...] = field(default=(), kw_only=True)
    hidden: HiddenReadings | None = field(default=None, kw_only=True)


@dataclass(slots=True)
class SequenceEvidence(Evidence):
    """The steps that a network reads of one running sequence.

    Attributes:
        features: the request at admission.
        session: key of its session, 0 for none.
        start: recent completions and the admission.
        chunks: the generation so far.
        age: tokens generated when the newest step was read.
        chunks_read: complete chunks that were looked at, with content or without.
        marks: age, number of chunks and number of readings of the hidden state of each answer.
        bases: logits of the residual-life table at the last answer with so many readings, shape
            ``(BINS,)`` each.
    """

    start: list[Step]
    age: int
    chunks: list[Step] = field(default_factory=list)
    chunks_read: int = 0
    marks: list[tuple[int, int, int]] = field(default_factory=list)
    bases: dict[int, np.ndarray] = field(default_factory=dict)

    def steps(self, chunks: int | None = None) -> list[Step]:
        """Return the steps after ``chunks`` chunks (by default all of them)."""
        read = self.chunks if chunks is None else self.chunks[:chunks]
        return [*self.start, *read[-MOST_CHUNKS:]]


def read_evidence(
    request: PredictionRequest,
    session: int,
    features: RequestFeatures,
    recent: RecentCompletions,
    terms: tuple[PromptTerms, ...] = (),
    hidden: HiddenReadings | None = None,
) -> SequenceEvidence:
    """Return the evidence at the first request of a sequence.

    Args:
        request: the request.
        session: key of its session, 0 for none.
        features: its features.
        recent: recent completions of sessions and clients.
        terms: hashed terms of its prompt.
        hidden: readings of the served model's hidden state.
    """
    start = []
    of_session = recent.session(session)
    for owner, completions in (("client", recent.client(features)), ("session", of_session)):
        for i, finished in enumerate(completions):
            numbers = finished_step(finished, features, owner, len(completions) - 1 - i)
            start.append(Step(numbers, _NONE, _NONE))
    text = (request.prompt_features or {}).get("prompt_text")
    prompt = request.token_ids[: max(len(request.token_ids) - request.current_length, 0)]
    words = word_buckets(str(text)) if text and not prompt else _NONE
    tokens = token_buckets(prompt) if prompt else words
    numbers = admission_step(features, lexical(str(text)) if text else None, request.current_length)
    names = [key % NAME_BUCKETS for key in (features.model_key, features.client_key) if key]
    if features.model_key and features.client_key:
        names.append((features.model_key + _ODD * features.client_key) % NAME_BUCKETS)
    start.append(Step(numbers, tokens, np.array(names, dtype=np.int64)))
    return SequenceEvidence(
        features, session, start, request.current_length, terms=terms, hidden=hidden
    )


class NewChunks(NamedTuple):
    """Chunks that a request completes: its age, the number of complete chunks, the new steps."""

    age: int
    complete: int
    steps: list[Step]


def read_chunks(evidence: SequenceEvidence, request: PredictionRequest) -> bool:
    """Add the chunks that were completed since the last call; return True if there were any."""
    new = new_chunks(evidence, request)
    if new is None:
        return False
    take_chunks(evidence, new)
    return True


def with_chunks(evidence: SequenceEvidence, new: NewChunks) -> SequenceEvidence:
    """Return evidence with what :func:`new_chunks` has read; the given one is as it was."""
    return SequenceEvidence(
        evidence.features,
        evidence.session,
        evidence.start,
        new.age,
        evidence.chunks + new.steps,
        new.complete,
        evidence.marks,
        evidence.bases,
        terms=evidence.terms,
        hidden=evidence.hidden,
    )


def take_chunks(evidence: SequenceEvidence, new: NewChunks) -> None:
    """Add what :func:`new_chunks` has read to the evidence."""
    evidence.chunks.extend(new.steps)
    evidence.chunks_read = new.complete
    evidence.age = new.age


def check_content(request: PredictionRequest) -> None:
    """Raise :class:`RequestError` where tokens or text could not be read at any age.

    Every token is checked, so it is for requests whose parts are read later, not for each step.
    """
    token_array(request.token_ids)
    _output_text(request)


def _output_text(request: PredictionRequest) -> str | None:
    text = (request.prompt_features or {}).get("output_text")
    if text is not None and not isinstance(text, str):
        raise RequestError(
            f"prompt_features of {shown(request.sequence_id)}: output_text must be text, "
            f"not {type(text).__name__}"
        )
    return text


def new_chunks(evidence: SequenceEvidence, request: PredictionRequest) -> NewChunks | None:
    """Return the chunks that were completed since the last call, or ``None`` if there are none.

    Nothing is changed. Raise :class:`RequestError` if tokens or text cannot be read.
    """
    age = request.current_length
    complete = chunks_at(age)
    if complete <= evidence.chunks_read:
        return None
    prompt_features = request.prompt_features or {}
    tokens = generated_tokens(request, evidence.features.prompt_length)
    text = _output_text(request)
    if not tokens and not text:
        return None
    steps = []
    for i in range(evidence.chunks_read, complete):
        begin, end = CHUNK_AGES[i - 1] if i else 0, CHUNK_AGES[i]
        if tokens:
            buckets = token_buckets(tokens[begin:end])
            eos, entropy = (_signal(prompt_features.get(name), begin, end) for name in SIGNALS)
            structure = token_structure(buckets, eos, entropy)
        else:
            # Characters stand in for tokens: the text so far, cut in proportion.
            whole = text or ""
            so_far = whole[: len(whole) * end // age]
            buckets = word_buckets(so_far[len(whole) * begin // age :])
            structure = text_structure(so_far)
        steps.append(Step(chunk_step(end, end - begin, structure), buckets, _NONE))
    return NewChunks(age, complete, steps)


def _signal(value: Any, begin: int, end: int) -> list[float]:
    """Return a signal's values for the tokens from ``begin`` to ``end``; a number is for all."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        value = value[begin // SIGNAL_EVERY : end // SIGNAL_EVERY]
    else:
        value = [value]
    return [number for number in map(_number, value) if number is not None]


def _number(value: Any) -> float | None:
    """Return a float within bounds (the logarithm of a probability may be -inf), else ``None``."""
    try:
        number = float(value)
    except Exception:  # noqa: BLE001 - the value's own code failed, so it is no number
        return None
    return None if isnan(number) else min(max(number, -_SIGNAL), _SIGNAL)


def _chunk_ages() -> list[int]:
    ages, base = [16], 32
    while base <= MAX_LENGTH:
        ages += [base, base * 3 // 2]
        base *= 2
    return ages


CHUNK_AGES: Final[list[int]] = _chunk_ages()
"""Ages at which a chunk ends: 16, 32, 48, 64, 96, 128, 192, …; two per octave, so that there are
few at any length."""


def chunks_at(age: int) -> int:
    """Return how many chunks are complete at ``age`` tokens."""
    return bisect_right(CHUNK_AGES, age)


def generated_tokens(request: PredictionRequest, prompt_length: int | None) -> list[int]:
    """Return the generated part of ``token_ids``, empty if only the prompt was passed.

    By contract ``token_ids`` is the prompt followed by the generated tokens; only the generated
    tokens are accepted too. An engine that always passes only the prompt is recognised by the
    prompt length, if that is known.
    """
    age, n = request.current_length, len(request.token_ids)
    if age == 0 or n < age:
        return []
    is_output_only = n == age and n != prompt_length
    if prompt_length is not None and n != prompt_length + age and not is_output_only:
        return []
    return request.token_ids[n - age :]
