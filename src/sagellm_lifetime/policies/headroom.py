"""Headroom: blocks to leave free at admission for the growth of what runs.

Between two admissions the memory of ``n`` running sequences rises by ``n / block`` blocks a step
and falls by a whole sequence when one ends: about ``n / answer`` of them a step, each of
``(prompt + answer) / block`` blocks. That is the risk process of an insurer turned round (steady
premiums, sudden claims), and the chance that it ever rises by ``w`` blocks falls as ``exp(-w / h)``
with

    h = answer · (prompt + answer) / (prompt · block)

(Cramér-Lundberg, for exponential sequences; Asmussen & Albrecher 2010, ch. IV). ``n`` cancels: so
many blocks are a large share of a small pool and nothing of a large one, which is why no share of
the pool is right for all. Where prompts are long against answers every end gives back more than
growth takes; where they are short, next to nothing holds the growth back.
"""

from __future__ import annotations

from typing import Final

MOST: Final = 0.2
"""Share of the pool beyond which room costs more than the preemptions it saves."""
_PAYS: Final = 0.02
"""Wait of a newcomer, in typical answers, from which on all of it is left free."""


def worth(wait: float) -> float:
    """Share of the headroom that is left free.

    What is kept for those that run keeps others waiting. Where hardly anybody waits there is no
    pressure that could grow, and a sequence that finds the last blocks may as well have them: all
    that could come of it is one preemption, and the wait would be certain.

    Args:
        wait: of a newcomer in the order of arrival, on average lately, in the time that a typical
            answer takes.
    """
    return min(wait / _PAYS, 1.0)


def headroom(prompt: float, answer: float, total_blocks: int, block_size: int) -> int:
    """Blocks that the running sequences outgrow with a chance of ``1 / e``, at most a fifth of all.

    Args:
        prompt: mean tokens computed for a prompt, those that others hold too left out.
        answer: mean tokens expected of an answer.
        total_blocks: in the pool.
        block_size: tokens per block.
    """
    most = MOST * total_blocks
    rises = answer * (prompt + answer) / (max(prompt, 1.0) * block_size)
    return round(min(rises, most))
