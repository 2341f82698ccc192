"""Moments in seconds, from ISO 8601, epochs in other units or stored datetimes; units checked.

A number is a moment in seconds unless it is too large to be one: since 1973 milliseconds,
microseconds and nanoseconds since 1970 lie in bands of their own, above every moment in seconds up
to the year 5138. Numbers from another origin carry no unit; ``plausible_unit`` decides by the rate
of requests they would mean, ``unit_warning`` reads the seconds per generated token.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import polars as pl

SCALES: Final = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
"""Units per second."""
NAMES: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
BANDS: Final = {"ms": (1e11, 1e14), "us": (1e14, 1e17), "ns": (1e17, 1e20)}
"""Ranges of epochs by unit, from 1973 to the year 5138; seconds lie below all of them."""

EPOCH: Final = 1e8  # since 1970, even seconds are more; from the start of a log, they are less
_MAX_RATE = 500.0  # requests a second: more is no log of one service in this unit
_MAX_GAP_S = 60.0  # mean seconds between requests: more is doubtful where another unit gives less
_OFFSET = r"( ?UTC|Z|z|[+-]\d\d(?::?\d\d)?)$"


def iso_seconds(text: pl.Expr) -> pl.Expr:
    """Return ISO 8601 text as seconds since 1970, null for other text; no offset means UTC."""
    text = text.str.strip_chars()
    offset = text.str.extract(r"\d\d:\d\d.*" + _OFFSET, 1)
    sign = pl.when(offset.str.starts_with("-")).then(-1.0).otherwise(1.0)
    hours = offset.str.extract(r"^[+-](\d\d)", 1).cast(pl.Float64)
    minutes = offset.str.extract(r"^[+-]\d\d:?(\d\d)$", 1).cast(pl.Float64).fill_null(0.0)
    shift = pl.when(hours.is_not_null()).then(sign * (hours * 3600 + minutes * 60)).otherwise(0.0)
    plain = (
        pl.when(offset.is_null()).then(text).otherwise(text.str.replace(_OFFSET, ""))
    ).str.strip_chars()
    plain = plain.str.replace(r"^(\d{4}-\d\d-\d\d)[Tt]", "$1 ")
    plain = plain.str.replace(r"^(\d{4}-\d\d-\d\d \d\d:\d\d)$", "$1:00")
    plain = plain.str.replace(r"^(\d{4}-\d\d-\d\d)$", "$1 00:00:00")
    plain = plain.str.replace(r"(\d),(\d)", "$1.$2")  # ISO allows a comma before the fraction
    moment = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False)
    return moment.dt.epoch("ns") / 1e9 - shift


def stored_seconds(raw: pl.Expr, stored: pl.DataType) -> pl.Expr:
    """Return a stored datetime, date or duration as seconds (since 1970)."""
    if isinstance(stored, pl.Duration):
        return raw.dt.total_nanoseconds() / 1e9
    if isinstance(stored, pl.Date):
        return raw.cast(pl.Int32).cast(pl.Float64) * 86400.0
    unit = stored.time_unit if isinstance(stored, pl.Datetime) else "us"
    return raw.dt.epoch(unit) / SCALES[unit]


def epoch_unit(value: float) -> str:
    """Return the unit in which ``value`` is a moment since 1970; seconds if none other fits."""
    size = abs(value)
    return next((unit for unit, (low, high) in BANDS.items() if low <= size < high), "s")


def moment(value: Any, name: str) -> float | None:
    """Return a moment in seconds from a number in any unit since 1970 or ISO text; None for none.

    Raises:
        ValueError: it is neither; the message names the field ``name`` and quotes nothing.
    """
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return _iso(value, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is no time")
    try:
        return float(value) / SCALES[epoch_unit(value)]
    except OverflowError:
        raise ValueError(f"{name} is no time") from None


def _iso(text: str, name: str) -> float:
    try:
        parsed = datetime.fromisoformat(text.strip().removesuffix("UTC").strip())
    except ValueError:
        raise ValueError(f"{name} is no time") from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def plausible_unit(moments: pl.Series, documented: str | None) -> str | None:
    """Return the unit of moments without a stated one, ``"s"`` or finer; None if it is unclear.

    Args:
        moments: numbers from any origin, in an unknown unit.
        documented: the unit that the format's own page names, if it names one.

    Seconds are ruled out where they would mean that requests come more than a minute apart while
    milliseconds would be an ordinary load; milliseconds where they would mean more than 500
    requests a second. In between it is unclear, as it is where a format that counts whole
    milliseconds has fractions.
    """
    known = moments.cast(pl.Float64).drop_nulls().drop_nans()
    if known.is_empty():
        return documented or "s"
    low, high = known.to_numpy().min(), known.to_numpy().max()
    if low >= EPOCH:
        return epoch_unit(low)
    if low == high:
        return documented or "s"
    return _unit_by_gap((high - low) / (known.len() - 1), bool((known % 1 != 0).any()), documented)


def _unit_by_gap(gap: float, fractions: bool, documented: str | None) -> str | None:
    if gap * _MAX_RATE < SCALES["ms"]:
        return "s"
    if gap <= _MAX_GAP_S:
        return "s" if documented in (None, "s") else None
    return None if fractions and gap < 10 * _MAX_GAP_S and documented == "ms" else documented


SLOWEST: Final = 2.0
"""Median seconds per generated token above which a log is hardly in seconds."""
FASTEST: Final = 1e-4
"""Median seconds per generated token below which a log is hardly in seconds."""
_MEDIAN_ROWS: Final = 100_000  # rows that a median is taken of
_LONG_TOKENS: Final = 32  # tokens: of shorter answers the time is mostly waiting


def seconds_per_token(frame: pl.DataFrame) -> float | None:
    """Return the median of ``actual_time`` per generated token, None without such rows.

    Answers of at least 32 tokens decide where there are some: a short one has mostly waited.
    """
    if not {"actual_time", "actual_length"} <= set(frame.columns):
        return None
    step = max(1, frame.height // _MEDIAN_ROWS)
    known = (
        frame.select("actual_time", "actual_length")
        .gather_every(step)
        .lazy()
        .filter(pl.col("actual_time").is_not_null() & (pl.col("actual_length") > 0))
    )
    ratio = pl.col("actual_time") / pl.col("actual_length")
    long = ratio.filter(pl.col("actual_length") >= _LONG_TOKENS).median()
    median: float | None = known.select(pl.coalesce(long, ratio.median())).collect().item()
    return median


def unit_by_pace(per_token: float) -> str | None:
    """Return the unit of durations by their median per generated token, None if it fits none.

    Each unit fits a range of 20,000; where two fit, the coarser one is taken.

    >>> unit_by_pace(0.03), unit_by_pace(30.0), unit_by_pace(3e4), unit_by_pace(3e7)
    ('s', 'ms', 'us', 'ns')
    """
    fitting = (unit for unit, scale in SCALES.items() if per_token <= SLOWEST * scale)
    unit = next(fitting, None)
    if unit is None or per_token < FASTEST:
        return "s" if per_token == 0.0 else None
    return unit


def unit_warning(frame: pl.DataFrame) -> str | None:
    """Return a line for the user if ``actual_time`` is hardly in seconds, else None."""
    per_token_s = seconds_per_token(frame)
    if per_token_s is None or per_token_s == 0.0 or FASTEST <= per_token_s <= SLOWEST:
        return None
    if per_token_s > SLOWEST:
        guess = "milliseconds" if per_token_s / 1e3 <= SLOWEST else "microseconds or nanoseconds"
    else:
        guess = "minutes or hours"
    return (
        f"actual_time: {per_token_s:.3g} s a token at the median: is it in {guess}? "
        "it should be seconds"
    )
