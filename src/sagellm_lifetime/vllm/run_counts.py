"""Counts of this run of an engine, from counts that go on from an earlier run or may fall.

What was learned is continued after a restart, and a learning process that died goes on from its
last checkpoint, so counts that are part of it begin above 0 and may fall. A Prometheus counter does
neither.
"""

from __future__ import annotations

from collections.abc import Mapping


class RunCounts:
    """Counters that begin at 0 and never fall.

    >>> counts = RunCounts({"lessons": 40})
    >>> [counts.update({"lessons": n})["lessons"] for n in (40, 45, 42, 44)]
    [0, 5, 5, 7]

    Args:
        start: the counts when the run began; one without a value begins at its first value.
    """

    def __init__(self, start: Mapping[str, float | None]) -> None:
        self._last = {name: value for name, value in start.items() if value is not None}
        self._counted: dict[str, float] = dict.fromkeys(start, 0)

    def update(self, now: Mapping[str, float | None]) -> dict[str, float]:
        """Return how much each count has risen since the start, in all."""
        for name, value in now.items():
            self._counted.setdefault(name, 0)
            if value is None:
                continue
            self._counted[name] += max(value - self._last.get(name, value), 0)
            self._last[name] = value
        return dict(self._counted)
