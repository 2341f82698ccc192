"""The number of prompt tokens that one id of ``prefix_hashes`` covers.

A history does not contain it. Mooncake's traces have 512 tokens an id, Qwen-Bailian's 16, others
64. With too large a size a few ids fill the whole prompt, and prompts that share a system prompt
become equal. So the size is stated, or inferred from the prompt lengths if one size fits every row,
or the replay is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.features.request import PREFIX_HEAD

USUAL: Final = 512
"""Tokens per id in the traces of Mooncake and in the records of the vLLM plugin."""
_POWERS: Final = tuple(2**k for k in range(17))


@dataclass(frozen=True, slots=True)
class HashBlocks:
    """The tokens per id of ``prefix_hashes``, and the origin of the figure.

    Attributes:
        tokens: tokens per id; the last block of a prompt may be partial or without an id.
        source: ``stated`` by the user, or ``inferred`` from the prompt lengths.
    """

    tokens: int
    source: Literal["stated", "inferred"]

    @property
    def said(self) -> str:
        """Return it in words, for the line that describes the setting."""
        how = {"stated": "as stated", "inferred": "told from the prompt lengths"}[self.source]
        return f"prefix_hashes of {self.tokens:,} tokens each, {how}"


def hash_blocks(frame: pl.DataFrame, stated: int | None = None) -> HashBlocks | None:
    """Return the tokens per id of ``prefix_hashes``; ``None`` if no row needs it.

    Args:
        frame: history rows; those with ``prompt_token_ids`` need no ids.
        stated: the size given by the user, tokens.

    Raises:
        HistoryError: if a prompt is too short for its ids of the stated size; or no size, or more
            than one, fits all rows.
    """
    tokens, ids = _counted(frame)
    if not len(ids):
        return None
    if stated is not None:
        full = ids > -(-tokens // stated)
        if full.any():
            row = int(np.argmax(full))
            raise HistoryError(
                f"prefix_hashes: {ids[row]:,} ids of {stated:,} tokens are more than a prompt of "
                f"{tokens[row]:,} tokens has ({full.sum():,} of {len(full):,} rows): state another "
                "--hash-block-size, or leave the option out"
            )
        return HashBlocks(stated, "stated")
    for cut in (False, True):
        sizes = _sizes(tokens, ids, cut=cut)
        if USUAL in sizes:
            return HashBlocks(USUAL, "inferred")
        if len(sizes) == 1:
            return HashBlocks(sizes.pop(), "inferred")
        if sizes:
            several = ", ".join(f"{size:,}" for size in sorted(sizes)[:4])
            raise HistoryError(
                f"prefix_hashes: the prompt lengths fit ids of {several} tokens alike: say which "
                "with --hash-block-size N"
            )
    raise HistoryError(
        f"prefix_hashes: no number of tokens an id fits all prompts (a row has {ids[0]:,} ids for "
        f"{tokens[0]:,} prompt tokens): say it with --hash-block-size N, or drop the column"
    )


def _counted(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return prompt tokens and numbers of ids of the rows whose prompt comes from ids, int64."""
    if not {"prefix_hashes", "prompt_length"} <= set(frame.columns):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    rows = frame.filter(
        (pl.col("prefix_hashes").list.len() > 0) & pl.col("prompt_length").is_not_null()
    )
    if "prompt_token_ids" in rows.columns:
        given = pl.col("prompt_token_ids").list.len() == pl.col("prompt_length")
        rows = rows.filter(~given.fill_null(value=False))
    tokens = rows["prompt_length"].cast(pl.Int64).to_numpy()
    return np.maximum(tokens, 1), rows["prefix_hashes"].list.len().cast(pl.Int64).to_numpy()


def _sizes(tokens: np.ndarray, ids: np.ndarray, *, cut: bool) -> set[int]:
    """Return the sizes that fit every row: powers of two, else the only whole number.

    The last block of a prompt may be partial and have an id (Mooncake), or have none (vLLM). With
    ``cut``, the longest list may lack the rest of its prompt, as a recorder that keeps the first
    few ids leaves it.
    """
    longest = ids == ids.max() if cut else np.zeros(len(ids), dtype=bool)
    if cut and longest.all() and ids.max() != PREFIX_HEAD:
        return set()
    unbounded = np.iinfo(np.int64).max
    rounded_up = (
        np.where(longest, 1, -(-tokens // ids)).max(),
        np.where(ids > 1, -(-tokens // np.maximum(ids - 1, 1)) - 1, unbounded).min(),
    )
    rounded_down = (
        np.where(longest, 1, tokens // (ids + 1) + 1).max(),
        (tokens // ids).min(),
    )
    spans = (rounded_up, rounded_down)
    powers = {size for low, high in spans for size in _POWERS if low <= size <= high}
    return powers or {int(low) for low, high in spans if low == high}
