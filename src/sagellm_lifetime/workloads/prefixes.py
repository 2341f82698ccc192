"""Ids of shared prompt blocks, as the Mooncake trace has them: 512 tokens a block."""

from __future__ import annotations

import numpy as np
import polars as pl

from sagellm_lifetime.workloads.draws import Draws

BLOCK_TOKENS = 512


def prefix_hashes(drawn: Draws) -> pl.Series:
    """Full blocks are shared by the turns of a conversation, the last one belongs to its turn.

    Block 0 (the system prompt) is shared by everyone. Ids say nothing beyond being equal.
    """
    if drawn.session is None:
        raise ValueError("prefix blocks need conversations")
    blocks = -(-drawn.prompt // BLOCK_TOKENS)
    row = np.repeat(np.arange(len(blocks)), blocks)
    start = np.cumsum(blocks) - blocks
    position = np.arange(len(row)) - start[row]
    most = int(blocks.max(initial=1)) + 1
    ids = 1 + drawn.session[row] * most + position
    own = 1 + (int(drawn.session.max(initial=0)) + 1) * most + row
    ids = np.where((position == blocks[row] - 1) & (position > 0), own, ids)
    ids = np.where(position == 0, 0, ids)
    frame = pl.DataFrame({"row": row, "id": ids})
    lists = frame.group_by("row", maintain_order=True).agg("id").get_column("id")
    return lists.cast(pl.List(pl.Int64))
