"""Simple counts over a prompt's text, vectorised by polars.

In the spirit of the lexical features of Clairvoyant (2606.07248): sizes, punctuation, structure,
words that ask for something long or short; and which of the common words occur.
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
_HEAD: Final = 1000
"""Characters of a prompt that are searched for common words."""
_LIMIT: Final = r"(?i)\b(\d{1,5})\s*(?:-\s*)?(?:words?|sentences?|items|examples|ideas|steps|ways)"


def counts(text: pl.Series) -> np.ndarray:
    """Return counts, shape ``(n, 2 + patterns + words + 1)``; NaN for a missing text."""
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
    """Return the first word in lower case: "list", "write", "what"."""
    return text.str.to_lowercase().str.extract(r"([a-z]+)").alias("first_word")


def vocabulary(text: pl.Series, size: int = 150) -> list[str]:
    """Return the commonest words, without those in more than 40 % or in fewer than 20 prompts."""
    words = _words(text).list.unique().explode(empty_as_null=True).drop_nulls().rename("word")
    counted = words.value_counts(name="n")
    counted = counted.filter(pl.col("n").is_between(20, 0.4 * len(text)))
    return counted.sort(["n", "word"], descending=[True, False]).head(size)["word"].to_list()


def occurrences(text: pl.Series, words: list[str]) -> np.ndarray:
    """Return 1 where a word occurs, else 0; float32, shape ``(n, len(words))``."""
    table = pl.DataFrame({"words": _words(text)}).select(
        pl.col("words").list.contains(word).cast(pl.Float32).alias(word) for word in words
    )
    return table.to_numpy()


def _words(text: pl.Series) -> pl.Series:
    return text.str.head(_HEAD).str.to_lowercase().str.extract_all(r"[a-z]{2,}")
