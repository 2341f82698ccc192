"""Mooncake (Kimi) traces: JSONL with ``timestamp`` (milliseconds), lengths and ``hash_ids``.

``hash_ids`` are the ids of the prompt's 512-token blocks; equal leading ids share KV cache. Other
traces have the same four columns in another unit, or more columns with another meaning: times in
seconds are found by the rate they would mean, turns with a ``delay`` are read as a multi-turn
trace, and a Bailian trace is refused with the name of its own format.
"""

from __future__ import annotations

from dataclasses import replace

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history.files import find_files
from sagellm_lifetime.history.formats.bailian import Bailian
from sagellm_lifetime.history.formats.multi_turn import MultiTurn
from sagellm_lifetime.history.read import History, OnBadRows, read_as
from sagellm_lifetime.history.records import sample
from sagellm_lifetime.history.schema import HISTORY_SCHEMA, Layout
from sagellm_lifetime.history.times import NAMES, SCALES, plausible_unit

_LAYOUT = Layout(
    {
        "arrival_time": "timestamp",
        "prompt_length": "input_length",
        "actual_length": "output_length",
        "prefix_hashes": "hash_ids",
    },
    required=("arrival_time", "prompt_length", "actual_length"),
    foreign=True,
)


def read(
    source: str, *, keep_content: bool, on_bad_rows: OnBadRows, time_unit: str | None = None
) -> History:
    """Return the requests of a trace; ``time_unit`` (``"s"``, ``"ms"`` …) where it is known."""
    del keep_content  # the trace has none
    beginning = sample(find_files(source)[0])
    if MultiTurn.recognises(beginning):
        return read_as(source, {}, HISTORY_SCHEMA, on_bad_rows=on_bad_rows, form=MultiTurn.name)
    if Bailian.recognises(beginning):
        raise HistoryError(f"{source}: {Bailian.title}, no Mooncake trace: --from {Bailian.name}")
    history = read_as(source, {"jsonl": _LAYOUT}, _LAYOUT.names, on_bad_rows=on_bad_rows)
    moments = history.frame["arrival_time"]  # as they stand in the file
    unit = time_unit or plausible_unit(moments, "ms")
    if unit is None:
        raise HistoryError(
            f"{source}: timestamps may be milliseconds (as Mooncake's are) or seconds: say which "
            "with --time-unit ms or --time-unit s"
        )
    why = "" if time_unit else " (by the rate of requests)"
    arrival = (moments / SCALES[unit]).alias("arrival_time")
    notes = [*history.notes, f"timestamp: read as {NAMES[unit]}{why}"]
    return replace(history, frame=history.frame.with_columns(arrival), notes=notes)
