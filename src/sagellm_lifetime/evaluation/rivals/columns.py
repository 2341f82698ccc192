"""The columns of a history as a matrix of numbers, for the boosted rival."""

from __future__ import annotations

import numpy as np
import polars as pl

from sagellm_lifetime.evaluation.rivals import lexical

_NUMBERS = ("prompt_length", "max_length", "turn")
_NAMES = ("client_id", "model")
_MIN_COUNT = 20
_MAX_CODES = 200
_PREFIX_BLOCKS = 3


class Columns:
    """Encoder of history columns as numbers, categories (names, prefix blocks) and words.

    Categories seen fewer than 20 times in training, and new ones, count as missing.
    """

    def fit(self, train: pl.DataFrame) -> None:
        """Choose the columns and their categories."""
        self._numbers = [name for name in _NUMBERS if _present(train, name)]
        self._codes = {name: _categories(column) for name, column in _categorical(train).items()}
        self._prefix = _present(train, "prefix_hashes")
        self._text = _present(train, "prompt_text")
        self._words = lexical.vocabulary(train["prompt_text"]) if self._text else []
        self.categorical = list(range(len(self._codes)))

    def matrix(self, frame: pl.DataFrame) -> np.ndarray:
        """Return features per row, float32, shape ``(n, F)``; categories first, NaN for missing."""
        columns = _categorical(frame)
        empty = pl.Series([None] * len(frame), dtype=pl.String)
        parts = [_encode(columns.get(name, empty), codes) for name, codes in self._codes.items()]
        parts += [_numbers(frame, name) for name in self._numbers]
        if self._prefix:
            blocks = _column(frame, "prefix_hashes", pl.List(pl.Int64))
            parts.append(blocks.list.len().cast(pl.Float64).to_numpy())
        table = np.column_stack(parts) if parts else np.zeros((len(frame), 0))
        if self._text:
            text = _column(frame, "prompt_text", pl.String)
            words = lexical.occurrences(text, self._words)
            table = np.column_stack([table, lexical.counts(text), words])
        return table.astype(np.float32)


def _present(frame: pl.DataFrame, name: str) -> bool:
    return name in frame.columns and frame[name].null_count() < len(frame)


def _categorical(frame: pl.DataFrame) -> dict[str, pl.Series]:
    columns = {name: frame[name].cast(pl.String) for name in _NAMES if _present(frame, name)}
    if _present(frame, "prefix_hashes"):
        for block in range(_PREFIX_BLOCKS):
            hashes = frame["prefix_hashes"].list.get(block, null_on_oob=True)
            columns[f"prefix_{block}"] = hashes.cast(pl.String)
    if _present(frame, "prompt_text"):
        columns["first_word"] = lexical.first_word(frame["prompt_text"])
    return columns


def _categories(column: pl.Series) -> dict[str, int]:
    counted = column.drop_nulls().value_counts(name="n").filter(pl.col("n") >= _MIN_COUNT)
    ordered = counted.sort(["n", column.name], descending=[True, False]).head(_MAX_CODES)
    return {name: code for code, name in enumerate(ordered[column.name].to_list())}


def _encode(column: pl.Series, codes: dict[str, int]) -> np.ndarray:
    return np.array([codes.get(name, np.nan) for name in column.to_list()], dtype=np.float64)


def _numbers(frame: pl.DataFrame, name: str) -> np.ndarray:
    return _column(frame, name, pl.Float64).cast(pl.Float64).to_numpy()


def _column(frame: pl.DataFrame, name: str, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    """Return the column, or one of nulls."""
    if name in frame.columns:
        return frame[name]
    return pl.Series(name, [None] * len(frame), dtype=dtype)
