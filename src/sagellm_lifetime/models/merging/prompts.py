"""Merged prompt scores (:mod:`~sagellm_lifetime.models.prompt_score`).

Each regression is a normal posterior with a diagonal precision, so two that learned from different
completions are joined by adding their information (Tresp 2000, "A Bayesian committee machine"):

    precision = precision_a + precision_b - ridge
    precision * weights = precision_a * weights_a + precision_b * weights_b

the ridge being the prior that both began with. Counts and sums of lengths are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.checked import MOST
from sagellm_lifetime.core.merging import heaviest, sums_by_key
from sagellm_lifetime.features.prompt_terms import TermKind
from sagellm_lifetime.models.prompt_score import LARGEST, MOST_CLIENTS, RIDGE, PromptScore


def merge_prompts(prompts: PromptScore, others: Sequence[PromptScore]) -> None:
    """Add what other prompt scores have learned to one, which is changed in place."""
    prompts.restore(merged_prompts([each.state() for each in (prompts, *others)]))


def merged_prompts(states: Sequence[Arrays]) -> Arrays:
    """Return the state of a prompt score with what several have learned.

    Args:
        states: states of at least one :class:`~sagellm_lifetime.models.prompt_score.PromptScore`.
    """
    keys, sums = sums_by_key([(each["mean_keys"], each["mean_sums"][1:]) for each in states])
    kept = heaviest(sums[:, 0], keys, MOST_CLIENTS)
    total = np.sum([each["mean_sums"][:1] for each in states], axis=0)
    merged = {"mean_keys": keys[kept], "mean_sums": np.concatenate([total, sums[kept]])}
    for kind in TermKind:
        prefix = f"{kind.value}."
        regressions = [part(state, prefix) for state in states if f"{prefix}weights" in state]
        if regressions:
            joined = _joined(regressions)
            merged |= {f"{prefix}{name}": array for name, array in joined.items()}
    return merged


def _joined(states: Sequence[Arrays]) -> Arrays:
    """Return the regression that has learned what several have."""
    if len(states) == 1:
        return dict(states[0])
    precisions = [state["precision"].astype(np.float64) for state in states]
    weights = [state["weights"].astype(np.float64) for state in states]
    precision = np.sum(precisions, axis=0) - (len(states) - 1) * RIDGE
    information = np.sum([a * b for a, b in zip(precisions, weights, strict=True)], axis=0)
    learned = np.sum([state["learned"] for state in states], axis=0)
    documents = np.sum([state["documents"] for state in states], axis=0, dtype=np.float64)
    return {
        "weights": np.clip(information / precision, -LARGEST, LARGEST).astype(np.float32),
        # Rounding may lift the count of a term in every prompt above that of the prompts.
        "documents": np.minimum(documents, learned).astype(np.float32),
        "precision": np.maximum(precision, RIDGE).astype(np.float32),
        "learned": np.minimum(learned, MOST),
    }
