"""Rows of a history, for models that learn from it in bulk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.features.rows import HistoryRequests
from sagellm_lifetime.history.prequential import censored
from sagellm_lifetime.models.context import Context, ObservedRequest
from sagellm_lifetime.models.prompt_score import PromptScore

if TYPE_CHECKING:
    import polars as pl


def completions(
    frame: pl.DataFrame, context: Context, progress: Callable[[str, float], None] | None
) -> Iterator[tuple[ObservedRequest, int, bool]]:
    """Yield each row as a request, its length in tokens, and True if that is only a lower bound.

    Args:
        frame: checked rows, in time order.
        context: learns each row after it was yielded.
        progress: called with the name of the step and the share done; ``None`` for no calls.
    """
    lengths, open_ended = frame["actual_length"].to_list(), censored(frame).tolist()
    requests = HistoryRequests(frame)
    for i in range(len(frame)):
        observed = context.observe(requests.request(i))
        yield observed, lengths[i], open_ended[i]
        context.learn(observed.features, observed.session, lengths[i], censored=open_ended[i])
        if progress and i % 4096 == 0:
            progress("learning", i / len(frame))


class ScoredCompletions(NamedTuple):
    """Completions of a history in time order, with prompt scores out of fold.

    Attributes:
        features: features of the requests with prompt scores, length ``N``.
        sessions: keys of their sessions, 0 for none, length ``N``.
        lengths: generated tokens, int64 of shape ``(N,)``.
        censored: True where the length is only a lower bound, shape ``(N,)``.
    """

    features: list[RequestFeatures]
    sessions: list[int]
    lengths: np.ndarray
    censored: np.ndarray


def scored_completions(
    prompts: PromptScore,
    frame: pl.DataFrame,
    context: Context,
    progress: Callable[[str, float], None] | None,
) -> ScoredCompletions:
    """Fit a prompt score on the rows of a history; return the rows with scores out of fold.

    Args:
        prompts: an unfitted prompt score, which is fitted.
        frame: checked rows, in time order.
        context: learns all rows.
        progress: called with the name of the step and the share done; ``None`` for no calls.
    """
    rows = list(completions(frame, context, progress))
    lengths = np.array([length for _, length, _ in rows], dtype=np.int64)
    is_censored = np.array([is_bound for _, _, is_bound in rows], dtype=bool)
    requests = [observed for observed, _, _ in rows]
    features = prompts.fit(requests, lengths, is_censored)
    return ScoredCompletions(features, [one.session for one in requests], lengths, is_censored)
