"""What every predictor shares: the way of a prediction and the way of a lesson.

    request → features → predictor → distribution → conditioned on age → calibrated → result
    completion → predictor → tracking joins it to what was known at predict time → learning

A predictor says three things: what it keeps of a request (:meth:`_read`), which cumulative hazards
follow from it (:meth:`_rows`), and what a completion teaches (:meth:`_learn`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from sagellm_lifetime.core.batch import UNCAPPED, LengthDistributionBatch
from sagellm_lifetime.core.calibration import Calibration, band_of, bands_of
from sagellm_lifetime.core.distribution import LengthDistribution, point_and_confidence
from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.protocol import (
    LifetimePredictorProtocol,
    PredictionRequest,
    PredictionResult,
    SequenceId,
)
from sagellm_lifetime.core.scores import Scores
from sagellm_lifetime.core.timing import TokenTiming
from sagellm_lifetime.core.tracking import Tracked, Tracker
from sagellm_lifetime.features.request import check_request, read_request
from sagellm_lifetime.predictors.guards import check_completion, waves
from sagellm_lifetime.predictors.hindsight import answered, calibrate
from sagellm_lifetime.predictors.knowledge import knowledge, set_knowledge
from sagellm_lifetime.predictors.records import Answered, Completion, Elsewhere, Evidence, Lesson

if TYPE_CHECKING:
    import polars as pl

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done."""

_CALIBRATE_EVERY = 32
"""Answers learned at a time, inside one ``update``. A call costs about 0.6 ms whatever there is to
learn; beyond that, 64 cost as much per answer as 32 and stall for twice as long."""


