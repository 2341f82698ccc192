"""Split a history into a training and a test part by time, session or prompt, never by row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import polars as pl

from sagellm_lifetime.core.errors import HistoryError, UnknownNameError
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.history.prequential import Clock, relative_times

SHARE = 0.7
WAYS = ("auto", "time", "session", "prompt", "order")


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Two parts of a history, and how it was cut (``time``, ``session``, ``prompt``, ``order``)."""

    train: pl.DataFrame
    test: pl.DataFrame
    by: str


def split(
    frame: pl.DataFrame, by: str = "auto", share: float = SHARE, *, clock: Clock = "auto"
) -> Split:
    """Return a training and a test part of a history.

    ``auto`` splits by time where there are arrival times on one clock; else by session, by prompt,
    and in file order (taken for time order) where the history has none of these columns. ``clock``
    states what arrival times count from, see
    :func:`~sagellm_lifetime.history.prequential.relative_times`.
    ``share`` of the rows, or as near as whole groups come to it, is the training part.

    Raises:
        HistoryError: the column is missing, or one part would be empty.
    """
    if by not in WAYS:
        raise UnknownNameError("split", by, list(WAYS))
    way = _choose(frame, clock) if by == "auto" else by
    if way == "time":
        _need(frame, "arrival_time", way)
        ordered = frame.sort("arrival_time", maintain_order=True, nulls_last=True)
        return _cut(ordered, round(len(frame) * share), way)
    if way == "order":
        return _cut(frame, round(len(frame) * share), way)
    column = {"session": "session_id", "prompt": "prompt_id"}[way]
    _need(frame, column, way)
    return _by_group(frame, column, share, way)


def _choose(frame: pl.DataFrame, clock: Clock) -> str:
    if _present(frame, "arrival_time") and not relative_times(frame, clock):
        return "time"
    for column, way in (("session_id", "session"), ("prompt_id", "prompt")):
        if _present(frame, column):
            return way
    return "order"


def _by_group(frame: pl.DataFrame, column: str, share: float, way: str) -> Split:
    """Return a split by whole groups, in the order of a hash of their names.

    At least one group is in the training part. A row without a name is a group of its own; rows of
    one prompt are one group, and so are all sessions that contain it.
    """
    row_name = pl.concat_str([pl.lit("row "), pl.int_range(pl.len()).cast(pl.String)])
    columns = [column, *(["prompt_id"] if _present(frame, "prompt_id") else [])]
    keys = [pl.col(name).cast(pl.String) for name in dict.fromkeys(columns)]
    names = frame.select(
        pl.coalesce(*keys, row_name).alias("name"),
        pl.coalesce(keys[-1], *keys, row_name).alias("prompt"),
    )
    names = _linked(names)
    sizes = names.group_by("group").len()
    hashes = [_hash(name) for name in sizes["group"].to_list()]
    ordered = sizes.with_columns(pl.Series("hash", hashes)).sort("hash", "group")
    within = int((ordered["len"].cum_sum() <= len(frame) * share).sum())
    train = ordered["group"][: max(within, 1)]  # the first, even if it is too large
    inside = names["group"].is_in(train.implode())
    return _checked(Split(frame.filter(inside), frame.filter(~inside), way))


def _linked(names: pl.DataFrame) -> pl.DataFrame:
    """Return ``names`` with a column ``group``: rows connected by names or prompts, transitively.

    A group is called by the smallest of its names.
    """
    linked = names.with_columns(group=pl.col("name"))
    while True:
        wider = linked.with_columns(group=pl.col("group").min().over("prompt"))
        wider = wider.with_columns(group=pl.col("group").min().over("name"))
        if wider["group"].equals(linked["group"]):
            return linked
        linked = wider


def _hash(name: str) -> str:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _cut(frame: pl.DataFrame, at: int, way: str) -> Split:
    return _checked(Split(frame[:at], frame[at:], way))


def _checked(parts: Split) -> Split:
    if parts.train.is_empty() or parts.test.is_empty():
        raise HistoryError(
            f"cannot split {counted(len(parts.train) + len(parts.test), 'row')} by {parts.by}: "
            "one part would be empty; give a larger history, or a separate --train-path"
        )
    return parts


def _present(frame: pl.DataFrame, column: str) -> bool:
    return column in frame.columns and frame[column].null_count() < len(frame)


def _need(frame: pl.DataFrame, column: str, way: str) -> None:
    if not _present(frame, column):
        raise HistoryError(f"a split by {way} needs the column {column!r}")
