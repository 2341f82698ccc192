"""Steps of a prediction.

    request → features → model → distribution → conditioned on age → calibrated → result

The model chooses the evidence that is kept of a request, and computes cumulative hazards from it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    Prediction,
    PredictionRequest,
    SequenceId,
)
from sagellm_lifetime.core.tracking import Tracked, Tracker
from sagellm_lifetime.core.values import LARGEST_AGE, as_ages, as_levels, as_sequence_ids
from sagellm_lifetime.features.evidence import Evidence
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.features.request import check_request
from sagellm_lifetime.models.base import LengthModel
from sagellm_lifetime.models.context import Context
from sagellm_lifetime.predictor.calibration_by_client import CalibrationByClient
from sagellm_lifetime.predictor.checks import check_iterable, check_rows, is_own, waves
from sagellm_lifetime.predictor.fair_timing import FairTiming
from sagellm_lifetime.predictor.learned import Learned


class Predicting(LifetimePredictorProtocol):
    """Prediction half of a predictor; safe to call from several threads.

    A forked child has an independent copy, with the state at the fork.

    Args:
        model: model that computes the hazards.
        capacity: maximum number of running sequences that are tracked.
        expire_after: seconds without a prediction after which a sequence may be dropped.
    """

    def __init__(self, model: LengthModel, capacity: int, expire_after: float) -> None:
        self._lock: Any = RLock()
        self._tracker = Tracker(capacity, expire_after)
        self._timing = FairTiming()
        self._context = Context(model.context, NameKeys.seeded(model.options.get("seed", 0)))
        self._learned = Learned(model, CalibrationByClient())
        self._version = 0
        """Version of the learned state; rows of an older version are computed anew."""
        self._predict_calls = 0
        forking.register(self)

    def _fork_lock(self) -> Any:
        return self._lock

    def _after_fork(self, *, whole: bool) -> None:
        if not whole:
            self._lock = forking.Torn()

    # -- predicting --------------------------------------------------------------------------

    def predict(self, request: PredictionRequest) -> Prediction:
        """Predict the remaining length of one sequence.

        Raises:
            RequestError: the request has an impossible value. Then nothing has changed, and a
                running sequence of that id stays tracked.
        """
        request = check_request(request)
        with self._lock:
            known, evidence = self._read_evidence(request)
            item, is_stale = self._enter(request, known, evidence)
            if is_stale:
                self._refresh([item])
            return self._answer(item, request.current_length, request.max_length)

    def predict_batch(self, requests: Sequence[PredictionRequest]) -> list[Prediction]:
        """Predict many sequences; the results equal those of predicting them one by one.

        Raises:
            RequestError: a request has an impossible value. Then none of them is predicted, and
                nothing has changed.
        """
        requests = [check_request(request) for request in check_iterable(requests)]
        results: list[Prediction | None] = [None] * len(requests)
        with self._lock:
            turns = waves(requests, self._tracker.capacity)
            if len(turns) > 1:
                self._check(requests)
            for wave in turns:
                answers = self._predict_distinct([requests[i] for i in wave])
                for i, answer in zip(wave, answers, strict=True):
                    results[i] = answer
        return [result for result in results if result is not None]

    def _predict_distinct(self, requests: list[PredictionRequest]) -> list[Prediction]:
        get, absorb, enter = self._tracker.get, self._learned.model.absorb, self._enter
        known = [get(request.sequence_id, request.current_length) for request in requests]
        if self._tracker.has_room(sum([item is None for item in known])):
            evidence = [
                self._observe(request) if item is None else absorb(item.evidence, request)
                for item, request in zip(known, requests, strict=True)
            ]
            observed = list(map(enter, requests, known, evidence))
        else:
            # A new sequence may drop another of the batch, which is then new in its turn.
            self._check(requests)
            observed = [enter(request, *self._read_evidence(request)) for request in requests]
        stale = [item for item, is_stale in observed if is_stale]
        if stale:
            self._refresh(stale)
        return self._answer_many([item for item, _ in observed], requests)

    def quantiles(
        self, sequence_ids: Sequence[SequenceId], ages: np.ndarray, levels: float | np.ndarray
    ) -> np.ndarray:
        """Return quantiles of the remaining tokens of tracked sequences, for engines.

        Args:
            sequence_ids: ids that were predicted before with :meth:`predict`, length ``N``.
            ages: tokens generated so far, whole numbers of shape ``(N,)``. An age may be below
                that of the last prediction; the answer then uses the newest evidence all the same.
                The tracked ages stay as they are.
            levels: quantile level or levels in ``[0, 1]``, a number or shape ``(Q,)``.

        Returns:
            int64 array ``(N,)``, or ``(N, Q)`` for ``Q`` levels.

        Raises:
            UnknownSequenceError: an id is not tracked; the error is a ``KeyError``, too.
            RequestError: ``sequence_ids`` is no list of ids, another number of ages, an age that is
                no whole number from 0, or a level outside 0–1.
        """
        levels = as_levels(levels)
        with self._lock:
            return self._distributions(sequence_ids, ages).quantile(levels)

    def distributions(
        self, sequence_ids: Sequence[SequenceId], ages: np.ndarray
    ) -> LengthDistributionBatch:
        """Return calibrated distributions of the remaining tokens of tracked sequences.

        Arguments and errors as of :meth:`quantiles`.
        """
        with self._lock:
            batch = self._distributions(sequence_ids, ages)
            # Copied, since the tracker reuses its rows for other sequences.
            return replace(batch, rows=batch.rows[batch.index], index=np.arange(len(batch)))

    def confidences(self, sequence_ids: Sequence[SequenceId], ages: np.ndarray) -> np.ndarray:
        """Return the confidence of the point estimates of tracked sequences, shape ``(N,)``.

        The array form of ``PredictionResult.confidence``; arguments and errors as of
        :meth:`quantiles`.
        """
        with self._lock:
            batch = self._distributions(sequence_ids, ages)
            return self._points_and_confidences(batch)[1]

    def _points_and_confidences(
        self, batch: LengthDistributionBatch
    ) -> tuple[np.ndarray, np.ndarray]:
        points = batch.quantile(0.5)
        raw = np.where(points > 0, batch.within(points), 1.0)
        assert batch.bands is not None
        return points, self._learned.calibration.confidences(batch.bands, raw)

    def _distributions(
        self, sequence_ids: Sequence[SequenceId], ages: np.ndarray
    ) -> LengthDistributionBatch:
        sequence_ids = as_sequence_ids(sequence_ids)
        ages = as_ages(ages, len(sequence_ids), LARGEST_AGE)
        slots = self._tracker.slots(sequence_ids)
        calibration, clients = self._learned.calibration, []
        if calibration.has_own:
            evidence = self._tracker.evidence(sequence_ids)
            clients = [kept.features.client_key for kept in evidence]
        return LengthDistributionBatch(
            self._tracker.rows,
            slots,
            ages,
            self._tracker.caps[slots],
            calibration.curves,
            calibration.bands(ages, clients),
        )

    def _observe(self, request: PredictionRequest) -> Evidence:
        return self._learned.model.observe(self._context.observe(request))

    def _check(self, requests: Sequence[PredictionRequest]) -> None:
        """Raise :class:`RequestError` if a request could be refused, new or tracked."""
        check, observe = self._learned.model.check, self._context.observe
        for request in requests:
            check(observe(request))

    def _read_evidence(self, request: PredictionRequest) -> tuple[Tracked | None, Evidence | None]:
        """Return the tracked sequence and its new evidence, each ``None`` if there is none.

        Nothing is changed here, so that a refused request has no effect.

        Raises:
            RequestError: the request has an impossible value.
        """
        item = self._tracker.get(request.sequence_id, request.current_length)
        if item is None:
            return None, self._observe(request)
        return item, self._learned.model.absorb(item.evidence, request)

    def _enter(
        self, request: PredictionRequest, item: Tracked | None, evidence: Evidence | None
    ) -> tuple[Tracked, bool]:
        """Track a sequence with new evidence from :meth:`_read_evidence`.

        Returns:
            The tracked sequence, and True if its row has to be computed.
        """
        self._predict_calls += 1
        age = request.current_length
        if item is None:
            item = self._tracker.admit(request.sequence_id, evidence, age, request.max_length)
            item.evidence_ages.append(age)
            return item, True
        self._tracker.grown(request.sequence_id, item, age, request.max_length)
        if evidence is not None:
            item.evidence = evidence
            item.evidence_ages.append(age)
            return item, True
        return item, item.version != self._version

    def _refresh(self, items: Sequence[Tracked]) -> None:
        """Compute the rows of sequences.

        If that fails, new sequences are no longer tracked, and the others keep their rows.

        Raises:
            LifetimeError: the model's rows cannot be used.
        """
        model = self._learned.model
        try:
            rows, prior = model.hazards([item.evidence for item in items]), model.lessons == 0
            if not is_own(type(model)):
                rows = check_rows(model, rows, len(items))
        except BaseException:
            self._forget_refresh(items)
            raise
        for item, row in zip(items, rows, strict=True):
            self._tracker.set_row(item, row)
            # One answer for each age with new evidence; a newer version replaces the last one.
            item.answers[len(item.evidence_ages) - 1 :] = [row]
            item.version, item.prior = self._version, prior

    def _forget_refresh(self, items: Sequence[Tracked]) -> None:
        self._tracker.withdraw([item for item in items if not item.answers])
        for item in items:
            # The next prediction computes the row again. Evidence without an answer has one age.
            item.version = -1
            del item.evidence_ages[len(item.answers) + 1 :]

    def _answer(self, item: Tracked, age: int, cap: int | None) -> Prediction:
        band = band_of(age)
        calibration = self._learned.calibration.of(item.evidence.features.client_key)
        curve, row = calibration.views[band], item.answers[-1]
        if age or row.flags.writeable:
            remaining, raw = point_and_confidence(row, age, cap, curve)
            confidence = calibration.confidence(band, raw)
        else:  # a read-only row is shared by many sequences, so its answer is cached
            remaining, confidence = calibration.at_start(row, cap)
        if item.estimate < 0:
            item.estimate, item.confidence = age + remaining, confidence
        return Prediction(
            remaining,
            confidence,
            remaining * self._timing.seconds_per_token(item.evidence.features.model),
            LengthDistribution(row, age, 0, cap, curve),
            "prior" if item.prior else "model",
        )

    def _answer_many(
        self, items: list[Tracked], requests: Sequence[PredictionRequest]
    ) -> list[Prediction]:
        slots = np.array([item.slot for item in items], dtype=np.int64)
        age_list = [request.current_length for request in requests]
        cap_list = [request.max_length for request in requests]
        ages = np.array(age_list, dtype=np.int64)
        clients = [item.evidence.features.client_key for item in items]
        bands = self._learned.calibration.bands(ages, clients)
        caps = np.array([UNCAPPED if cap is None else cap for cap in cap_list], dtype=np.int64)
        curves = self._learned.calibration.curves
        batch = LengthDistributionBatch(self._tracker.rows, slots, ages, caps, curves, bands)
        points, confidences = self._points_and_confidences(batch)
        views = self._learned.calibration.views
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
                Prediction(
                    n,
                    confidence,
                    n * pace,
                    LengthDistribution(item.answers[-1], age, 0, cap, views[band]),
                    "prior" if item.prior else "model",
                )
            )
        return results
