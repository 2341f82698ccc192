"""Training samples from a history: what a predictor would have known, at ages drawn blindly.

The history is passed through in time order: at each arrival the evidence is read and the tables
are asked, at each finish they learn. Ages are drawn without looking at the length; a sequence
that had ended by then is no sample there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sagellm_lifetime.core.prequential import censored, events
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.evidence import read_chunks
from sagellm_lifetime.features.rows import admission_requests
from sagellm_lifetime.learning.head import base_logits
from sagellm_lifetime.learning.replay import Sample

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.predictors.base import Progress
    from sagellm_lifetime.predictors.neural import NeuralPredictor

_AGES: Final = 16 * 2 ** np.arange(0, 10)
_LATE_SHARE: Final = 0.25
"""Share of rows without content that are also asked about for the first time at a later age."""
_CONTENT_AGES: Final = 2
"""Ages drawn for each row with content, beside the admission."""


def history_samples(
    predictor: NeuralPredictor,
    frame: pl.DataFrame,
    rng: np.random.Generator,
    progress: Progress | None,
) -> Iterator[Sample]:
    """Pass ``frame`` through the predictor's tables; yields samples as sequences finish."""
    requests = admission_requests(frame)
    lengths = frame["actual_length"].to_list()
    open_ended = censored(frame).tolist()
    content = _content(frame)
    waiting: dict[int, tuple[Any, list[Sample]]] = {}
    for step, (row, finished) in enumerate(events(frame)):
        if not finished:
            ages = [0, *_drawn_ages(rng, has_content=content is not None)]
            waiting[row] = _ask(
                predictor, requests[row], ages, lengths[row], open_ended[row], content, row
            )
            continue
        evidence, samples = waiting.pop(row)
        yield from samples
        predictor._conversations.learn(evidence.features)
        for table in (predictor._tables, predictor._recent):
            table.learn(evidence.features, evidence.session, lengths[row], censored=open_ended[row])
        if progress and step % 512 == 0:
            progress("reading", step / (2 * len(frame)))


def _drawn_ages(rng: np.random.Generator, *, has_content: bool) -> list[int]:
    if has_content:
        # Uniform on the logarithm: as many at 16–32 as at 4096–8192.
        return sorted(int(a) for a in 16 * 2 ** rng.uniform(0, 7, _CONTENT_AGES))
    return [int(rng.choice(_AGES))] if rng.random() < _LATE_SHARE else []


def _ask(
    predictor: NeuralPredictor,
    request: PredictionRequest,
    ages: list[int],
    length: int,
    is_censored: bool,
    content: tuple[str, list[Any]] | None,
    row: int,
) -> tuple[Any, list[Sample]]:
    evidence = predictor._read(request)
    base = base_logits(predictor._tables.hazards(evidence.features, evidence.session))
    base = base.astype(np.float32)
    samples = []
    for age in ages:
        if age >= length:
            break
        if age and content is not None:
            read_chunks(evidence, _later(request, age, length, content, row))
        elif age:
            asked = PredictionRequest(
                request.sequence_id, [], age, request.max_length, request.prompt_features
            )
            late = predictor._read(asked)
            samples.append(Sample(late.steps(), base, age, length, is_censored))
            continue
        samples.append(Sample(evidence.steps(), base, evidence.age, length, is_censored))
    return evidence, samples


def _content(frame: pl.DataFrame) -> tuple[str, list[Any]] | None:
    for column in ("output_token_ids", "output_text"):
        if column in frame.columns and frame[column].null_count() < len(frame):
            return column, frame[column].to_list()
    return None


def _later(
    request: PredictionRequest, age: int, length: int, content: tuple[str, list[Any]], row: int
) -> PredictionRequest:
    """The request as it would look at ``age``."""
    column, values = content
    said = dict(request.prompt_features or {})
    tokens = request.token_ids
    if column == "output_token_ids":
        tokens = [*tokens, *(values[row] or [])[:age]]
        if not request.token_ids:
            said.pop("prompt_length", None)
    else:
        text = values[row] or ""
        # The text of `age` tokens, cut in proportion; the length places the cut and no more.
        said["output_text"] = text[: len(text) * age // length]
    return PredictionRequest(request.sequence_id, tokens, age, request.max_length, said)
