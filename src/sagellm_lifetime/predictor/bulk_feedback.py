"""Teaching a predictor the rows of a history directly, without predicting them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagellm_lifetime.features.request import read_request
from sagellm_lifetime.features.rows import HistoryRequests
from sagellm_lifetime.history.prequential import censored
from sagellm_lifetime.predictor.records import Completion, Evidence

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.predictor.base import Predictor, Progress


def learn_rows(predictor: Predictor, frame: pl.DataFrame, progress: Progress | None) -> None:
    """Pass every row to the predictor's own ``_learn``, in order."""
    lengths, open_ended = frame["actual_length"].to_list(), censored(frame).tolist()
    requests = HistoryRequests(frame)
    for i in range(len(frame)):
        features = read_request(requests.request(i))
        evidence = Evidence(features, features.session_key)
        predictor._learn(Completion(evidence, lengths[i], open_ended[i]))
        if progress and i % 4096 == 0:
            progress("learning", i / len(frame))
