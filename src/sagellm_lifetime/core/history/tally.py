"""What was wrong with the rows: counted by kind, the first ones by place, said in one line."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from sagellm_lifetime.core.errors import HistoryRowError

SHOWN, KEPT = 3, 20  # problems named in the message, and kept in the result


@dataclass
class Tally:
    """Bad rows: how many of each kind, and where the first ones are."""

    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)  # (file, "line 7: ...")
    rows: int = 0  # all rows seen, good and bad

    @property
    def bad(self) -> int:
        return self.kinds.total()

    def note(self, where: str, problem: str) -> None:
        if len(self.problems) < KEPT:
            self.problems.append((where, problem))

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
        return HistoryRowError(f"{source}: {self.bad} bad {rows} ({'; '.join(places)}); {what}")
