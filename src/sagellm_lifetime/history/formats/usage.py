"""A flat log of requests under well-known names: what a gateway or a usage table writes.

For logs of no format of their own. Read only where it is plain what they are: generated tokens,
prompt tokens and something more (a time, a model, an id, a cap, a finish reason) under
the names of ``names.ALIASES``, each history column once. The mapping is noted. Rows that count
several requests are refused; so is a time whose unit is unknown.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable
from typing import Final

import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history.findings import Findings
from sagellm_lifetime.history.formats.base import Format, Row, number
from sagellm_lifetime.history.names import mapping, target_of
from sagellm_lifetime.history.records import Record, Sample
from sagellm_lifetime.history.times import (
    EPOCH,
    FASTEST,
    NAMES,
    SCALES,
    SLOWEST,
    epoch_unit,
    moment,
    plausible_unit,
    seconds_per_token,
)

_TIMES: Final = ("arrival_time", "actual_time", "end")
_COUNTS: Final = re.compile(r"(num_|n_|total_)?(model_|api_)?requests?(_count)?|count|calls")
_LEAST: Final = 3  # history columns by which a flat log is recognised


class Usage(Format):
    """A flat log of requests under well-known names."""

    name = "usage"
    title = "a log of requests"
    used = ()

    def __init__(self, findings: Findings) -> None:
        super().__init__(findings)
        self._columns: dict[str, tuple[str, str | None]] = {}
        self._known_names: set[str] = set()
        self._open: list[str] = []  # history columns of times whose unit is not known yet
        self._has_subtracted = False  # a duration was made from a start and an end
        # Starts, durations and lengths of rows whose times have no stated unit.
        self._starts, self._durations, self._lengths = array("d"), array("d"), array("d")

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for a flat log whose columns are plain, each history column once."""
        targets = [target for target, _ in mapping(sample.keys).values()]
        known = set(targets) - {"reasoning", "total", "end"}
        return (
            {"actual_length", "prompt_length"} <= known
            and len(known) >= _LEAST
            and len(targets) == len(set(targets))
        )

    @classmethod
    def unusable(cls, sample: Sample) -> str | None:
        """Return why: a row counts several requests."""
        for name in sample.keys:
            if _COUNTS.fullmatch(re.sub(r"[^a-z0-9]+", "_", name.lower())):
                return f"its rows count several requests each (column {name!r}), not one"
        return None

    def rows(self, record: Record) -> Iterable[Row]:
        """Return the request of a row."""
        for name in record:
            if name not in self._known_names:
                self._assign(name)
        self._keep_one_duration()
        row: Row = {}
        for name, (target, unit) in self._columns.items():
            cell = record.get(name)
            if target in _TIMES:
                cell = self._time(cell, name, target, unit or self._unit_of_ends(record, target))
            elif target == "prefix_hashes" and not isinstance(cell, list):
                if cell is not None:  # a CSV cell, which holds no list
                    self.findings.ignored[name] = None
                continue
            row[target] = cell
        end, reasoning, total = (
            row.pop("end", None),
            row.pop("reasoning", None),
            row.pop("total", None),
        )
        start = row.get("arrival_time")
        if number(reasoning, "reasoning tokens"):
            row["actual_length"] = self._with_reasoning(row, reasoning, total)
        if end is not None and start is not None:
            row["actual_time"] = end - start
            self._has_subtracted = True
            if {"end", "arrival_time"} <= set(self._open) and abs(start) < EPOCH:
                self._keep_for_unit(start, end, row.get("actual_length"))
        return [row]

    def _keep_for_unit(self, start: float, end: float, length: object) -> None:
        """Keep what the unit is decided by; a damaged row decides nothing and is named later."""
        try:
            counted = number(length, "actual_length")
        except ValueError:
            return
        if counted is not None and math.isfinite(counted) and math.isfinite(end - start):
            self._starts.append(start)
            self._durations.append(end - start)
            self._lengths.append(counted)

    def _keep_one_duration(self) -> None:
        """Drop one of two kinds of durations, stated or from start to end: units may differ."""
        names = {target: name for name, (target, _) in self._columns.items()}
        if "end" in names and "actual_time" in names:
            spare = names["actual_time" if self._has_subtracted else "end"]
            del self._columns[spare]
            self.findings.ignored[spare] = None

    def _unit_of_ends(self, record: Record, target: str) -> str | None:
        """Return the unit that only the other of start and end states, None where there is none.

        The size of a moment since 1970 shows its unit; from another origin both have the same.
        """
        if target == "actual_time":
            return None
        for name, (other, unit) in self._columns.items():
            if other != target and other in ("arrival_time", "end") and unit is not None:
                value = number(record.get(name), name)
                if value is not None and abs(value) / SCALES[unit] < EPOCH:
                    self.findings.add_note(
                        f"start and end: both read as {NAMES[unit]}, as {name!r} says"
                    )
                    return unit
        return None

    def _assign(self, name: str) -> None:
        """Record which history column a column stands for; one that is taken stays taken."""
        self._known_names.add(name)
        target = target_of(name)
        taken = self.taken | {other for other, _ in self._columns.values()}
        if target is None or target[0] in taken:
            self.findings.ignored[name] = None
        else:
            self._columns[name] = target

    def _time(self, cell: object, name: str, target: str, unit: str | None) -> float | None:
        """Return seconds; of an unknown unit as it stands, to be settled with the whole file."""
        if target == "actual_time":
            value = number(cell, name)
        elif unit is None:
            value = moment(cell, name)
            counted = cell if isinstance(cell, int | float) else _number_or_none(cell)
            if counted is not None and (epoch := epoch_unit(counted)) != "s":
                self.findings.add_note(f"{name}: read as {NAMES[epoch]} since 1970")
        else:
            value = number(cell, name)
        if unit is not None:
            return None if value is None else value / SCALES[unit]
        if value is not None and target not in self._open:
            self._open.append(target)
        return value

    def _with_reasoning(self, row: Row, reasoning: object, total: object) -> object:
        """Return the generated tokens with reasoning, which may be inside or apart."""
        length = number(row.get("actual_length"), "generated tokens")
        apart = number(reasoning, "reasoning tokens") or 0.0
        prompt = number(row.get("prompt_length"), "prompt tokens")
        if length is None:
            return None
        if total is not None and prompt is not None:
            if number(total, "total tokens") == prompt + length + apart:
                self.findings.add_note(
                    "reasoning tokens are counted apart (by the total), and were added"
                )
                return length + apart
            return length
        self.findings.add_note(
            "reasoning tokens are taken to be inside of the generated ones: no total says"
        )
        return length

    def settle(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with its times in seconds, and note what each column was taken for.

        Raises:
            HistoryError: the unit of a time is unknown.
        """
        for name, (target, unit) in self._columns.items():
            if target not in ("reasoning", "total", "end") and (name != target or unit):
                origin = name + (f" ({NAMES[unit]})" if unit else "")
                self.findings.columns.setdefault(target, origin)
        if self._durations:
            frame = self._settle_ends(frame)
        elif "arrival_time" in self._open and "arrival_time" in frame.columns:
            frame = self._settle_arrivals(frame)
        if "actual_time" in self._open and {"actual_time", "actual_length"} <= set(frame.columns):
            frame = self._settle_durations(frame)
        return frame

    def _settle_ends(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Decide the one unit of starts and ends: by the durations, or else by the rate."""
        name = self._name_of("arrival_time")
        columns = {"actual_time": self._durations, "actual_length": self._lengths}
        per_token = seconds_per_token(pl.DataFrame({n: pl.Series(v) for n, v in columns.items()}))
        unit, why = None, "by the durations"
        if per_token is None or FASTEST * SCALES["ms"] <= per_token <= SLOWEST:
            unit, why = self._unit_by_rate(pl.Series(self._starts)), "by the rate of requests"
        elif FASTEST <= per_token <= SLOWEST:
            unit = "s"
        elif SLOWEST < per_token <= SLOWEST * SCALES["ms"]:
            unit = "ms"
        if unit is None:
            raise self._no_unit(name, why)
        if unit == "s":
            return frame
        end = self._name_of("end")
        self.findings.add_note(f"{name}, {end}: read as {NAMES[unit]} ({why})")
        times = [c for c in ("arrival_time", "actual_time") if c in frame.columns]
        return frame.with_columns(pl.col(times) / SCALES[unit])

    def _settle_arrivals(self, frame: pl.DataFrame) -> pl.DataFrame:
        unit = self._unit_by_rate(frame["arrival_time"])
        name = self._name_of("arrival_time")
        if unit is None:
            raise self._no_unit(name, "by the rate of requests")
        if unit == "s":
            return frame
        self.findings.add_note(f"{name}: read as {NAMES[unit]} (by the rate of requests)")
        return frame.with_columns(pl.col("arrival_time") / SCALES[unit])

    def _unit_by_rate(self, starts: pl.Series) -> str | None:
        targets = [target for target, _ in self._columns.values()]
        # Traces with block hashes follow Mooncake's, which counts milliseconds.
        return plausible_unit(starts, "ms" if "prefix_hashes" in targets else None)

    def _name_of(self, target: str) -> str:
        return next(name for name, (other, _) in self._columns.items() if other == target)

    def _no_unit(self, name: str, why: str) -> HistoryError:
        return HistoryError(
            f"the unit of {name!r} cannot be told {why}: rename it to "
            f"{name + '_s'!r} or {name + '_ms'!r}"
        )

    def _settle_durations(self, frame: pl.DataFrame) -> pl.DataFrame:
        name = self._name_of("actual_time")
        per_token = seconds_per_token(frame)
        if per_token is None or per_token <= SLOWEST:
            return frame
        if per_token / SCALES["ms"] > SLOWEST:
            raise HistoryError(
                f"the unit of {name!r} cannot be told ({per_token:.3g} a token): rename it to "
                f"{name + '_s'!r} or {name + '_ms'!r}"
            )
        self.findings.add_note(
            f"{name}: read as milliseconds (as seconds it would be {per_token:.3g} s a token)"
        )
        return frame.with_columns(pl.col("actual_time") / SCALES["ms"])


def _number_or_none(cell: object) -> float | None:
    try:
        return float(cell) if isinstance(cell, str) else None
    except ValueError:
        return None
