"""Other programs' names for the columns of a history, and the columns of public traces."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from sagellm_lifetime.history.schema import HISTORY_SCHEMA

ALIASES: Final = {
    "actual_length": (
        "output_tokens completion_tokens output_length output_len generated_tokens "
        "num_output_tokens num_generated_tokens num_completion_tokens output_token_count "
        "completion_length response_tokens tokens_out generation_tokens candidates_token_count"
    ),
    "prompt_length": (
        "input_tokens prompt_tokens input_length input_len prompt_len num_prompt_tokens "
        "num_input_tokens input_token_count prompt_token_count context_tokens request_tokens "
        "tokens_in prompt_length"
    ),
    "max_length": ("max_tokens max_output_tokens max_completion_tokens max_new_tokens max_length"),
    "finish_reason": "stop_reason finish_reason",
    "arrival_time": (
        "timestamp arrival_time arrival arrived_at start_time started_at start request_time "
        "created created_at ts datetime"
    ),
    "actual_time": (
        "latency duration request_latency e2e_latency total_latency response_time elapsed "
        "elapsed_time e2e total_time actual_time"
    ),
    "end": "end_time ended_at finished_at completed_at end",
    "model": "model model_name model_id",
    "request_id": "request_id req_id id",
    "client_id": "client_id user user_id end_user end_user_id client",
    "session_id": "session_id conversation_id thread_id chat_id",
    "turn": "turn turn_index",
    "temperature": "temperature",
    "prefix_hashes": "hash_ids prefix_hashes",
    "reasoning": (
        "reasoning_tokens thinking_tokens num_reasoning_tokens reasoning_output_tokens "
        "thoughts_token_count"
    ),
    "total": "total_tokens num_total_tokens total_token_count",
}
"""History column (or what one is made of) -> names of it, in snake case and without a unit."""
_TARGETS: Final = {name: target for target, names in ALIASES.items() for name in names.split()}
_UNITS: Final = {
    **dict.fromkeys(("ms", "msec", "milli", "millis", "milliseconds"), "ms"),
    **dict.fromkeys(("s", "sec", "secs", "seconds"), "s"),
    **dict.fromkeys(("us", "micro", "micros", "microseconds"), "us"),
    **dict.fromkeys(("ns", "nano", "nanos", "nanoseconds"), "ns"),
}


def _snake(name: str) -> str:
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")


def counts_generated(name: str) -> bool:
    """Return True for a name of the generated tokens: a history's own in any case, or an alias."""
    target = target_of(name)
    return _snake(name) == "actual_length" or (target is not None and target[0] == "actual_length")


def target_of(name: str) -> tuple[str, str | None] | None:
    """Return the history column that a foreign name stands for, and the unit if it has one."""
    plain = _snake(name)
    if plain in _TARGETS:
        return _TARGETS[plain], None
    stem, _, unit = plain.rpartition("_")
    target = _TARGETS.get(stem)
    if target in ("arrival_time", "actual_time", "end") and unit in _UNITS:
        return target, _UNITS[unit]
    return None


def unit_of_name(name: str) -> str | None:
    """Return the unit of time that a name ends with, None if it ends with none.

    >>> unit_of_name("latency_ms"), unit_of_name("duration")
    ('ms', None)
    """
    return _UNITS.get(_snake(name).rpartition("_")[2])


def mapping(names: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """Return foreign column -> (history column, unit) for the names that stand for one."""
    return {name: target for name in names if (target := target_of(name)) is not None}


_AZURE: Final = frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"})
_BURSTGPT: Final = frozenset({"Timestamp", "Model", "Request tokens", "Response tokens"})
_BURSTGPT_MORE: Final = frozenset({"Total tokens", "Log Type", "Session ID", "Elapsed time"})
_MOONCAKE: Final = frozenset({"timestamp", "input_length", "output_length", "hash_ids"})
_SERVEGEN: Final = frozenset({"timestamp", "output_tokens"})
_SERVEGEN_MORE: Final = frozenset(
    {"request_id", "client_id", "input_tokens", "reason_ratio"}
    | {"text_tokens", "image_tokens", "audio_tokens", "video_tokens"}
)
_TRACES: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    "azure": (_AZURE, frozenset({"NumImages"})),
    "burstgpt": (_BURSTGPT, _BURSTGPT_MORE),
    "mooncake": (_MOONCAKE, frozenset()),
    "servegen": (_SERVEGEN, _SERVEGEN_MORE),
    "sharegpt": (frozenset({"conversations"}), frozenset({"id", "model", "system", "tools"})),
}
"""Public trace -> columns that it always has, and those that it may have; it has no others."""
_SERVEGEN_OWN: Final = frozenset({"reason_ratio", "text_tokens"})
"""Columns that only ServeGen writes; without one of them, the others may be any log's."""


