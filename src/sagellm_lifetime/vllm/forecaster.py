"""A predictor asked by a live engine: its answers are looked at before anybody believes them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np

from sagellm_lifetime.core.protocol import PredictionRequest, PredictionResult, SequenceId
from sagellm_lifetime.policies.forecast import PredictedLengths
from sagellm_lifetime.policies.state import HORIZON, Outlook
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.vllm.circuit_breaker import NonsenseError
from sagellm_lifetime.vllm.events import BEAM_STEP, CAME, OVER, Event, Heard
from sagellm_lifetime.vllm.prediction_statistics import Tally

_ROUNDING = 1e-6
_ONE_TOKEN = Outlook.exact(np.ones(1)).survival[0]
"""Survival of what ends after one token, whatever the model says."""


class LiveForecaster(PredictedLengths):
    """Keeps the tally, and learns only where it is told to.

    Args:
        predictor: any predictor.
        tally: where first predictions are noted.
        learn: whether completions are passed on; otherwise they are forgotten.
        doubting: whether its confidence is asked for, which costs as much as all the rest.
    """

    def __init__(
        self, predictor: Predictor, tally: Tally, *, learn: bool, doubting: bool = False
    ) -> None:
        super().__init__(predictor, doubting=doubting)
        self._tally = tally
        self._learn = learn
        self._foreseen: dict[SequenceId, tuple[int, np.ndarray, float]] = {}
        """Ages and outlooks of those that wait, until they are asked for."""
        self._beam_steps: set[SequenceId] = set()
        """Of beam search: the predictor does not know them."""

    @property
    def lessons(self) -> int:
        """Completions that the state in use was learned from, earlier runs included."""
        # Not by get_metrics(), whose lock a call that hangs may hold: any thread may ask this.
        return self.predictor.lessons

    def hear(self, events: Sequence[Event], heard: Heard) -> None:
        """Ask about those that come, and tell of those that end; ``heard`` grows with each."""
        predict, finished = self.predictor.predict, self.finished
        for kind, of, more, why in events:
            if kind is CAME and more is not None:
                request = more(of)
                heard.append(_total(request, predict(request)))
            else:
                if kind is CAME:
                    self.step_of_beam(of.request_id)
                elif why is BEAM_STEP:
                    self._beam_steps.discard(of.request_id)
                elif kind is OVER:
                    finished(of.request_id, of.num_output_tokens, more, why)
                heard.append(None)

    def step_of_beam(self, request_id: SequenceId) -> None:
        """Remember a step of beam search: it ends after one token, and nobody is asked."""
        self._beam_steps.add(request_id)

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """They have generated more, or are new to the predictor."""
        answers = self.predictor.predict_batch(requests)
        if len(answers) != len(requests):
            raise NonsenseError(f"{len(answers)} answers to {len(requests)} questions")
        for request, answer in zip(requests, answers, strict=True):
            self._tally.predicted(str(request.sequence_id), *_total(request, answer))

    def foresee(self, requests: Sequence[PredictionRequest]) -> None:
        """They wait, and are new to the predictor: a piece of a queue too long to ask at once."""
        self.grown(requests)
        ids, ages = [each.sequence_id for each in requests], [r.current_length for r in requests]
        found = self._asked(ids, np.array(ages))
        answers = zip(ages, found.survival, found.confidence.tolist(), strict=True)
        self._foreseen.update(zip(ids, answers, strict=True))

    def outlook(self, ids: Sequence[SequenceId], ages: np.ndarray) -> Outlook:
        """What was foreseen of them, and of the others what the predictor says now."""
        if not (self._foreseen or self._beam_steps):
            return self._asked(ids, ages)
        survival, confidence = np.empty((len(ids), len(HORIZON))), np.empty(len(ids))
        new = []
        for i, (each, age) in enumerate(zip(ids, ages.tolist(), strict=True)):
            seen = self._foreseen.pop(each, None)
            if each in self._beam_steps:
                survival[i], confidence[i] = _ONE_TOKEN, 1.0
            elif seen is not None and seen[0] == age:
                _, survival[i], confidence[i] = seen
            else:
                new.append(i)
        if new:
            asked = self._asked([ids[i] for i in new], ages[new])
            survival[new], confidence[new] = asked.survival, asked.confidence
        return Outlook(survival, confidence)

    def _asked(self, ids: Sequence[SequenceId], ages: np.ndarray) -> Outlook:
        """As of any predictor, checked."""
        outlook = super().outlook(ids, ages)
        survival, confidence = outlook.survival, outlook.confidence
        if survival.shape != (len(ids), len(HORIZON)) or confidence.shape != (len(ids),):
            raise NonsenseError(
                f"survival of shape {survival.shape} and confidence of shape {confidence.shape} "
                f"for {len(ids)} sequences"
            )
        # A comparison with NaN is false.
        if len(ids) and not (
            survival.min() >= -_ROUNDING
            and survival.max() <= 1.0 + _ROUNDING
            and confidence.min() >= -_ROUNDING
            and confidence.max() <= 1.0 + _ROUNDING
        ):
            raise NonsenseError("a probability that is none")
        return outlook

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Learn from it, or forget it."""
        self._foreseen.pop(sequence_id, None)
        if self._learn:
            super().finished(sequence_id, length, seconds, reason)
        else:
            self.predictor.discard(sequence_id)

    def forget(self, ids: Sequence[SequenceId]) -> None:
        """They are asked about no more; nor is anybody about whom something was foreseen."""
        self._foreseen.clear()
        self._beam_steps.clear()
        for each in ids:
            self.predictor.discard(each)


def _total(request: PredictionRequest, answer: PredictionResult) -> tuple[int, float]:
    """Total length and confidence of an answer, if it is one."""
    remaining, confidence = answer.estimated_remaining_tokens, answer.confidence
    if isinstance(remaining, bool) or not isinstance(remaining, int) or remaining < 0:
        raise NonsenseError(f"{remaining!r} tokens remaining")
    if not 0.0 <= confidence <= 1.0 + _ROUNDING:
        raise NonsenseError(f"a confidence of {confidence!r}")
    if not (isfinite(answer.estimated_time) and answer.estimated_time >= 0.0):
        raise NonsenseError(f"{answer.estimated_time!r} seconds remaining")
    return request.current_length + remaining, confidence
