"""Ask a predictor about every point: frozen, or in simulated time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import polars as pl

from sagellm_lifetime.core.batch import LengthDistributionBatch
from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.core.protocol import (
    LifetimePredictorProtocol,
    PredictionRequest,
    PredictionResult,
    SequenceId,
)
from sagellm_lifetime.evaluation.point_forecasts import LEVELS, Forecast
from sagellm_lifetime.evaluation.points import EvaluationRequests, Points, lengths
from sagellm_lifetime.history import prequential
from sagellm_lifetime.history.prequential import Clock, finish_reasons, seconds

_CHUNK = 256
_READ = 2048
Progress = Callable[[int, int], None]


class PointPredictor:
    """The predictions of one predictor at points, collected in batches.

    The fixed ages of a row are predicted under one id, in ascending order. Each point of the steps
    is predicted under an id of its own that is discarded at once: their ages are drawn up to the
    true length, so a predictor that saw them together, or learned from them, would learn something
    of it.
    """

    def __init__(
        self, predictor: LifetimePredictorProtocol, requests: EvaluationRequests, points: Points
    ) -> None:
        self._predictor = predictor
        self._requests = requests
        self._points = points
        self._ends = np.searchsorted(points.row, np.arange(int(points.row.max(initial=-1)) + 2))
        self._point = np.zeros(len(points), dtype=np.int64)
        self._confidence = np.zeros(len(points))
        self._quantiles: np.ndarray | None = np.zeros((len(points), len(LEVELS)), dtype=np.int64)
        self._kept: dict[int, LengthDistribution] = {}

    def predict(self, rows: Iterable[int]) -> None:
        """Predict every point of the rows, in batches with one point of each row."""
        spans = [range(self._ends[row], self._ends[row + 1]) for row in rows]
        for turn in range(max((len(span) for span in spans), default=0)):
            self._batch([span[turn] for span in spans if turn < len(span)])

    def discard(self, rows: Iterable[int]) -> None:
        """Forget the rows without learning from them."""
        self._forget(self._requests.sequence_id(row) for row in rows)

    def forecast(self) -> Forecast:
        """Return all predictions."""
        self._read()
        return Forecast(self._point, self._quantiles, self._confidence)

    def _batch(self, index: list[int]) -> None:
        points, source = self._points, self._requests
        requests = [
            source.request(int(points.row[i]), int(points.age[i]), i if points.step[i] else None)
            for i in index
        ]
        results = predict_all(self._predictor, requests)
        self._point[index] = [r.estimated_remaining_tokens for r in results]
        self._confidence[index] = [r.confidence for r in results]
        self._keep(index, results)
        self._forget(source.sequence_id(int(points.row[i]), i) for i in index if points.step[i])

    def _keep(self, index: list[int], results: list[PredictionResult]) -> None:
        """Keep copies of the distributions, which may be views of memory that is used again."""
        if any(r.distribution is None for r in results):
            self._quantiles = None
        if self._quantiles is None:
            return
        for i, result in zip(index, results, strict=True):
            d = result.distribution
            if d is not None:
                curve = None if d.curve is None else d.curve.copy()
                self._kept[i] = replace(d, row=d.row.copy(), curve=curve)
        if len(self._kept) >= _READ:
            self._read()

    def _read(self) -> None:
        """Read the quantiles of many kept points at once; a call costs as much as ten points."""
        if self._kept and self._quantiles is not None:
            batch = LengthDistributionBatch.stack(list(self._kept.values()))
            self._quantiles[list(self._kept)] = batch.quantile(LEVELS)
        self._kept.clear()

    def _forget(self, ids: Iterable[SequenceId]) -> None:
        discard = getattr(self._predictor, "discard", None)
        if discard is not None:
            for sequence_id in ids:
                discard(sequence_id)


def predict_all(
    predictor: LifetimePredictorProtocol, requests: list[PredictionRequest]
) -> list[PredictionResult]:
    """Return predictions by ``predict_batch`` where there is one, else one by one."""
    batch = getattr(predictor, "predict_batch", None)
    if batch is None:
        return [predictor.predict(request) for request in requests]
    results: list[PredictionResult] = batch(requests)
    return results


def run_frozen(
    predictor: LifetimePredictorProtocol,
    frame: pl.DataFrame,
    points: Points,
    progress: Progress | None = None,
) -> Forecast:
    """Return the predictions of all points; nothing is learned."""
    point_predictor = PointPredictor(predictor, EvaluationRequests(frame), points)
    rows = np.unique(points.row).tolist()
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        point_predictor.predict(chunk)
        point_predictor.discard(chunk)
        if progress is not None:
            progress(min(start + _CHUNK, len(rows)), len(rows))
    return point_predictor.forecast()


def run_online(
    predictor: LifetimePredictorProtocol,
    frame: pl.DataFrame,
    points: Points,
    progress: Progress | None = None,
    *,
    clock: Clock = "auto",
) -> Forecast:
    """Return predictions in simulated time: at arrival, with what had finished by then.

    The finish is ``arrival_time + actual_time``, or ``arrival_time + 0.02 s * actual_length`` where
    ``actual_time`` is missing. Only completions that finished at or before an arrival have been
    learned then. All ages of a row are predicted at its arrival, so later ages gain less from
    recent completions than they would in an engine. In the end every completion has been learned.

    Raises:
        HistoryError: without arrival times.
    """
    arrival = _arrivals(frame, clock)
    length, duration = lengths(frame), seconds(frame)
    reason = finish_reasons(frame)
    source = EvaluationRequests(frame)
    point_predictor = PointPredictor(predictor, source, points)
    with_points = set(np.unique(points.row).tolist())
    order = [row for row in np.argsort(arrival, kind="stable").tolist() if row in with_points]
    finishing: list[tuple[float, int]] = []
    waiting: list[int] = []

    def learn(now: float) -> None:
        while finishing and finishing[0][0] <= now:
            point_predictor.predict(waiting)
            waiting.clear()
            _, row = heapq.heappop(finishing)
            predictor.update(
                source.sequence_id(row),
                int(length[row]),
                float(duration[row]),
                finish_reason=reason[row],
            )

    for done, row in enumerate(order):
        learn(float(arrival[row]))
        waiting.append(row)
        heapq.heappush(finishing, (float(arrival[row] + duration[row]), row))
        if len(waiting) >= _CHUNK:
            point_predictor.predict(waiting)
            waiting.clear()
        if progress is not None and done % _CHUNK == 0:
            progress(done, len(order))
    learn(float("inf"))
    if progress is not None:
        progress(len(order), len(order))
    return point_predictor.forecast()


def _arrivals(frame: pl.DataFrame, clock: Clock) -> np.ndarray:
    arrival = prequential.clock(frame, clock)
    if arrival is None:
        raise HistoryError(
            "online evaluation needs 'arrival_time' in every row: add the column, or evaluate "
            "without --online"
        )
    return arrival
