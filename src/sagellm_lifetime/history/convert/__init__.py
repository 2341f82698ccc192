"""Convert traces and logs of other programs to history files.

The public traces have a module each here. Logs of running programs are read by ``--data-path``
directly (``history.formats``), and can be converted as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from sagellm_lifetime.core.errors import HistoryError, UnknownNameError
from sagellm_lifetime.history.convert import azure, burstgpt, mooncake, servegen, sharegpt
from sagellm_lifetime.history.databases import check_source, is_database
from sagellm_lifetime.history.files import find_files
from sagellm_lifetime.history.formats import FORMATS as LOGS
from sagellm_lifetime.history.formats import all_formats, recognise
from sagellm_lifetime.history.formats.mapped import MappedLog
from sagellm_lifetime.history.mapping import ColumnMap
from sagellm_lifetime.history.names import mapping as known_names
from sagellm_lifetime.history.names import public_trace
from sagellm_lifetime.history.read import History, OnBadRows, read_as, read_stated
from sagellm_lifetime.history.records import sample
from sagellm_lifetime.history.schema import HISTORY_SCHEMA
from sagellm_lifetime.history.times import SCALES
from sagellm_lifetime.history.write import check_target, write_history

TRACES: Final[dict[str, Callable[..., History]]] = {
    "azure": azure.read,
    "burstgpt": burstgpt.read,
    "mooncake": mooncake.read,
    "servegen": servegen.read,
    "sharegpt": sharegpt.read,
}
"""Public trace -> its reader."""
FORMATS: Final = (*TRACES, *LOGS)
"""Every name of this package that ``convert`` takes; other packages may have more."""
_CONTENT: Final = ("prompt_text", "output_text", "prompt_token_ids", "output_token_ids")


def convert(
    fmt: str | None,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    keep_content: bool = False,
    on_bad_rows: OnBadRows = "refuse",
    time_unit: str | None = None,
    mapping: Mapping[str, str] | ColumnMap | None = None,
    query: str | None = None,
) -> History:
    """Convert a trace or a log to a history file.

    Args:
        fmt: one of ``FORMATS``, or of another package; None to recognise it by its content.
        source: the trace: a file, or (all but ``sharegpt``) a glob or a folder.
        target: ``.csv``, ``.jsonl`` or ``.parquet``; written whole or not at all.
        keep_content: keep the texts of prompts and answers, where the trace has them.
        on_bad_rows: ``"refuse"`` or ``"skip"``.
        time_unit: ``"s"``, ``"ms"``, ``"us"`` or ``"ns"``, for a trace that does not state its own.
        mapping: where history columns stand in a log of any form, as :func:`read_history` takes it.
        query: a SELECT, where the source is the address of a database.

    Returns:
        The rows written, with the rows skipped, columns not read and assumptions made.

    Raises:
        HistoryError: the source cannot be read or the target not written.
        UnknownNameError: no such format, unit or way with bad rows.

    Only what a trace holds is written: no cap and no finish reason is invented, ``finish_reason``
    is null where a row states none.
    """
    names = (*TRACES, *all_formats())
    if fmt is not None and fmt not in names:
        raise UnknownNameError("trace format", fmt, list(names))
    if on_bad_rows not in ("refuse", "skip"):
        raise UnknownNameError("way with bad rows", on_bad_rows, ["refuse", "skip"])
    if time_unit is not None and time_unit not in SCALES:
        raise UnknownNameError("unit of time", time_unit, list(SCALES))
    check_target(target)
    path = os.fspath(source)
    check_source(path, query)
    if is_database(path):
        if fmt is not None or time_unit is not None:
            raise HistoryError("a table is known by its columns: leave --from and --time-unit out")
        history = read_stated(path, on_bad_rows=on_bad_rows, mapping=mapping, query=query)
        return _written(history, target, keep_content)
    if mapping is not None:
        history = _read_mapped(fmt, path, on_bad_rows, time_unit, ColumnMap.of(mapping))
        return _written(history, target, keep_content)
    name = fmt or _recognised(path)
    if time_unit is not None and name != "mooncake":
        raise HistoryError(f"{path}: --time-unit is for mooncake; {name} says its unit itself")
    history = _read(name, path, keep_content, on_bad_rows, time_unit)
    return _written(history, target, keep_content)


def _read_mapped(
    fmt: str | None, path: str, on_bad_rows: OnBadRows, time_unit: str | None, columns: ColumnMap
) -> History:
    if fmt in TRACES:
        raise HistoryError(f"{path}: the columns of {fmt} are known: leave --map or --from out")
    if time_unit is not None:
        raise HistoryError(f"{path}: with --map, say the unit of a time as arrival_time=PATH@ms")
    if fmt is None:
        return read_stated(path, on_bad_rows=on_bad_rows, mapping=columns)
    mapped = MappedLog(columns)
    return read_as(path, {}, HISTORY_SCHEMA, on_bad_rows=on_bad_rows, form=fmt, mapped=mapped)


def _written(history: History, target: str | os.PathLike[str], keep_content: bool) -> History:
    columns = [c for c in HISTORY_SCHEMA if keep_content or c not in _CONTENT]
    history = replace(
        history, frame=history.frame.select(c for c in columns if c in history.frame.columns)
    )
    write_history(history.frame, target)
    return history


def _recognised(source: str) -> str:
    """Return the name of a log's format by its content, ``history`` if it has no other format."""
    path = find_files(source)[0]
    beginning = sample(path)
    form = recognise(beginning)
    name = public_trace(beginning.keys) or (form.name if form is not None else None)
    # An unknown log is read as a history too, whose reader has the better message.
    return "history" if name is None or beginning.has("actual_length") else name


def _read(
    name: str, source: str, keep_content: bool, on_bad_rows: OnBadRows, time_unit: str | None
) -> History:
    if name == "history":
        return read_stated(source, on_bad_rows=on_bad_rows)
    if name not in TRACES:
        return read_as(source, {}, HISTORY_SCHEMA, on_bad_rows=on_bad_rows, form=name)
    options = {} if time_unit is None else {"time_unit": time_unit}
    read = TRACES[name]
    history = read(source, keep_content=keep_content, on_bad_rows=on_bad_rows, **options)
    if not known_names(history.ignored):
        return history
    beginning = sample(find_files(source)[0])
    form = recognise(beginning)
    if form is None or public_trace(beginning.keys) == name:
        return history
    note = f"no {name} trace has all of these columns: without --from it is read as {form.title}"
    return replace(history, notes=[*history.notes, note])
