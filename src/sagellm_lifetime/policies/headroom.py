"""Headroom: blocks to leave free at admission for the growth of the running sequences.

Between two admissions the memory of ``n`` running sequences rises by ``n / block`` blocks a step
and falls by a whole sequence when one ends: about ``n / answer`` of them a step, each of
``(prompt + answer) / block`` blocks. That is the risk process of an insurer turned round (steady
premiums, sudden claims), and the probability that it ever rises by ``w`` blocks falls as
``exp(-w / h)`` with

    h = answer · (prompt + answer) / (prompt · block)

(Cramér-Lundberg, for exponential sequences; Asmussen & Albrecher 2010, ch. IV). ``n`` cancels, so
the headroom is a number of blocks and not a share of the pool. With prompts that are long against
answers, every end frees more than growth takes; with short prompts, growth is hardly offset.
"""

from __future__ import annotations

from typing import Final

MOST: Final = 0.2
"""Largest share of the pool; a larger headroom costs more than the preemptions it saves."""
_PAYS: Final = 0.02
"""Wait of a newcomer, in typical answer durations, from which the full headroom is kept."""


def worth(wait: float) -> float:
    """Return the share of the headroom to keep free, 0 to 1.

    Headroom makes waiting sequences wait longer. With a short queue the wait would be certain and
    the preemption that it avoids only possible, so less is kept.

    Args:
        wait: recent mean wait of a newcomer in arrival order, in typical answer durations.
    """
    return min(wait / _PAYS, 1.0)


def headroom(prompt: float, answer: float, total_blocks: int, block_size: int) -> int:
    """Return the blocks by which the running sequences grow with probability ``1 / e``.

    At most a fifth of the pool.

    Args:
        prompt: mean tokens computed for a prompt, without those in shared blocks.
        answer: mean tokens expected of an answer.
        total_blocks: in the pool.
        block_size: tokens per block.
    """
    limit = MOST * total_blocks
    rises = answer * (prompt + answer) / (max(prompt, 1.0) * block_size)
    return round(min(rises, limit))
