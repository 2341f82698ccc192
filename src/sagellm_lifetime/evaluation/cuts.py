"""Count rows whose end was not seen, without bias.

The longest answers are cut most often, so a score over the rest alone is a score over the short
ones, and a constant can beat the true distribution. Two remedies of survival analysis:

- A horizon: lengths and predictions count up to it, as under a cap that all rows share. A row that
  was cut beyond it counts like any other (restricted means: Irwin 1949; Uno et al. 2014).
- Weights: rows that went on stand for those cut before the horizon, each weighted by the inverse of
  its chance of not having been cut until its own end (IPCW: Robins & Rotnitzky 1992; for scores,
  Graf et al. 1999). This is unbiased if being cut does not depend on what would have followed.

The chance is the Kaplan-Meier estimate of the time to a cut. The horizon ends where it falls below
a tenth, so that no row stands for more than ten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

LEAST_CHANCE: Final = 0.1
NEVER: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, eq=False)
class Cuts:
    """The cut rows among the scored ones.

    Attributes:
        rows: number of scored rows.
        cut: number of those whose end was not seen.
        before: number of those cut before the horizon; others stand for them.
        horizon: tokens up to which lengths count; ``NEVER`` if none is needed.
        at: lengths at which something was cut, ascending.
        chances: chance of not being cut before each length of ``at``, and beyond the last.
    """

    rows: int
    cut: int
    before: int
    horizon: int
    at: np.ndarray
    chances: np.ndarray

    def chance(self, length: np.ndarray) -> np.ndarray:
        """Return the chance that a row is not cut before ``length`` tokens, same shape."""
        return np.asarray(self.chances[np.searchsorted(self.at, length, side="left")])

    @property
    def largest_weight(self) -> float:
        """Return the largest number of rows that one row stands for."""
        if not self.before:
            return 1.0
        return float(1.0 / self.chance(np.array([min(self.horizon, NEVER - 1)]))[0])

    def to_dict(self) -> dict[str, Any]:
        """Return the counts for ``--json``; no horizon is ``None``."""
        return {
            "rows": self.cut,
            "horizon": None if self.horizon == NEVER else self.horizon,
            "before_horizon": self.before,
            "largest_weight": round(self.largest_weight, 3),
        }

    def says(self) -> list[str]:
        """Return sentences for a report; none if nothing was cut."""
        if not self.cut:
            return []
        ended = self.rows - self.cut
        lines = [
            f"{ended:,} of {self.rows:,} ended by themselves or at a cap that was known before; "
            f"{self.cut:,} were cut, and their ends are not known."
        ]
        if self.horizon != NEVER:
            lines.append(
                f"Lengths and predictions count up to {self.horizon:,} tokens, so that the "
                f"{self.cut - self.before:,} cut there or later are scored like the others."
            )
        if self.before:
            lines.append(
                f"The {self.before:,} cut {'earlier' if self.horizon != NEVER else 'early'} are "
                "stood for by those that went on: weights by the chance of not being cut, at most "
                f"{self.largest_weight:.1f}."
            )
        return lines


def find_cuts(length: np.ndarray, known: np.ndarray) -> Cuts:
    """Return the cut rows of a frame.

    Args:
        length: total tokens of each row, or a lower bound, 1 or more; shape ``(n,)``.
        known: False for a lower bound.
    """
    at, inverse = np.unique(length, return_inverse=True)
    cut = np.bincount(inverse, ~known, len(at))
    ended = np.bincount(inverse, known, len(at))
    at_risk = (cut + ended)[::-1].cumsum()[::-1]
    # At equal lengths an end precedes a cut, so a row that ended there was not at risk of a cut.
    stays = 1.0 - cut / np.maximum(at_risk - ended, 1.0)
    after = np.cumprod(stays)
    before = np.concatenate([[1.0], after[:-1]])
    horizon = NEVER
    if cut.any():
        reachable = np.flatnonzero(before >= LEAST_CHANCE)
        last = int(reachable[-1])
        if last < len(at) - 1 or cut[last]:
            horizon = int(at[last])
    cut_at = np.flatnonzero(cut)
    return Cuts(
        rows=len(length),
        cut=int(cut.sum()),
        before=int((~known & (length < horizon)).sum()),
        horizon=horizon,
        at=at[cut_at],
        chances=np.concatenate([[1.0], after[cut_at]]),
    )
