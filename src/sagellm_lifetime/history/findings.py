"""What a reader has to say: bad rows by kind and place, rows left out, and what it understood."""

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
class Tally:
    """Bad rows: how many of each kind, and where the first ones are; and other things to say.

    Attributes:
        kinds: bad rows of each kind.
        problems: the first of them, as ``(file, "line 7: ...")``.
        rows: all rows seen, good and bad.
        left_out: requests that a foreign log holds and a history cannot, by the reason.
        notes: what was understood or assumed, each once, in the order in which it came up.
        ignored: columns that were not read, each once, in their order.
        formats: the foreign formats that were recognised.
        reasons: unknown finish reasons that are plain words.
        renamed: other programs' words for a finish reason, in the rows that were read.
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

    @property
    def bad(self) -> int:
        return self.kinds.total()

    def note(self, where: str, problem: str) -> None:
        if len(self.problems) < KEPT:
            self.problems.append((where, problem))

    def say(self, note: str) -> None:
        """Keep one line for the user; the same line once."""
        self.notes[note] = None

    def error(self, source: str, *, what: str) -> HistoryRowError:
        """The one line that says how many rows are bad, names the first, and what to do."""
        several = {name for name, _ in self.problems} != {source}
        places = [
            f"{os.path.basename(name)} {problem}" if several else problem
            for name, problem in self.problems[:SHOWN]
        ]
        more = self.bad - len(places)
        if more > 0:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
            places.append(f"and {more} more; in all {kinds}")
        rows = "row" if self.bad == 1 else "rows"
        if self.reasons:
            what = f"{self._reason_advice()}; {what}"
        return HistoryRowError(f"{source}: {self.bad} bad {rows} ({'; '.join(places)}); {what}")

    def _reason_advice(self) -> str:
        words = ", ".join(f"{word!r}" for word, _ in self.reasons.most_common(NAMED))
        *some, last = FINISH_REASONS
        return (
            f"a finish reason is {', '.join(some)} or {last} (length where a cap was met, abort "
            f"where it was cut from outside): write one of them for {words}"
        )


def left_out(tally: Tally) -> str:
    """Return how many requests were left out and why, empty for none."""
    return ", ".join(f"{count:,} {why}" for why, count in tally.left_out.most_common())


def listed(names: list[str]) -> str:
    """Return names with commas between, the first of many."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
