"""Convert tables of other libraries (pandas, pyarrow, any with Arrow) to polars frames.

None of them is imported here: a table is recognised by its Arrow interface.
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from sagellm_lifetime.core.errors import HistoryError, shown
from sagellm_lifetime.history.schema import HISTORY_SCHEMA

_FAILURES: Final = (
    ImportError,  # pandas hands its tables over through pyarrow, which may be missing
    TypeError,
    ValueError,
    OverflowError,
    NotImplementedError,  # a column type that polars cannot take over
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)


def as_frame(source: Any) -> pl.DataFrame:
    """Return a table of another library as a polars frame; NaN that means "missing" is null.

    Raises:
        HistoryError: it is no table, or a column mixes types.
    """
    is_pandas = hasattr(source, "columns") and hasattr(source, "notna")
    has_arrow = hasattr(source, "__arrow_c_stream__")
    if not has_arrow and not is_pandas:
        raise HistoryError(
            "a history is a path, a polars frame or a table that speaks Arrow, "
            f"such as a pandas DataFrame, not {shown(source)}"
        )
    try:
        return pl.DataFrame(source) if has_arrow else _of_pandas(source)
    except _FAILURES as error:
        if is_pandas:
            return _of_pandas(source)
        raise HistoryError(f"the table cannot be read ({type(error).__name__})") from error


def _of_pandas(table: Any) -> pl.DataFrame:
    """Return a pandas DataFrame, converted by column: slower than Arrow, but with clear errors."""
    columns: dict[str, pl.Series] = {}
    for place, label in enumerate(table.columns):
        name = str(label)
        if name in columns:
            raise HistoryError(f"history: the column {shown(name)} appears twice")
        column = table.iloc[:, place]
        try:
            values = column.astype(object).where(column.notna(), None).tolist()
            columns[name] = pl.Series(name, values)
        except _FAILURES as error:
            if name in HISTORY_SCHEMA:
                raise HistoryError(
                    f"history: the column {name!r} has values of several types"
                ) from error
            columns[name] = pl.Series(
                name, [None] * len(table)
            )  # not a history column, so not needed
    return pl.DataFrame(list(columns.values()))
