"""Iteration over the rows of a history, for models that learn from it in bulk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sagellm_lifetime.core.hidden_states import COLUMNS
from sagellm_lifetime.features.hidden_state import HiddenReadings, read_hidden
from sagellm_lifetime.features.rows import HistoryRequests
from sagellm_lifetime.history.prequential import censored
from sagellm_lifetime.models.context import Context, ObservedRequest

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


def history_readings(frame: pl.DataFrame) -> list[HiddenReadings | None]:
    """Return all readings of the hidden state of each row, those of later ages, too."""
    if not set(COLUMNS) & set(frame.columns):
        return [None] * len(frame)
    requests, lengths = HistoryRequests(frame), frame["actual_length"].to_list()
    return [read_hidden(requests.request(i, lengths[i])) for i in range(len(frame))]
