"""The merged statistics of several engine cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sagellm_lifetime.policies.outlook import merged as merged_outlook
from sagellm_lifetime.vllm.published import COMPARED, COUNTS, DONE, DRIFT, LARGEST

STALE_S: Final = 10.0
"""Age of statistics from which their engine core counts as stopped, seconds."""


def merge(engines: Sequence[dict[str, Any]], unreadable: Sequence[str] = ()) -> dict[str, Any]:
    """Return the answer of ``GET /lifetime/stats``: sums and means over all, and each engine's.

    Args:
        engines: statistics of at least one engine core, checked
            (:func:`~sagellm_lifetime.vllm.published.parse_stats`).
        unreadable: errors of damaged statistics, which are in no sum.
    """
    merged: dict[str, Any] = {
        key: _common([engine.get(key) for engine in engines])
        for key in ("predictor", "policy", "mode", "learning", "cannot_act")
    }
    for key in COUNTS:
        merged[key] = sum(engine.get(key) or 0 for engine in engines)
    sums = _sum([engine.get("sums", {}) for engine in engines])
    scored = sums.get("scored")
    for key, source in (
        ("mae", "absolute_error"),
        ("mse", "squared_error"),
        ("accuracy_within_10_percent", "within_10_percent"),
        ("avg_confidence", "confidence"),
    ):
        merged[key] = _ratio(sums.get(source), scored)
    merged["seconds_per_token"] = _ratio(sums.get("seconds"), sums.get("tokens"))
    merged["drift"] = _drift([engine.get("drift") or {} for engine in engines])
    merged["finish_reasons"] = _sum([engine["finish_reasons"] for engine in engines])
    merged["faults"] = _sum([engine["breaker"]["faults"] for engine in engines])
    merged["learner_running"] = all(engine["learner_running"] for engine in engines)
    troubles = [engine["learner_trouble"] for engine in engines if engine["learner_trouble"]]
    merged["learner_trouble"] = _common(troubles) if troubles else None
    alone = [engine["fleet_trouble"] for engine in engines if engine.get("fleet_trouble")]
    merged["fleet_trouble"] = _common(alone) if alone else None
    merged["breaker"] = _common([engine["breaker"]["state"] for engine in engines])
    reasons = [e["breaker"]["reason"] for e in engines if e["breaker"]["state"] != "closed"]
    merged["breaker_reason"] = _common(reasons) if reasons else None
    merged["stale"] = sum(engine["age"] > STALE_S for engine in engines)
    decisions = [engine["decisions"] for engine in engines]
    merged["decisions"] = {
        decision: [
            sum(pair) for pair in zip(*(counts[decision] for counts in decisions), strict=True)
        ]
        for decision in COMPARED
    } | {mode: _together([counts.get(mode, {}) for counts in decisions]) for mode in DONE}
    outlooks = [engine["outlook"] for engine in engines if engine.get("outlook")]
    merged["outlook"] = merged_outlook(outlooks) if outlooks else None
    merged["unreadable"] = list(unreadable)
    merged["engines"] = list(engines)
    return merged


def _together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of the counts, and the largest of those that are a maximum."""
    counts = _sum(parts)
    for key in LARGEST:
        if key in counts:
            counts[key] = max(part.get(key, 0) for part in parts)
    return counts


def _drift(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums; and by model the numbers of the engine core with the newest generation."""
    watching = [part for part in parts if part]
    if not watching:
        return {}
    models: dict[str, Any] = {}
    for part in watching:
        for name, found in part["models"].items():
            if name not in models or found["completions"] < models[name]["completions"]:
                models[name] = found
    return {**{key: sum(part[key] for part in watching) for key in DRIFT}, "models": models}


def _common(values: Sequence[Any]) -> Any:
    """Return the common value, or the different values as one text."""
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else ", ".join(map(str, different))


def _sum(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(key for part in counts for key in part)
    return {key: sum(part.get(key) or 0 for part in counts) for key in keys}


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
