"""Fitting a history that is larger than one machine, in parts: count each part, merge, calibrate.

1. :func:`outline` of each part: rows, lengths, arrival times.
2. :meth:`Plan.of` the outlines chooses the newest rows, which calibrate, and the share of a sample.
3. :func:`fit_part` learns the other rows of each part by itself, as an entry of a fleet.
4. :func:`finish` merges the entries and replays the newest rows, as ``Predictor.fit`` does; a
   network is trained on a sample in which every client has an even share.

Any caller may run steps 1 and 3: :mod:`~.ray_fit` on a Ray cluster, or a loop. Unlike
``Predictor.fit`` all rows are learned, not the newest 300,000.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.core.grid import BINS, EDGES, bins_of
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.fitting import REGISTERED
from sagellm_lifetime.predictor.fleet.entries import entry_of, predictor_of_entry

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.models.base import Progress

NEWEST: Final = 6000
"""Rows that calibrate, at most; as many as in ``Predictor.fit``."""
_SHARE: Final = 0.2
SAMPLE: Final = 40_000
"""Rows of the sample that a network is trained on, at most; as many as in ``Predictor.fit``."""
_QUANTILES: Final = 512
_HASHES: Final = 1 << 32
_GROUP: Final = 16
"""Entries that are merged at once, which bounds the memory."""
_QUANTILE_LEVELS: Final = (0.1, 0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Outline:
    """Facts about a part that are needed before it is fitted.

    Attributes:
        rows: number of rows.
        censored: of them, those whose length is only a lower bound.
        columns: names of the columns.
        lengths: rows by bin of their length, shape ``(BINS,)``.
        times: evenly spaced quantiles of the arrival times; empty without, or where they restart
            with every session.
    """

    rows: int
    censored: int
    columns: list[str]
    lengths: np.ndarray = field(repr=False)
    times: np.ndarray = field(repr=False)


def outline(frame: pl.DataFrame, clock: Any = "auto") -> Outline:
    """Return the outline of the checked rows of one part."""
    from sagellm_lifetime.history.prequential import censored, relative_times

    times = np.zeros(0)
    if "arrival_time" in frame.columns and not relative_times(frame, clock):
        known = frame["arrival_time"].drop_nulls().to_numpy().astype(np.float64)
        if len(known):
            times = np.quantile(known, np.linspace(0.0, 1.0, _QUANTILES))
    return Outline(
        rows=len(frame),
        censored=int(censored(frame).sum()),
        columns=frame.columns,
        lengths=np.bincount(bins_of(frame["actual_length"].to_numpy()), minlength=BINS),
        times=times,
    )


@dataclass(frozen=True)
class Plan:
    """Plan by which a history is split into parts.

    Attributes:
        cut: arrival time from which on rows calibrate; ``None`` for a share of the sessions (or
            rows) in any order, since there are no times on one clock.
        share: share of the rows that calibrate.
        sample_share: share of the rows in the sample for a network.
        registered_share: share of the rows whose clients the fair shares know beforehand.
        summary: description of the history, as ``Predictor.summary``.
    """

    cut: float | None
    share: float
    sample_share: float
    registered_share: float
    summary: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, outlines: Sequence[Outline]) -> Plan:
        """Return the plan for a history with these parts.

        Raises:
            HistoryError: no rows at all.
        """
        rows = sum(each.rows for each in outlines)
        if not rows:
            raise HistoryError("the history has no rows")
        share = min(_SHARE, NEWEST / rows)
        cut = None
        if all(len(each.times) for each in outlines):
            times = np.concatenate([each.times for each in outlines])
            weights = np.repeat([each.rows for each in outlines], [len(o.times) for o in outlines])
            order = np.argsort(times)
            reached = np.cumsum(weights[order]) / weights.sum()
            cut = float(times[order][min(np.searchsorted(reached, 1.0 - share), len(times) - 1)])
        lengths = np.cumsum(np.sum([each.lengths for each in outlines], axis=0))
        places = [int(np.searchsorted(lengths, level * rows)) for level in _QUANTILE_LEVELS]
        summary = {
            "rows": rows,
            "columns": list(dict.fromkeys(name for each in outlines for name in each.columns)),
            "censored": sum(each.censored for each in outlines),
            # By bins of the length grid: 6 % wide.
            "length_quantiles": {
                str(level): int(EDGES[min(place, BINS - 1)])
                for level, place in zip(_QUANTILE_LEVELS, places, strict=True)
            },
            "parts": len(outlines),
        }
        return cls(cut, share, min(SAMPLE / rows, 1.0), min(REGISTERED / rows, 1.0), summary)


@dataclass(frozen=True)
class Part:
    """Result of one part.

    Attributes:
        entry: what was learned of it (:func:`~.fleet.entries.entry_of`).
        newest: its rows that calibrate.
        sample: its rows in the sample for a network; without rows for other predictors.
        registered: clients, and arrival times, of its newest other rows, for the fair shares.
    """

    entry: bytes = field(repr=False)
    newest: pl.DataFrame = field(repr=False)
    sample: pl.DataFrame = field(repr=False)
    registered: pl.DataFrame = field(repr=False)


def fit_part(frame: pl.DataFrame, like: Predictor, plan: Plan, clock: Any = "auto") -> Part:
    """Learn the rows of one part, but for those that calibrate.

    A session that goes on after the cut is left to the calibration as a whole, as far as it is in
    this part: with rows in both, the replayed errors would be too small.

    Args:
        frame: checked rows of the part.
        like: an unused predictor; not changed.
        plan: how the history is taken apart.
        clock: origin of the arrival times.
    """
    from sagellm_lifetime.history.prequential import in_time_order
    from sagellm_lifetime.networks.model import NetworkModel

    is_newest = _newest(frame, plan)
    older = in_time_order(frame.filter(~is_newest), clock=clock)
    fitted = like.new()
    fitted.use_keys(like.keys)
    if len(older):
        fitted.fit_part(older)
    takes_sample = isinstance(like.model, NetworkModel)
    sample = _sampled(older, plan.sample_share) if takes_sample else older.clear()
    columns = [name for name in ("arrival_time", "client_id") if name in older.columns]
    registered = older.select(columns).tail(int(np.ceil(plan.registered_share * len(older))))
    return Part(entry_of(fitted, "part"), frame.filter(is_newest), sample, registered)


def _newest(frame: pl.DataFrame, plan: Plan) -> pl.Series:
    """Return which rows calibrate, bool of length ``N``."""
    import polars as pl

    if plan.cut is not None:
        is_newest = (frame["arrival_time"] >= plan.cut).fill_null(value=False)
        if "session_id" in frame.columns:
            sessions = frame.filter(is_newest)["session_id"].drop_nulls().unique()
            is_newest |= frame["session_id"].is_in(sessions.implode()).fill_null(value=False)
        return is_newest
    is_newest = pl.Series(np.random.default_rng(0).random(len(frame)) < plan.share)
    if "session_id" not in frame.columns:
        return is_newest
    # By its name, so that a session that is in several parts is on one side in all of them.
    sessions = frame["session_id"]
    is_drawn = sessions.hash(seed=1) % _HASHES < int(plan.share * _HASHES)
    return is_drawn.zip_with(sessions.is_not_null(), is_newest)


def _sampled(frame: pl.DataFrame, share: float) -> pl.DataFrame:
    """Return a share of the rows, of every client as evenly as there are rows; in their order."""
    import polars as pl

    count = min(int(np.ceil(share * len(frame))), len(frame))
    drawn = np.random.default_rng(0).permutation(len(frame))
    rows = frame.with_columns(pl.Series("_drawn", drawn), pl.int_range(len(frame)).alias("_row"))
    if "client_id" in frame.columns:
        rank = pl.col("_drawn").rank("ordinal").over(pl.col("client_id").fill_null(""))
        rows = rows.with_columns(rank.alias("_turn")).sort("_turn", "_drawn")
    else:
        rows = rows.sort("_drawn")
    return rows.head(count).sort("_row").select(frame.columns)


def finish(
    like: Predictor,
    parts: Iterable[Part],
    plan: Plan,
    *,
    clock: Any = "auto",
    progress: Progress | None = None,
) -> Predictor:
    """Return the predictor of all parts: merged, a network trained, calibrated on the newest rows.

    Args:
        like: an unused predictor, as of :func:`fit_part`; not changed.
        parts: results of the parts, in any order; read one by one.
        plan: how the history was taken apart.
        clock: origin of the arrival times.
        progress: called with the name of the step and the share done; ``None`` for no calls.

    Raises:
        LifetimeError: an entry is damaged, or the model cannot be merged.
    """
    import polars as pl

    from sagellm_lifetime.history.prequential import in_time_order
    from sagellm_lifetime.networks.model import NetworkModel

    merged = like.new()
    merged.use_keys(like.keys)
    waiting: list[Predictor] = []
    newest: list[pl.DataFrame] = []
    samples: list[pl.DataFrame] = []
    registered: list[pl.DataFrame] = []
    for number, part in enumerate(parts):
        waiting.append(predictor_of_entry(part.entry, f"part {number}", like))
        newest.append(part.newest)
        samples.append(part.sample)
        registered.append(part.registered)
        if len(waiting) == _GROUP:
            merged.merge(*waiting)
            waiting.clear()
        if progress:
            progress("merging", min((number + 1) / plan.summary["parts"], 1.0))
    if waiting:
        merged.merge(*waiting)
    rows = in_time_order(pl.concat(newest, how="diagonal_relaxed"), clock=clock).tail(NEWEST)
    model = merged.model
    if isinstance(model, NetworkModel):
        sample = in_time_order(pl.concat(samples, how="diagonal_relaxed"), clock=clock)
        model.train_on(sample, rows, merged.keys, progress)
    known = pl.concat(registered, how="diagonal_relaxed")
    if "arrival_time" in known.columns and plan.cut is not None:
        known = known.sort("arrival_time", nulls_last=False)
    clients = known["client_id"].to_list() if "client_id" in known.columns else []
    merged.calibrate(rows, clients, clock=clock, progress=progress)
    merged.summary = dict(plan.summary)
    return merged
