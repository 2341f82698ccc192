"""Training samples from a history: evidence as in service, at random ages.

The history is processed in time order: at each arrival the evidence is read and the table
predicts, at each finish it learns. Ages are drawn without looking at the length; a sequence that
had ended by then gives no sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.evidence import SequenceEvidence, Step, read_chunks
from sagellm_lifetime.features.hidden_state import HiddenReadings, read_hidden
from sagellm_lifetime.models.context import Context, ObservedRequest
from sagellm_lifetime.models.hidden_score import HiddenScore
from sagellm_lifetime.models.residual_life import ResidualLife
from sagellm_lifetime.models.shrinkage import INSIDE
from sagellm_lifetime.networks.head import base_logits
from sagellm_lifetime.networks.samples import Sample

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.models.base import Progress

Read = Callable[[ObservedRequest], SequenceEvidence]
Answer = tuple[list[Step], np.ndarray, int]
"""Steps, logits of the residual-life table, and the age of the newest step."""
_AGES: Final = 16 * 2 ** np.arange(0, 10)
_LATE_SHARE: Final = 0.25
"""Share of rows without content that also give a sample at a later age."""
_CONTENT_AGES: Final = 2
"""Number of ages drawn for each row with content, beside the admission."""


class Tables(NamedTuple):
    """Residual-life table and hidden score, which a network corrects together."""

    lives: ResidualLife
    hidden: HiddenScore

    def logits(self, evidence: SequenceEvidence, hidden: HiddenReadings | None) -> np.ndarray:
        """Return the logits of the hazards of a request, float32 of shape ``(BINS,)``."""
        known = self.lives.known(evidence.features, evidence.session)
        base: np.ndarray = base_logits(self.hidden.applied(known, hidden).padded[INSIDE])
        return base.astype(np.float32)

    def learn(
        self,
        evidence: SequenceEvidence,
        hidden: HiddenReadings | None,
        length: int,
        *,
        censored: bool,
    ) -> None:
        """Learn from one completion; of the hidden score only shape and weights."""
        known = self.lives.known(evidence.features, evidence.session) if hidden else None
        ended = evidence.features, evidence.session, length
        if self.lives.learn(*ended, censored=censored) and hidden is not None:
            self.hidden.learn(hidden, length, known, censored=censored, replayed=True)


class History:
    """Pass over a history that yields samples and learns the history.

    Args:
        read: a model's function from a request to the evidence of its admission.
        tables: what predicts at each arrival and learns at each finish.
        context: recent traffic, which learns at each finish.
        rng: generator of the ages.
    """

    def __init__(
        self, read: Read, tables: Tables, context: Context, rng: np.random.Generator
    ) -> None:
        self._read_admission, self._tables, self._context, self._rng = read, tables, context, rng

    def samples(
        self,
        frame: pl.DataFrame,
        progress: Progress | None,
        scores: Sequence[float | None] | None = None,
        hidden: Sequence[HiddenReadings | None] | None = None,
    ) -> Iterator[Sample]:
        """Yield samples of the next part of the history, in the order of the finishes.

        Args:
            frame: rows of the part.
            progress: called with the name of the step and the share done; ``None`` for no calls.
            scores: prompt scores of the first rows, made without them; the model's by default.
            hidden: readings of the rows with scores made without them; the model's by default.
        """
        from sagellm_lifetime.features.rows import HistoryRequests
        from sagellm_lifetime.history.prequential import censored, events

        requests = HistoryRequests(frame)
        lengths = frame["actual_length"].to_list()
        open_ended = censored(frame).tolist()
        waiting: dict[int, tuple[SequenceEvidence, HiddenReadings | None, list[Sample]]] = {}
        for step, (row, finished) in enumerate(events(frame)):
            if not finished:
                ages = [0, *_drawn_ages(self._rng, has_content=requests.has_content)]
                predicted = [requests.request(row, age) for age in ages if age < lengths[row]]
                score = scores[row] if scores is not None else None
                readings = hidden[row] if hidden is not None else None
                if readings is None:
                    readings = read_hidden(requests.request(row, lengths[row]))
                asked = predicted or [requests.request(row)]
                evidence, answers = self._answers(asked, score, readings)
                waiting[row] = (
                    evidence,
                    readings,
                    [
                        Sample(*answer, lengths[row], open_ended[row])
                        for answer in answers[: len(predicted)]
                    ],
                )
                continue
            evidence, readings, samples = waiting.pop(row)
            yield from samples
            ended = evidence.features, evidence.session, lengths[row]
            self._context.learn(*ended, censored=open_ended[row])
            self._tables.learn(evidence, readings, lengths[row], censored=open_ended[row])
            if progress and step % 512 == 0:
                progress("reading", step / (2 * len(frame)))

    def _answers(
        self,
        requests: list[PredictionRequest],
        score: float | None,
        readings: HiddenReadings | None,
    ) -> tuple[SequenceEvidence, list[Answer]]:
        """Return the evidence of a sequence predicted at ascending ages, and the answers."""
        evidence = self._read(requests[0], score)
        answers = []
        for request in requests:
            age = request.current_length
            base = self._tables.logits(evidence, readings.at(age) if readings else None)
            if age == 0 or read_chunks(evidence, request):
                answers.append((evidence.steps(), base, evidence.age))
            else:
                # Without new content, the sample is that of a first prediction at this age.
                answers.append((self._read(request, score).steps(), base, age))
        return evidence, answers

    def _read(self, request: PredictionRequest, score: float | None) -> SequenceEvidence:
        observed = self._context.observe(request)
        if score is not None:
            observed = observed._replace(features=replace(observed.features, prompt_score=score))
        return self._read_admission(observed)


def _drawn_ages(rng: np.random.Generator, *, has_content: bool) -> list[int]:
    if has_content:
        # Uniform on the logarithm: as many at 16–32 as at 4096–8192.
        return sorted(int(a) for a in 16 * 2 ** rng.uniform(0, 7, _CONTENT_AGES))
    return [int(rng.choice(_AGES))] if rng.random() < _LATE_SHARE else []