class Predictor(LifetimePredictorProtocol):
    """Base of the predictors of this package; safe to call from several threads.

    Args:
        seed: seeds everything random; equal seeds and calls give equal answers.
        capacity: how many running sequences are tracked at most.
        expire_after: seconds after which a sequence that is never asked about is forgotten.
    """

    name: ClassVar[str]
    # fmt: off
    _STAYS: ClassVar[frozenset[str]] = frozenset([
        "_options", "_lock", "_tracker", "_timing", "_scores", "_predict_calls", "_fitting",
        "_elsewhere", "summary",
    ])
    # fmt: on
    """Attributes that stay when what was learned in another process takes the place of the rest:
    who asks and what moves at once (:meth:`_note`)."""

    def __init__(
        self, *, seed: int = 0, capacity: int = 65_536, expire_after: float = 3600.0
    ) -> None:
        self._options: dict[str, Any] = {
            "seed": seed,
            "capacity": capacity,
            "expire_after": expire_after,
        }
        self._lock = RLock()
        self._tracker = Tracker(capacity, expire_after)
        self._timing = TokenTiming()
        self._calibration = Calibration()
        self._scores = Scores()
        self._lessons = 0
        self._version = 0
        self._predict_calls = 0
        self._pending: list[Answered] = []
        self._fitting = False
        self._elsewhere: Elsewhere | None = None
        self.summary: dict[str, Any] = {}
        """What it was fitted on: rows, time span, columns; no content."""

    # -- what a predictor says ---------------------------------------------------------------

    @abstractmethod
    def _rows(self, evidence: Sequence[Any]) -> Iterable[np.ndarray]:
        """Cumulative hazards of the total length, shape ``(BINS + 1,)``, of each."""

    @abstractmethod
    def _learn(self, completion: Completion) -> None:
        """Learn from one completion."""

    @abstractmethod
    def _fit(self, older: pl.DataFrame, newest: pl.DataFrame, progress: Progress | None) -> None:
        """Learn from the older part of a checked history, in time order, from scratch.

        ``newest`` will be replayed through ``predict`` and ``update`` afterwards; a network may
        use it to decide when to stop training.
        """

    @abstractmethod
    def _state(self) -> dict[str, np.ndarray]:
        """What the predictor itself learned, as arrays."""

    @abstractmethod
    def _restore(self, state: dict[str, np.ndarray]) -> None:
        """Replace what was learned with a :meth:`_state`, but for the instant parts."""

    def _restore_instant(self, state: dict[str, np.ndarray]) -> None:
        """Replace the parts that :meth:`_note` moves with those of a :meth:`_state`."""

    def _expect_swaps(self) -> None:
        """Make beforehand what takes time, for soon :func:`take_over` will be called often."""

    def _twin(self) -> Self:
        """One that knows nothing, to be restored and to take the place of this one."""
        return type(self)(**self._options)

    def _read(self, request: PredictionRequest) -> Any:
        """What to keep of a request seen for the first time."""
        features = read_request(request)
        return Evidence(features, features.session_key)

    def _more(self, evidence: Any, request: PredictionRequest) -> bool:
        """Take in what is new since the last call; whether it changes the row."""
        return False

    # -- predicting --------------------------------------------------------------------------

    def predict(self, request: PredictionRequest) -> PredictionResult:
        """Predict one sequence. Raises :class:`RequestError` for impossible numbers."""
        request = check_request(request)
        with self._lock:
            item, stale = self._observe(request)
            if stale:
                self._refresh([item])
            return self._answer(item, request.current_length, request.max_length)

    def predict_batch(self, requests: Sequence[PredictionRequest]) -> list[PredictionResult]:
        """Predict many sequences; equal to predicting them one by one."""
        requests = [check_request(request) for request in requests]
        results: list[PredictionResult | None] = [None] * len(requests)
        with self._lock:
            for wave in waves(requests, self._tracker.capacity):
                answers = self._predict_distinct([requests[i] for i in wave])
                for i, answer in zip(wave, answers, strict=True):
                    results[i] = answer
        return [result for result in results if result is not None]

    def _predict_distinct(self, requests: list[PredictionRequest]) -> list[PredictionResult]:
        observed = [self._observe(request) for request in requests]
        stale = [item for item, is_stale in observed if is_stale]
        if stale:
            self._refresh(stale)
        return self._answer_many([item for item, _ in observed], requests)

    def quantiles(
        self, sequence_ids: list[SequenceId], ages: np.ndarray, levels: float | np.ndarray
    ) -> np.ndarray:
        """The array form for engines: remaining tokens of tracked sequences at their ages.

        Args:
            sequence_ids: ids asked about before through :meth:`predict`, length ``N``.
            ages: tokens generated so far, int array of shape ``(N,)``.
            levels: quantile level or levels in ``[0, 1]``.

        Returns:
            int64 array ``(N,)``, or ``(N, Q)`` for ``Q`` levels.

        Raises:
            KeyError: for an id that is not tracked.
        """
        with self._lock:
            return self._distributions(sequence_ids, ages).quantile(levels)

    def distributions(
        self, sequence_ids: Sequence[SequenceId], ages: np.ndarray
    ) -> LengthDistributionBatch:
        """Remaining lengths of tracked sequences at their ages, calibrated.

        Args:
            sequence_ids: ids asked about before through :meth:`predict`, length ``N``.
            ages: tokens generated so far, int array of shape ``(N,)``.

        Raises:
            KeyError: for an id that is not tracked.
        """
        with self._lock:
            batch = self._distributions(sequence_ids, ages)
            # The tracker's rows change as sequences come and go; the answer does not.
            return replace(batch, rows=batch.rows[batch.index], index=np.arange(len(ages)))

    def confidences(self, sequence_ids: Sequence[SequenceId], ages: np.ndarray) -> np.ndarray:
        """Confidence of the point estimates of tracked sequences at their ages, shape ``(N,)``.

        The array form of ``PredictionResult.confidence``; arguments and errors as of
        :meth:`distributions`.
        """
        with self._lock:
            batch = self._distributions(sequence_ids, ages)
            return self._believed(batch, bands_of(ages))[1]

    def _believed(
        self, batch: LengthDistributionBatch, bands: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        points = batch.quantile(0.5)
        raw = np.where(points > 0, batch.within(points), 1.0)
        return points, self._calibration.confidences(bands, raw)

    def _distributions(
        self, sequence_ids: Sequence[SequenceId], ages: np.ndarray
    ) -> LengthDistributionBatch:
        slots = self._tracker.slots(sequence_ids)
        return LengthDistributionBatch(
            self._tracker.rows,
            slots,
            ages,
            self._tracker.caps[slots],
            self._calibration.curves,
            bands_of(ages),
        )

    def _observe(self, request: PredictionRequest) -> tuple[Tracked, bool]:
        self._predict_calls += 1
        age = request.current_length
        item = self._tracker.get(request.sequence_id, age)
        if item is None:
            evidence = self._read(request)
            item = self._tracker.admit(request.sequence_id, evidence, age, request.max_length)
            self._more(evidence, request)
            item.asked.append(age)
            return item, True
        self._tracker.set_cap(item, request.max_length)
        if self._more(item.evidence, request):
            item.asked.append(age)
            return item, True
        return item, item.version != self._version

    def _refresh(self, items: Sequence[Tracked]) -> None:
        rows, prior = self._rows([item.evidence for item in items]), self._lessons == 0
        for item, row in zip(items, rows, strict=True):
            self._tracker.rows[item.slot] = row
            # One answer for each piece of evidence; a newer version of it takes its place.
            item.answers[len(item.asked) - 1 :] = [row]
            item.version, item.prior = self._version, prior

    def _answer(self, item: Tracked, age: int, cap: int | None) -> PredictionResult:
        band = band_of(age)
        curve, row = self._calibration.views[band], item.answers[-1]
        if age or row.flags.writeable:
            remaining, raw = point_and_confidence(row, age, cap, curve)
            confidence = self._calibration.confidence(band, raw)
        else:  # nobody writes to it because many hold it
            remaining, confidence = self._calibration.at_start(row, cap)
        if item.estimate < 0:
            item.estimate, item.confidence = age + remaining, confidence
        return PredictionResult(
            remaining,
            confidence,
            remaining * self._timing.seconds_per_token(item.evidence.features.model),
            LengthDistribution(row, age, 0, cap, curve),
            "prior" if item.prior else "model",
        )

    def _answer_many(
        self, items: list[Tracked], requests: Sequence[PredictionRequest]
    ) -> list[PredictionResult]:
        slots = np.array([item.slot for item in items], dtype=np.int64)
        age_list = [request.current_length for request in requests]
        cap_list = [request.max_length for request in requests]
        ages = np.array(age_list, dtype=np.int64)
        bands = bands_of(ages)
        caps = np.array([UNCAPPED if cap is None else cap for cap in cap_list], dtype=np.int64)
        curves = self._calibration.curves
        batch = LengthDistributionBatch(self._tracker.rows, slots, ages, caps, curves, bands)
        points, confidences = self._believed(batch, bands)
        views = self._calibration.views
        results = []
        for item, age, cap, band, n, confidence, pace in zip(
            items,
            age_list,
            cap_list,
            bands.tolist(),
            points.tolist(),
            confidences.tolist(),
            self._timing.paces([item.evidence.features.model for item in items]),
            strict=True,
        ):
            if item.estimate < 0:
                item.estimate, item.confidence = age + n, confidence
            results.append(
                PredictionResult(
                    n,
                    confidence,
                    n * pace,
                    LengthDistribution(item.answers[-1], age, 0, cap, views[band]),
                    "prior" if item.prior else "model",
                )
            )
        return results

    # -- learning ----------------------------------------------------------------------------

    def update(
        self,
        sequence_id: SequenceId,
        actual_length: int,
        actual_time: float,
        *,
        finish_reason: str = "stop",
    ) -> None:
        """Learn from a finished sequence.

        An id that was never predicted, was discarded, or was updated already is counted as
        ``unknown_updates`` and teaches nothing, for nothing is known about its request.

        Raises:
            RequestError: a negative or non-finite number, or an unknown finish reason.
        """
        check_completion(sequence_id, actual_length, actual_time, finish_reason)
        with self._lock:
            item = self._tracker.take(sequence_id)
            if item is None:
                self._scores.unknown_updates += 1
                return
            lesson = Lesson(
                item.evidence,
                item.asked,
                item.answers,
                self._tracker.caps.item(item.slot),
                item.estimate,
                item.confidence,
                int(actual_length),
                float(actual_time),
                finish_reason,
            )
            self._note(lesson)
            if self._elsewhere is None:
                self._take_in(lesson)
            else:
                self._elsewhere.take(lesson)

    def learn(self, lesson: Lesson) -> None:
        """Learn what another predictor with the same options was told by an ``update``."""
        with self._lock:
            self._tracker.admitted += 1
            self._note(lesson)
            self._take_in(lesson)

    def _note(self, lesson: Lesson) -> None:
        """Move what moves at once, in a few microseconds: the scores, the seconds per token."""
        if lesson.censored:
            self._scores.censored += 1
        else:
            self._scores.completions += 1
        if lesson.finish_reason in ("stop", "length"):
            if lesson.estimate >= 0:
                self._scores.score(lesson.estimate, lesson.length, lesson.confidence)
            self._timing.update(lesson.evidence.features.model, lesson.length, lesson.seconds)

    def _take_in(self, lesson: Lesson) -> None:
        """Learn the rest, which may take long."""
        self._pending.extend(answered(lesson))
        self._learn(Completion(lesson.evidence, lesson.length, lesson.censored))
        self._lessons += 1
        # Rows of running sequences are computed anew at every doubling of what is known: soon
        # after the start, and hardly ever later, when one more completion changes nothing.
        if self._lessons & (self._lessons - 1) == 0:
            self._version += 1
        if len(self._pending) >= _CALIBRATE_EVERY:
            self._calibrate_pending()

    def discard(self, sequence_id: SequenceId) -> None:
        """Forget a running sequence without learning from it; an unknown id is fine."""
        with self._lock:
            if self._tracker.take(sequence_id) is not None:
                self._tracker.discarded += 1

    def _calibrate_pending(self) -> None:
        calibrate(self._calibration, self._pending)
        self._pending.clear()

    # -- what is known -----------------------------------------------------------------------

    def get_metrics(self) -> dict[str, Any]:
        """Fields of :class:`PredictionMetrics` on own completions, and the counts behind them.

        ``total_predictions = completions + censored + running + expired + replaced + discarded``.
        """
        with self._lock:
            tracker, scores = self._tracker, self._scores
            return {
                **scores.metrics(tracker.admitted),
                "predictor": self.name,
                "predict_calls": self._predict_calls,
                "completions": scores.completions,
                "censored": scores.censored,
                "running": len(tracker),
                "expired": tracker.expired,
                "replaced": tracker.replaced,
                "discarded": tracker.discarded,
                "unknown_updates": scores.unknown_updates,
                "lessons": self._lessons,
                "seconds_per_token": self._timing.seconds_per_token(),
                **(self._elsewhere.counts() if self._elsewhere else {}),
            }

    def fit(self, history: Any, *, progress: Progress | None = None) -> Self:
        """Learn from a history, from scratch.

        Args:
            history: a polars DataFrame or LazyFrame in the history format, or a path, a glob or a
                folder of history files.
            progress: called with what is being done and the share done.

        Raises:
            HistoryError: the history cannot be used; the message is one line.
            RequestError: it learns in a process of its own.
        """
        from sagellm_lifetime.predictors.fitting import fit_predictor

        with self._lock:
            if self._elsewhere is not None:
                raise RequestError("it learns in another process: fit it before that, or a clone()")
            before = dict(vars(self))
            try:
                fit_predictor(self, history, progress)
            except BaseException:
                # Fitting puts new objects in the place of the old ones, which are as they were.
                vars(self).clear()
                vars(self).update(before)
                raise
        return self

    def save(self, path: str | Path) -> None:
        """Write a checkpoint directory, atomically. Raises :class:`CheckpointError`."""
        from sagellm_lifetime.predictors.checkpoint import save_predictor

        with self._lock:
            save_predictor(self, Path(path))

    def clone(self) -> Self:
        """A predictor with equal options and equal knowledge, sharing nothing, tracking nothing."""
        with self._lock:
            twin = type(self)(**self._options)
            set_knowledge(twin, knowledge(self))
            twin.summary = dict(self.summary)
            return twin