def public_trace(names: Iterable[str]) -> str | None:
    """Return the public trace with these columns, None if there is none."""
    columns = {name for name in names if name}
    for trace, (always, may) in _TRACES.items():
        if always <= columns <= always | may and (trace != "servegen" or columns & _SERVEGEN_OWN):
            return trace
    return None


_NAME: Final = re.compile(r"[A-Za-z_][\w.-]{0,31}")
"""Form of a column's name and hardly of a cell: no blanks, no number."""
_NAMED: Final = 6


def suggestion(wanted: str, present: Iterable[str], *, foreign: bool = False) -> str:
    """Return what to do about a missing column, as the end of a one-line message.

    The message names only columns that are known, that look like the wanted one, or that all look
    like names:
    where a header is missing altogether, the "columns" are the first row, and a message must not
    repeat a user's prompt.
    """
    names = [str(name) for name in present]
    if not foreign:
        trace = public_trace(names)
        if trace is not None:
            return f"this looks like a {trace} trace: convert it with --from {trace} first"
        renamed = _renamed(wanted, names)
        if renamed is not None:
            return renamed
        same = next((name for name in names if _snake(name) == wanted), None)
        if same is not None:
            return f"rename {same!r} to {wanted!r}"
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    needed = "every row needs it (in CSV, the first line names the columns)"
    if len(names) > 1 and all(map(_NAME.fullmatch, names)):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        needed += f"; the columns are {', '.join(names[:_NAMED])}{more}"
    if wanted == "actual_length":
        needed += (
            "; usual names, such as completion_tokens, are known; any other is read with "
            "--map actual_length=NAME (docs/how-to/read-a-log.md)"
        )
    return needed


def _renamed(wanted: str, names: Iterable[str]) -> str | None:
    """Return the advice to rename columns, if one of them may be the wanted one."""
    targets = mapping(names)
    name_of = {target: name for name, (target, _) in reversed(targets.items())}
    if wanted not in name_of:
        return None
    others = [
        f"{name!r} to {target!r}"
        + (" (in seconds)" if target in ("arrival_time", "actual_time") else "")
        for name, (target, _) in targets.items()
        if target not in (wanted, name, *_PARTS)
    ]
    more = f", and {', '.join(others)}" if others else ""
    return f"rename {name_of[wanted]!r} to {wanted!r} if it counts the generated tokens{more}"


def nearest(name: str, present: Collection[str] = ()) -> str | None:
    """Return the history column that a column is probably meant for, None if no name is similar.

    Another program's word for a column in ``present`` is not taken for a second one.

    >>> nearest("actual_lenght"), nearest("latency_ms"), nearest("colour")
    ('actual_length', 'actual_time', None)
    """
    if name in HISTORY_SCHEMA:  # a column of a public trace, which means something else
        return None
    target = target_of(name) or target_of(name.rsplit(".", 1)[-1])
    if target is not None and target[0] in HISTORY_SCHEMA:
        return None if target[0] in present else target[0]
    close = difflib.get_close_matches(name, list(HISTORY_SCHEMA), n=1, cutoff=0.85)
    return close[0] if close else None


def with_nearest(name: str, present: Collection[str] = ()) -> str:
    """Return a column's name, with the history column that it may be meant for."""
    close = nearest(name, present)
    return name if close is None else f"{name} (did you mean {close}?)"


def nested_hint(records: Iterable[Mapping[str, object]]) -> str | None:
    """Return a hint to generated tokens in nested records, as the end of a message."""
    for record in records:
        for path in _nested(record, ""):
            target = target_of(path.rsplit(".", 1)[-1])
            if target is not None and target[0] == "actual_length":
                return (
                    f"the generated tokens may be in {path!r}: read it with "
                    f"--map actual_length={path}"
                )
    return None


def _nested(record: Mapping[str, object], prefix: str) -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, Mapping) and prefix.count(".") < _DEEP:
            yield from _nested(value, f"{prefix}{key}.")
        elif prefix:
            yield f"{prefix}{key}"


_DEEP: Final = 4
_PARTS: Final = ("end", "reasoning", "total")
"""Targets that are no history columns themselves."""
