"""Summary of a log: format, rows, columns, rate, units, and warnings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from textwrap import wrap
from typing import Any, Final

import polars as pl

from sagellm_lifetime.history.findings import SHOWN, listed
from sagellm_lifetime.history.names import nearest
from sagellm_lifetime.history.prequential import Clock, relative_times
from sagellm_lifetime.history.read import History, Source, read_history
from sagellm_lifetime.history.reasons import finish_reason
from sagellm_lifetime.history.times import seconds_per_token, unit_warning

_MANY_CUT: Final = 0.5
"""Share of cut answers from which on lengths are mostly lower bounds."""
_FIXED: Final = 0.5
"""Share at one length from which on a log hardly shows what a model does by itself."""
_MAX_RATE: Final = 5000.0
"""Requests a second above which the unit of the arrival times is in doubt."""
_LEAST: Final = 20
"""Rows below which shares mean nothing."""
_INDENT: Final = 10


@dataclass(frozen=True)
class HistorySummary:
    """Summary of a log as it was read, for people and as numbers.

    Attributes:
        source: path or other name of the log; empty if it has none.
        format: format in words, ``"a history"`` for one in our own columns.
        rows: good rows.
        skipped: bad rows left out.
        kinds: number of bad rows of each kind.
        problems: the first bad rows, with their place and fault.
        left_out: requests that a history cannot hold, by the reason.
        columns: history column with a value -> where it came from.
        ignored: column that was not read -> the history column nearest to its name, or None.
        span_s: seconds from the first arrival to the last; None without arrival times on one clock.
        rate_per_s: requests a second.
        tokens_in_per_s: prompt tokens a second; None if no row has its prompt's length.
        tokens_out_per_s: generated tokens a second.
        tokens_in: prompt tokens of all rows, None if no row has its prompt's length.
        tokens_out: generated tokens of all rows.
        seconds_per_token: median of duration by generated tokens, None without durations.
        median_length: median of the generated tokens, cut answers as they stand.
        share_cut: share of rows that did not end by themselves (length, abort or error).
        reasons: share of rows by finish reason.
        share_at_one_value: share of rows that have the most common length.
        most_common_length: that length.
        sessions: number of sessions, None without session ids.
        clients: number of clients, None without client ids.
        models: number of models, None without names of models.
        notes: what was assumed, one line each.
        warnings: likely faults, one line each.

    >>> import polars
    >>> rows = {"arrival_time": [0.0, 5.0, 10.0], "actual_length": [40, 80, 80]}
    >>> summary = HistorySummary.of(polars.DataFrame(rows))
    >>> summary.span_s, summary.rate_per_s, summary.tokens_out_per_s
    (10.0, 0.2, 20.0)
    >>> print(summary.render())
    log       a history: 3 rows
    columns   arrival_time, actual_length
    span      10 s: 0.2 requests/s, 20 tokens/s out
    lengths   median 80 tokens, none cut, 67 % at one value (80)
    """

    source: str
    format: str
    rows: int
    skipped: int
    kinds: dict[str, int]
    problems: list[str]
    left_out: dict[str, int]
    columns: dict[str, str]
    ignored: dict[str, str | None]
    span_s: float | None
    rate_per_s: float | None
    tokens_in_per_s: float | None
    tokens_out_per_s: float | None
    tokens_in: int | None
    tokens_out: int
    seconds_per_token: float | None
    median_length: float
    share_cut: float
    reasons: dict[str, float]
    share_at_one_value: float
    most_common_length: int
    sessions: int | None
    clients: int | None
    models: int | None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, history: History | Source, *, source: str = "", clock: Clock = "auto"
    ) -> HistorySummary:
        """Return the summary of a history, or of anything that :func:`read_history` takes.

        Args:
            history: what was read; a path, frame or table is read first.
            source: name of the log.
            clock: what arrival times count from; ``auto`` infers it.

        Raises:
            HistoryError: it cannot be read, or has a bad row.
        """
        if not isinstance(history, History):
            history = read_history(history)
        frame = history.frame
        lengths = frame["actual_length"]
        common = lengths.value_counts(sort=True, name="rows").row(0)
        reasons = _reasons(frame)
        warning = unit_warning(frame)
        span_s, rates = _rates(frame, clock)
        columns = _columns(history)
        facts = {
            "share_cut": sum(share for reason, share in reasons.items() if reason != "stop"),
            "share_at_one_value": common[1] / frame.height,
            "most_common_length": int(common[0]),
            "rate_per_s": rates["requests"],
        }
        return cls(
            source=source,
            format=" and ".join(history.formats) or "a history",
            rows=frame.height,
            skipped=history.skipped,
            kinds=dict(history.kinds),
            problems=list(history.problems),
            left_out=dict(history.left_out),
            columns=columns,
            ignored={name: nearest(name, columns) for name in history.ignored},
            span_s=span_s,
            tokens_in_per_s=rates["prompt_length"],
            tokens_out_per_s=rates["actual_length"],
            tokens_in=_total(frame, "prompt_length"),
            tokens_out=int(lengths.sum()),
            seconds_per_token=seconds_per_token(frame),
            median_length=float(lengths.median()),  # type: ignore[arg-type]  # a number column
            reasons=reasons,
            sessions=_distinct(frame, "session_id"),
            clients=_distinct(frame, "client_id"),
            models=_distinct(frame, "model"),
            notes=[note for note in history.assumed if note != warning],
            warnings=[*([warning] if warning else []), *_warnings(frame.height, facts)],
            **facts,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values, for JSON.

        >>> import polars
        >>> HistorySummary.of(polars.DataFrame({"actual_length": [5]})).as_dict()["tokens_out"]
        5
        """
        return asdict(self)

    def render(self, width: int = 80) -> str:
        """Return lines for people, at most ``width`` characters wide where words allow it."""
        parts = [("log", self._log()), ("skipped", self._skipped())]
        if self.left_out:
            parts.append(("left out", _joined(f"{n:,} {why}" for why, n in self.left_out.items())))
        parts.append(("columns", _joined(_arrow(*item) for item in self.columns.items())))
        if self.ignored:
            names = [f"{n} (did you mean {m}?)" if m else n for n, m in self.ignored.items()]
            parts.append(("not read", listed(names)))
        parts += [("span", self._span()), ("pace", self._pace()), ("lengths", self._lengths())]
        parts.append(("who", self._who()))
        parts += [("note", note) for note in self.notes]
        parts += [("warning", warning) for warning in self.warnings]
        return "\n".join(line for label, text in parts if text for line in _row(label, text, width))

    def _log(self) -> str:
        name = f"{self.source}: " if self.source else ""
        skipped = f" good, {self.skipped:,} bad skipped" if self.skipped else ""
        return f"{name}{self.format}: {self.rows:,} {_noun(self.rows)}{skipped}"

    def _skipped(self) -> str:
        if not self.skipped:
            return ""
        kinds = _joined(f"{count:,} {kind}" for kind, count in self.kinds.items())
        shown = [text.removeprefix(f"{self.source} ") for text in self.problems[:SHOWN]]
        return f"{kinds}; the first: {'; '.join(shown)}"

    def _span(self) -> str:
        if self.span_s is None:
            has_times = "arrival_time" in self.columns
            why = "arrival times restart with every session" if has_times else "no arrival times"
            return f"unknown: {why}"
        text = _duration(self.span_s)
        if self.rate_per_s is None or self.tokens_out_per_s is None:
            return text
        text += f": {_short(self.rate_per_s)} requests/s"
        if self.tokens_in_per_s is not None:
            text += f", {_short(self.tokens_in_per_s)} tokens/s in"
        return f"{text}, {_short(self.tokens_out_per_s)} tokens/s out"

    def _pace(self) -> str:
        pace = self.seconds_per_token
        return "" if pace is None else f"{pace:.3g} s a generated token at the median"

    def _lengths(self) -> str:
        cut = "none cut"
        if self.share_cut:
            kinds = [f"{r} {_percent(s)}" for r, s in self.reasons.items() if r != "stop"]
            cut = f"{_percent(self.share_cut)} cut ({_joined(kinds)})"
        return (
            f"median {_short(self.median_length)} tokens, {cut}, "
            f"{_percent(self.share_at_one_value)} at one value ({self.most_common_length:,})"
        )

    def _who(self) -> str:
        counts = {"client": self.clients, "session": self.sessions, "model": self.models}
        return _joined(f"{n:,} {w if n == 1 else w + 's'}" for w, n in counts.items() if n)


