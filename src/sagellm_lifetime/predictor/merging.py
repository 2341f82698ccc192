"""Merge of what several predictors have learned from different completions.

Models, calibrations and seconds per token are merged by their counts; see ``LengthModel.merge``.
Recent traffic (conversations, last completions) is left out: it is what one server saw last. What
is merged twice would count twice, so states that share completions are refused, by their lineage
(:mod:`~sagellm_lifetime.predictor.lineage`); :mod:`~sagellm_lifetime.predictor.distinct` takes them
apart where it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sagellm_lifetime.core.errors import MergeError
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.lineage import LINEAGE, shared

RUN_OPTIONS: Final = ("seed", "capacity", "expire_after", "online", "epochs")
"""Options that may differ between predictors of one state, which does not depend on them."""

SECRETS_DIFFER: Final = (
    "hashed names with another secret, so its keys mean other names: train all with one --seed, or "
    "start all from one checkpoint"
)


def mismatch(learned: Predictor, mine: Predictor) -> str:
    """Return the reason why ``mine`` cannot take over the state of ``learned``, or ``""``."""
    if learned.name != mine.name:
        return f"holds a {learned.name!r} predictor, not {mine.name!r}"
    learned_options = learned.options
    for option, value in mine.options.items():
        learned_value = learned_options.get(option)
        if option not in RUN_OPTIONS and learned_value != value:
            return f"learned with {option}={learned_value!r}, not {value!r}"
    return ""


def reason_against(other: Predictor, first: Predictor) -> str:
    """Return the reason why two states cannot be merged, or ``""``."""
    reason = mismatch(other, first)
    if not reason and other.keys != first.keys:
        return SECRETS_DIFFER
    return reason


def merge_predictors(
    predictors: Sequence[Predictor], names: Sequence[str] | None = None
) -> Predictor:
    """Return a new predictor with what several have learned, each from other completions.

    The result does not depend on their order, but for rounding.

    Args:
        predictors: at least one; they stay as they are.
        names: what each is called in an error; their number by default.

    Raises:
        MergeError: they are of different predictors, options or secrets, or of a model that cannot
            be merged; or two of them share completions.

    Example:
        >>> from sagellm_lifetime import PredictionRequest, create_predictor, merge_predictors
        >>> replicas = [create_predictor("survival") for _ in range(2)]
        >>> for i, replica in enumerate(replicas):
        ...     result = replica.predict(PredictionRequest(1, [], 0, 512))
        ...     replica.update(1, 80 + i, 1.6)
        >>> merge_predictors(replicas).lessons
        2
    """
    if not predictors:
        raise MergeError("there is nothing to merge: give one predictor or more")
    first = predictors[0]
    for place, other in enumerate(predictors):
        reason = reason_against(other, first)
        if reason:
            name = _ordinal(place) if names is None else names[place]
            raise MergeError(f"{name}: {reason}")
        for earlier in range(place):
            both = shared(other.lineage, predictors[earlier].lineage)
            if both:
                one, two = (
                    _ordinal(each) if names is None else names[each] for each in (earlier, place)
                )
                raise MergeError(
                    f"{one} and {two} share {both:,} completions, which would count twice"
                )
    merged = first.clone()
    merged.merge(*predictors[1:])
    merged.summary = {
        **merged_summary([each.summary for each in predictors]),
        LINEAGE: merged.lineage,
    }
    return merged


def merged_summary(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what is known of the histories behind a merged state: rows, columns, how many parts.

    Quantiles of lengths are left out, as they cannot be joined.

    >>> merged_summary([{"rows": 2, "columns": ["a"]}, {"rows": 3, "columns": ["a", "b"]}, {}])
    {'rows': 5, 'columns': ['a', 'b'], 'merged': 3}
    """
    merged: dict[str, Any] = {}
    for key in ("rows", "censored"):
        counts = [summary[key] for summary in summaries if isinstance(summary.get(key), int)]
        if counts:
            merged[key] = sum(counts)
    columns = [
        column
        for summary in summaries
        if isinstance(summary.get("columns"), list)
        for column in summary["columns"]
    ]
    if columns:
        merged["columns"] = list(dict.fromkeys(columns))
    merged["merged"] = len(summaries)
    return merged


_ORDINALS: Final = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def _ordinal(place: int) -> str:
    return f"{_ORDINALS[place]} state" if place < len(_ORDINALS) else f"state {place + 1}"
