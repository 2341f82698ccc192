"""The fields of ``stats.json``, which an engine core publishes, and their validation.

Another process than the writer reads the file, which may be damaged. Readers rely on the types
below, so that a damaged file gives one clear line and never an exception in a route of the server.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NoReturn

from sagellm_lifetime.vllm.settings import MODES

COUNTS: Final = (
    "total_predictions",
    "completions",
    "censored",
    "scored",
    "capped",
    "running",
    "unpredicted",
    "beam_steps",
    "lessons",
    "lessons_taken",
    "lessons_on_the_way",
    "lessons_dropped",
    "lessons_lost",
    "learner_restarts",
    "learner_swaps",
    "weights_accepted",
    "weights_refused",
    "fleet_replicas",
    "fleet_lessons",
    "fleet_published",
    "fleet_received",
    "fleet_refused",
    "fleet_failures",
    "steps",
    "step_seconds",
    "overhead_seconds",
    "recorded",
    "record_lost",
    "record_waiting",
    "record_replaced",
)
"""Numbers that add up over engine cores; one that is missing or null is unknown."""
COMPARED: Final = ("admission", "preemption")
"""Kinds of decisions that shadow mode compares."""
DONE: Final = ("act", "shadow")
"""Modes whose decisions are counted (:mod:`~sagellm_lifetime.vllm.decision_counts`)."""
LARGEST: Final = ("longest_overtaken_seconds",)
"""Of these counts, those of which the largest of all engine cores counts, and not the sum."""
OUTLOOK_NUMBERS: Final = ("time", "seconds_per_step", "retry_after_s")
"""Numbers of an outlook."""
OUTLOOK_PARTS: Final = (
    *("running_tokens", "waiting_tokens", "peak_blocks"),
    *("done_s", "place_within"),
)
"""Parts of an outlook, each with some numbers by name."""
DRIFT: Final = ("changes", "returns", "trials")
"""Counts of the drift that add up over engine cores."""
DRIFT_OF_MODEL: Final = ("generation", "completions", "generations", "in_trial")
"""Numbers of the drift of one model."""
MOST_BYTES: Final = 1 << 20
_LARGEST: Final = 1e18
_DEPTH: Final = 4
"""Levels of objects and lists that an unknown field may have."""


def parse_stats(data: bytes, rank: int) -> dict[str, Any]:
    """Return the statistics in ``data`` if every field has its type.

    Fields that are not known here are kept as they are.

    Args:
        data: content of a ``stats.json``.
        rank: of the engine core that owns the folder.

    Raises:
        ValueError: if they are no statistics of this engine core; the message names the field.
    """
    try:
        stats = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(stats, dict):
        raise ValueError("not a JSON object")
    if not _is_shallow(stats, _DEPTH):
        raise ValueError("nested too deeply, or text that is not Unicode")
    for name, fits in _FIELDS.items():
        if name not in stats:
            raise ValueError(f"{name} is missing")
        if not fits(stats[name]):
            raise ValueError(f"{name} is not what it should be")
    for name in COUNTS:
        if not _is_number(stats.get(name)):
            raise ValueError(f"{name} is not a number")
    for name, (fits, kind) in _OPTIONAL.items():
        if not fits(stats.setdefault(name, kind())):
            raise ValueError(f"{name} is not what it should be")
    if stats["engine"] != rank:
        raise ValueError("of another engine core")
    return stats


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _is_shallow(value: Any, depth: int) -> bool:
    """Return True for JSON of at most ``depth`` levels whose texts can all be written as UTF-8."""
    if isinstance(value, str):
        return _is_text(value)
    if isinstance(value, dict):
        items = value.values()
        return depth > 0 and all(map(_is_text, value)) and _are_shallow(items, depth)
    return not isinstance(value, list) or (depth > 0 and _are_shallow(value, depth))


def _are_shallow(values: Any, depth: int) -> bool:
    return all(_is_shallow(value, depth - 1) for value in values)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_number(value: Any) -> bool:
    if value is None:
        return True
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -_LARGEST <= value <= _LARGEST


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_breaker(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("state"), str)
        and _is_text_or_none(value.get("reason"))
        and _are_counts(value.get("faults"))
    )


def _are_decisions(value: Any) -> bool:
    """Return True for counts of shadow mode, and of what each mode did.

    They are ``{"admission": [made, differing], "preemption": […], "act": {…}, "shadow": {…}}``; the
    last two may be missing.
    """
    return (
        isinstance(value, dict)
        and set(COMPARED) <= value.keys() <= {*COMPARED, *DONE}
        and all(
            isinstance(value[kind], list)
            and len(value[kind]) == 2
            and all(number is not None and _is_number(number) for number in value[kind])
            for kind in COMPARED
        )
        and all(mode not in value or _are_known(value[mode]) for mode in DONE)
    )


def _is_drift(value: Any) -> bool:
    """Return True for the answer of ``Predictor.drift``, which may be empty."""
    if value == {}:
        return True
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(key), int) and _is_number(value[key]) for key in DRIFT)
        and isinstance(value.get("models"), dict)
        and all(
            _are_counts(model) and all(model.get(key) is not None for key in DRIFT_OF_MODEL)
            for model in value["models"].values()
        )
    )


def _is_outlook(value: Any) -> bool:
    """Return True for the figures of an outlook, or None."""
    if value is None:
        return True
    return (
        isinstance(value, dict)
        and all(_is_known(value.get(name)) for name in OUTLOOK_NUMBERS)
        and all(_are_known(value.get(name)) for name in OUTLOOK_PARTS)
        and all(value[name].keys() == {"expected", "p90"} for name in OUTLOOK_PARTS[:3])
    )


def _are_known(value: Any) -> bool:
    """Return True for one or more numbers by name."""
    return isinstance(value, dict) and bool(value) and all(map(_is_known, value.values()))


def _is_known(value: Any) -> bool:
    return value is not None and _is_number(value)


def _is_mode(value: Any) -> bool:
    return isinstance(value, str) and value in MODES


def _is(cls: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, cls)


_FIELDS: Final[dict[str, Callable[[Any], bool]]] = {
    "engine": _is_rank,
    "predictor": _is_text_or_none,
    "policy": _is(str),
    "learning": _is(bool),
    "mode": _is_mode,
    "cannot_act": _is(str),
    "finish_reasons": _are_counts,
    "sums": _are_counts,
    "decisions": _are_decisions,
    "breaker": _is_breaker,
    "learner_running": _is(bool),
    "learner_trouble": _is_text_or_none,
}
_OPTIONAL: Final[dict[str, tuple[Callable[[Any], bool], Callable[[], Any]]]] = {
    "drift": (_is_drift, dict),
    "outlook": (_is_outlook, lambda: None),
    "this_run": (_are_counts, dict),
    "model_name": (_is(str), str),
    "live": (_is(dict), dict),
    "fleet_trouble": (_is_text_or_none, lambda: None),
}
"""Fields that earlier versions do not write, with what makes their empty value."""