def _columns(history: History) -> dict[str, str]:
    if history.columns:
        return dict(history.columns)
    frame = history.frame
    return {c: c for c in frame.columns if frame[c].null_count() < frame.height}


def _reasons(frame: pl.DataFrame) -> dict[str, float]:
    # A converted log has only the reasons that it states.
    reasons = frame.with_columns(finish_reason(frame.columns))["finish_reason"]
    counts = reasons.value_counts(sort=True, name="rows")
    return {reason: rows / frame.height for reason, rows in counts.rows()}


def _rates(frame: pl.DataFrame, clock: Clock) -> tuple[float | None, dict[str, float | None]]:
    """Return the span in seconds, and requests, prompt and generated tokens a second in it."""
    rates: dict[str, float | None] = dict.fromkeys(("requests", "prompt_length", "actual_length"))
    if "arrival_time" not in frame.columns or relative_times(frame, clock):
        return None, rates
    timed = frame.filter(pl.col("arrival_time").is_not_null())
    if timed.height < 2:
        return None, rates
    arrivals = timed["arrival_time"].to_numpy()
    span_s = float(arrivals.max() - arrivals.min())
    if span_s == 0.0:
        return 0.0, rates
    rates["requests"] = (timed.height - 1) / span_s
    for column in ("prompt_length", "actual_length"):
        tokens = _total(timed, column)
        rates[column] = None if tokens is None else tokens / span_s
    return span_s, rates


