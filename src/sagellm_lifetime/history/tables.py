"""Tables of other libraries as polars frames: pandas, pyarrow, and whoever else speaks Arrow.

None of them is imported here: a table is known by the Arrow interface that it offers.
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
    NotImplementedError,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)


def as_frame(source: Any) -> pl.DataFrame:
    """Return a table of another library as a polars frame; NaN that means "missing" is null.

    Raises:
        HistoryError: it is no table, or a column holds what no column can.
    """
    is_pandas = hasattr(source, "columns") and hasattr(source, "notna")
    speaks_arrow = hasattr(source, "__arrow_c_stream__")
    if not speaks_arrow and not is_pandas:
        raise HistoryError(
            "a history is a path, a polars frame or a table that speaks Arrow, "
            f"such as a pandas DataFrame, not {shown(source)}"
        )
    try:
        return pl.DataFrame(source) if speaks_arrow else _of_pandas(source)
    except _FAILURES as error:
        if is_pandas:
            return _of_pandas(source)
        raise HistoryError(f"the table cannot be read ({type(error).__name__})") from error


def _of_pandas(table: Any) -> pl.DataFrame:
    """Return a pandas DataFrame column by column: slower than Arrow, and it names what is wrong."""
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
            columns[name] = pl.Series(name, [None] * len(table))  # of no use to anybody
    return pl.DataFrame(list(columns.values()))
