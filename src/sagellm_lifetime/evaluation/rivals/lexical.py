"""Simple counts over a prompt's text, vectorised by polars.

In the spirit of the lexical features of Clairvoyant (2606.07248): sizes, punctuation, structure
and words that ask for something long or short.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

_PATTERNS: Final = (
    r"\n",
    r"\?",
    r"\d",
    r"[.!;:]",
    r",",
    r"[{}\[\]()<>=]",
    r"```",
    r"[\"']",
    r"[A-Z]",
    r"[^\x00-\x7F]",
)
_WORDS: Final = (
    r"list|enumerate|steps?|bullet|items|examples?|ideas|ways|reasons|tips",
    r"write|compose|draft|generate|create|story|essay|article|poem|letter|blog|paragraphs?",
    r"explain|describe|discuss|analyz\w+|compare|how|why|detail\w*",
    r"code|function|python|program|script|sql|html|implement|algorithm|class",
    r"summar\w+|brief\w*|short|concise|one sentence|single|classify|sentiment|category",
    r"translate|rewrite|edit|correct|convert|paraphrase|replace|fix",
    r"who|when|where|which|what is|name|capital|calculate|find|is it|true or false|yes or no",
)
_LIMIT: Final = r"(?i)\b(\d{1,5})\s*(?:-\s*)?(?:words?|sentences?|items|examples|ideas|steps|ways)"


def counts(text: pl.Series) -> np.ndarray:
    """Counts of shape ``(n, 2 + patterns + words + 1)``; a missing text counts as missing."""
    column = pl.col("text")
    table = pl.DataFrame({"text": text}).select(
        column.str.len_chars().alias("chars"),
        column.str.count_matches(r"\S+").alias("words"),
        *(
            column.str.count_matches(pattern).alias(f"pattern_{i}")
            for i, pattern in enumerate(_PATTERNS)
        ),
        *(
            column.str.count_matches(rf"(?i)\b(?:{words})\b").alias(f"asks_{i}")
            for i, words in enumerate(_WORDS)
        ),
        column.str.extract(_LIMIT).cast(pl.Float64).alias("limit"),
    )
    return table.cast(pl.Float64).to_numpy()


def first_word(text: pl.Series) -> pl.Series:
    """The first word in lower case: "list", "write", "what"."""
    return text.str.to_lowercase().str.extract(r"([a-z]+)").alias("first_word")
