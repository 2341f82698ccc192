"""Findings of reading a history: bad rows by kind and place, rows left out, and notes."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from sagellm_lifetime.core.errors import HistoryRowError
from sagellm_lifetime.core.protocol import FINISH_REASONS

SHOWN, KEPT = 3, 20  # problems named in the message, and kept in the result
NAMED = 12  # columns and finish reasons named in a note
UNKNOWN_REASON = "unknown finish reason"


@dataclass
class Findings:
    """Bad rows and notes, collected while files are read.

    Attributes:
        kinds: number of bad rows of each kind.
        problems: the first bad rows, as ``(file, "line 7: ...")``.
        rows: number of rows read, good and bad.
        left_out: number of requests of a foreign log that a history cannot hold, by the reason.
        notes: lines for the user on what was assumed, each once, in order of appearance.
        ignored: columns that were not read, each once, in order.
        formats: the foreign formats that were recognised.
        reasons: unknown finish reasons that are plain words.
        renamed: other programs' words for a finish reason, and how many good rows have them.
        columns: history column -> the column or path it was read from, where that has another name.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: dict[str, None] = field(default_factory=dict)
    ignored: dict[str, None] = field(default_factory=dict)
    formats: dict[str, None] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    renamed: Counter[str] = field(default_factory=Counter)
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Return the number of bad rows."""
        return self.kinds.total()

    def add_problem(self, where: str, problem: str) -> None:
        """Record where a row is bad and why; only the first ``KEPT`` are kept."""
        if len(self.problems) < KEPT:
            self.problems.append((where, problem))

    def add_note(self, note: str) -> None:
        """Record one line for the user; a line that is known already is not repeated."""
        self.notes[note] = None

    def error(self, source: str, *, advice: str) -> HistoryRowError:
        """Return an error that counts the bad rows, names the first and gives advice.

        Args:
            source: the file, glob or folder, as the user named it.
            advice: what to do, the end of the message.
        """
        has_several_files = {name for name, _ in self.problems} != {source}
        places = [
            f"{os.path.basename(name)} {problem}" if has_several_files else problem
            for name, problem in self.problems[:SHOWN]
        ]
        unnamed = self.bad - len(places)
        if unnamed > 0:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
            places.append(f"and {unnamed} more; in all {kinds}")
        rows = "row" if self.bad == 1 else "rows"
        if self.reasons:
            advice = f"{self._reason_advice()}; {advice}"
        return HistoryRowError(f"{source}: {self.bad} bad {rows} ({'; '.join(places)}); {advice}")

    def _reason_advice(self) -> str:
        words = ", ".join(f"{word!r}" for word, _ in self.reasons.most_common(NAMED))
        *others, last = FINISH_REASONS
        return (
            f"a finish reason is {', '.join(others)} or {last} (length where a cap was met, abort "
            f"where it was cut from outside): write one of them for {words}"
        )


def left_out(findings: Findings) -> str:
    """Return in words how many requests were left out and why; empty if none were."""
    return ", ".join(f"{count:,} {why}" for why, count in findings.left_out.most_common())


def listed(names: list[str]) -> str:
    """Return names separated by commas: the first twelve, and how many more there are."""
    unnamed = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {unnamed} more" if unnamed > 0 else "")
