"""The way of a prediction, which every predictor shares.

    request → features → predictor → distribution → conditioned on age → calibrated → result

A predictor says what it keeps of a request (:meth:`Predicting._read`) and which cumulative hazards
follow from it (:meth:`Predicting._rows`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from threading import RLock
from typing import Any

import numpy as np

from sagellm_lifetime.core import forking
from sagellm_lifetime.core.batch import UNCAPPED, LengthDistributionBatch
from sagellm_lifetime.core.calibration import band_of
from sagellm_lifetime.core.distribution import LengthDistribution, point_and_confidence
from sagellm_lifetime.core.protocol import (
    LifetimePredictorProtocol,
    PredictionRequest,
    PredictionResult,
    SequenceId,
)
from sagellm_lifetime.core.timing import TokenTiming
from sagellm_lifetime.core.tracking import Tracked, Tracker
from sagellm_lifetime.core.values import as_ages, as_levels, as_sequence_ids
from sagellm_lifetime.features.request import LARGEST_AGE, check_request, read_request
from sagellm_lifetime.predictor.calibration_by_client import CalibrationByClient
from sagellm_lifetime.predictor.checks import check_iterable, waves
from sagellm_lifetime.predictor.records import Evidence


class Predicting(LifetimePredictorProtocol):
    """The half of a predictor that is asked; safe to call from several threads.

    A forked child has a predictor of its own, which knows what this one knew at the fork.

    Args:
        capacity: how many running sequences are tracked at most.
        expire_after: seconds after which a sequence that is never asked about is forgotten.
    """

    def __init__(self, capacity: int, expire_after: float) -> None:
        self._lock: Any = RLock()
        self._tracker = Tracker(capacity, expire_after)
        self._timing = TokenTiming()
        self._calibration = CalibrationByClient()
        self._lessons = 0
        self._version = 0
        self._predict_calls = 0
        forking.register(self)

    def _fork_lock(self) -> Any:
        return self._lock

    def _after_fork(self, *, whole: bool) -> None:
        if not whole:
            self._lock = forking.Torn()

    # -- what a predictor says ---------------------------------------------------------------

    @abstractmethod
    def _rows(self, evidence: Sequence[Any]) -> Iterable[np.ndarray]:
        """Cumulative hazards of the total length, shape ``(BINS + 1,)``, of each."""

    def _read(self, request: PredictionRequest) -> Any:
        """What to keep of a request seen for the first time."""
        features = read_request(request)
        return Evidence(features, features.session_key)

    def _check(self, request: PredictionRequest) -> None:
        """Raise what :meth:`_read` or :meth:`_news` could raise of a request, whichever is called.

        All three change nothing: what cannot be read is refused before anything is tracked.
        """
        self._read(request)

    def _news(self, evidence: Any, request: PredictionRequest) -> Any | None:
        """What is new since the last call and changes the row, or ``None``."""
        return None

    def _absorb(self, evidence: Any, news: Any) -> None:
        """Add what :meth:`_news` has read to the evidence; never fails."""

    # -- predicting --------------------------------------------------------------------------

    def predict(self, request: PredictionRequest) -> PredictionResult:
        """Predict one sequence.

        Raises:
            RequestError: something in the request cannot be used. Then nothing has changed: a
                sequence that runs under that id runs on.
        """
        request = check_request(request)
        with self._lock:
            known, said = self._look(request)
            item, stale = self._enter(request, known, said)
            if stale:
                self._refresh([item])
            return self._answer(item, request.current_length, request.max_length)

    def predict_batch(self, requests: Sequence[PredictionRequest]) -> list[PredictionResult]:
        """Predict many sequences; equal to predicting them one by one.

        Raises:
            RequestError: something in one of the requests cannot be used. Then none of them is
                predicted, and nothing has changed.
        """
        requests = [check_request(request) for request in check_iterable(requests)]
        results: list[PredictionResult | None] = [None] * len(requests)
        with self._lock:
            turns = waves(requests, self._tracker.capacity)
            if len(turns) > 1:
                for request in requests:
                    self._check(request)
            for wave in turns:
                answers = self._predict_distinct([requests[i] for i in wave])
                for i, answer in zip(wave, answers, strict=True):
                    results[i] = answer
        return [result for result in results if result is not None]

    def _predict_distinct(self, requests: list[PredictionRequest]) -> list[PredictionResult]:
        get, news, enter = self._tracker.get, self._news, self._enter
        known = [get(request.sequence_id, request.current_length) for request in requests]
        if self._tracker.has_room(sum([item is None for item in known])):
            said = [
                self._fresh(request) if item is None else news(item.evidence, request)
                for item, request in zip(known, requests, strict=True)
            ]
            observed = list(map(enter, requests, known, said))
        else:
            # One that comes may push out another of the batch, which then is new itself.
            for request in requests:
                self._check(request)
            observed = [enter(request, *self._look(request)) for request in requests]
        stale = [item for item, is_stale in observed if is_stale]
        if stale:
            self._refresh(stale)
        return self._answer_many([item for item, _ in observed], requests)

    def quantiles(
        self, sequence_ids: Sequence[SequenceId], ages: np.ndarray, levels: float | np.ndarray
    ) -> np.ndarray:
        """Return the remaining tokens of tracked sequences at their ages: the form for engines.

        Args:
            sequence_ids: ids asked about before through :meth:`predict`, length ``N``.
            ages: tokens generated so far, whole numbers of shape ``(N,)``. An age below the one a
                sequence was last predicted at is answered too: with what is known of it now, as if
                it were no older. An age is no news: it changes nothing that is tracked.
            levels: quantile level or levels in ``[0, 1]``, a number or shape ``(Q,)``.

        Returns:
            int64 array ``(N,)``, or ``(N, Q)`` for ``Q`` levels.

        Raises:
            UnknownSequenceError: an id is not tracked; it is a ``KeyError``, too.
            RequestError: no ids, another number of ages, an age below 0 or that is none, a level
                outside 0–1.
        """
        levels = as_levels(levels)
        with self._lock:
            return self._distributions(sequence_ids, ages).quantile(levels)

    def distributions(
        self, sequence_ids: Sequence[SequenceId], ages: np.ndarray
    ) -> LengthDistributionBatch:
        """Return the remaining lengths of tracked sequences at their ages, calibrated.

        Arguments and errors as of :meth:`quantiles`.
        """
        with self._lock:
            batch = self._distributions(sequence_ids, ages)
            # The tracker's rows change as sequences come and go; the answer does not.
            return replace(batch, rows=batch.rows[batch.index], index=np.arange(len(batch)))

    def confidences(self, sequence_ids: Sequence[SequenceId], ages: np.ndarray) -> np.ndarray:
        """Return the confidence of the point estimates of tracked sequences, shape ``(N,)``.

        The array form of ``PredictionResult.confidence``; arguments and errors as of
        :meth:`quantiles`.
        """
        with self._lock:
            batch = self._distributions(sequence_ids, ages)
            return self._believed(batch)[1]

    def _believed(self, batch: LengthDistributionBatch) -> tuple[np.ndarray, np.ndarray]:
        points = batch.quantile(0.5)
        raw = np.where(points > 0, batch.within(points), 1.0)
        assert batch.bands is not None
        return points, self._calibration.confidences(batch.bands, raw)

    def _distributions(
        self, sequence_ids: Sequence[SequenceId], ages: np.ndarray
    ) -> LengthDistributionBatch:
        sequence_ids = as_sequence_ids(sequence_ids)
        ages = as_ages(ages, len(sequence_ids), LARGEST_AGE)
        slots = self._tracker.slots(sequence_ids)
        clients: list[int] = []
        if self._calibration.has_own:
            each = self._tracker.evidence(sequence_ids)
            clients = [evidence.features.client_key for evidence in each]
        return LengthDistributionBatch(
            self._tracker.rows,
            slots,
            ages,
            self._tracker.caps[slots],
            self._calibration.curves,
            self._calibration.bands(ages, clients),
        )

    def _look(self, request: PredictionRequest) -> tuple[Tracked | None, Any]:
        """What a request says: the tracked sequence and its news, or ``None`` and new evidence.

        Nothing is changed yet, so a request that is refused here has done no harm.
        """
        item = self._tracker.get(request.sequence_id, request.current_length)
        if item is None:
            return None, self._fresh(request)
        return item, self._news(item.evidence, request)

    def _fresh(self, request: PredictionRequest) -> Any:
        """Evidence of a sequence that is asked about for the first time."""
        evidence = self._read(request)
        news = self._news(evidence, request)
        if news is not None:
            self._absorb(evidence, news)
        return evidence

    def _enter(
        self, request: PredictionRequest, item: Tracked | None, said: Any
    ) -> tuple[Tracked, bool]:
        """Track what :meth:`_look` has read; whether the row of the sequence is to be computed."""
        self._predict_calls += 1
        age = request.current_length
        if item is None:
            item = self._tracker.admit(request.sequence_id, said, age, request.max_length)
            item.asked.append(age)
            return item, True
        self._tracker.grown(request.sequence_id, item, age, request.max_length)
        if said is not None:
            self._absorb(item.evidence, said)
            item.asked.append(age)
            return item, True
        return item, item.version != self._version

    def _refresh(self, items: Sequence[Tracked]) -> None:
        rows, prior = self._rows([item.evidence for item in items]), self._lessons == 0
        for item, row in zip(items, rows, strict=True):
            self._tracker.set_row(item, row)
            # One answer for each piece of evidence; a newer version of it takes its place.
            item.answers[len(item.asked) - 1 :] = [row]
            item.version, item.prior = self._version, prior

    def _answer(self, item: Tracked, age: int, cap: int | None) -> PredictionResult:
        band = band_of(age)
        calibration = self._calibration.of(item.evidence.features.client_key)
        curve, row = calibration.views[band], item.answers[-1]
        if age or row.flags.writeable:
            remaining, raw = point_and_confidence(row, age, cap, curve)
            confidence = calibration.confidence(band, raw)
        else:  # nobody writes to it because many hold it
            remaining, confidence = calibration.at_start(row, cap)
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
        clients = [item.evidence.features.client_key for item in items]
        bands = self._calibration.bands(ages, clients)
        caps = np.array([UNCAPPED if cap is None else cap for cap in cap_list], dtype=np.int64)
        curves = self._calibration.curves
        batch = LengthDistributionBatch(self._tracker.rows, slots, ages, caps, curves, bands)
        points, confidences = self._believed(batch)
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