def _total(frame: pl.DataFrame, column: str) -> int | None:
    if column not in frame.columns or frame[column].null_count() == frame.height:
        return None
    return int(frame[column].sum())


def _distinct(frame: pl.DataFrame, column: str) -> int | None:
    if column not in frame.columns:
        return None
    return frame[column].drop_nulls().n_unique() or None


def _warnings(rows: int, facts: Mapping[str, Any]) -> list[str]:
    """Return what of a log is unusual enough to be doubted, one line each."""
    lines = []
    if rows >= _LEAST and facts["share_at_one_value"] > _FIXED:
        lines.append(
            f"{_percent(facts['share_at_one_value'])} of the answers have exactly "
            f"{facts['most_common_length']:,} tokens: fixed lengths (a benchmark that ignores the "
            "end token) say nothing of a model"
        )
    if rows >= _LEAST and facts["share_cut"] > _MANY_CUT:
        lines.append(
            f"{_percent(facts['share_cut'])} of the answers were cut: of most lengths only a lower "
            "bound is known"
        )
    rate = facts["rate_per_s"]
    if rate is not None and rows >= _LEAST and rate > _MAX_RATE:
        lines.append(f"arrival_time: {_short(rate)} requests/s: are the times in seconds?")
    return lines


def _arrow(column: str, origin: str) -> str:
    return column if origin == column else f"{column} ← {origin}"


def _noun(count: int) -> str:
    return "row" if count == 1 else "rows"


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(parts)


def _row(label: str, text: str, width: int) -> list[str]:
    return wrap(
        text,
        width,
        initial_indent=label.ljust(_INDENT),
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def _short(value: float) -> str:
    """Return a number with two or three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
