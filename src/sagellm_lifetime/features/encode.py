"""Steps of evidence as vectors: recent completions, the admission, chunks of the generation.

All steps share one layout of ``WIDTH`` numbers, zero where a number does not apply or is unknown;
lengths enter as logarithms, so that 30 and 30,000 tokens are both of order one.
"""

from __future__ import annotations

from math import log1p
from typing import Final

import numpy as np

from sagellm_lifetime.features.context import Finished
from sagellm_lifetime.features.request import RequestFeatures

_STEP_TYPES: Final = ("session", "client", "admission", "chunk")
_SCALE: Final = 1.0 / 8.0
"""``log1p(3000) / 8`` is about one."""
SHARED: Final = 8
LEXICAL: Final = 12
STRUCTURE: Final = 14
_COMMON: Final = len(_STEP_TYPES)
_SPECIFIC: Final = _COMMON + SHARED
_LEXICAL_AT: Final = _SPECIFIC + 12
_STRUCTURE_AT: Final = _LEXICAL_AT + LEXICAL
WIDTH: Final = _STRUCTURE_AT + STRUCTURE
"""Numbers per step."""


def log_scaled(value: float) -> float:
    """Return ``log(1 + value) / 8``."""
    return log1p(value) * _SCALE


def finished_step(
    finished: Finished, features: RequestFeatures, step_type: str, recency: int
) -> np.ndarray:
    """Return the step of a recent completion, float32, shape ``(WIDTH,)``.

    Args:
        finished: the completion.
        features: the request that is predicted.
        step_type: ``"session"`` or ``"client"``, to which the completion belongs.
        recency: how many completions ago it was; 0 is the last.
    """
    x = np.zeros(WIDTH, dtype=np.float32)
    x[_STEP_TYPES.index(step_type)] = 1.0
    x[_COMMON] = log_scaled(finished.length)
    x[_COMMON + 1] = float(finished.censored)
    x[_COMMON + 2] = recency / 8.0
    if finished.prompt_length is not None:
        x[_COMMON + 3] = log_scaled(finished.prompt_length)
        x[_COMMON + 4] = 1.0
        if features.prompt_length is not None:
            grown = features.prompt_length - finished.prompt_length - finished.length
            x[_COMMON + 5] = log_scaled(max(grown, 0))
            x[_COMMON + 6] = float(grown < 0)
    x[_COMMON + 7] = float(finished.client_key == features.client_key)
    return x


def admission_step(
    features: RequestFeatures, lexical: np.ndarray | None, asked_age: int
) -> np.ndarray:
    """Return the step of an admission, float32, shape ``(WIDTH,)``.

    Args:
        features: the request.
        lexical: counts of its prompt, shape ``(LEXICAL,)``, or ``None``.
        asked_age: tokens generated when it was first predicted.
    """
    x = np.zeros(WIDTH, dtype=np.float32)
    x[2] = 1.0
    x[_COMMON] = log_scaled(asked_age)
    if features.prompt_length is not None:
        x[_COMMON + 3] = log_scaled(features.prompt_length)
        x[_COMMON + 4] = 1.0
    i = _SPECIFIC
    if features.max_length is not None:
        x[i] = log_scaled(features.max_length)
        x[i + 1] = 1.0
    if features.turn is not None:
        x[i + 2] = log_scaled(max(features.turn, 0)) * 2.0
        x[i + 3] = 1.0
    if features.temperature is not None:
        x[i + 4] = features.temperature
        x[i + 5] = 1.0
    for j, flag in enumerate((features.has_tools, features.json_format, features.thinking)):
        if flag is not None:
            x[i + 6 + j] = 1.0 if flag else -1.0
    x[i + 9] = float(features.session_key != 0)
    if features.prompt_score is not None:
        x[i + 10] = features.prompt_score * _SCALE
        x[i + 11] = 1.0
    if lexical is not None:
        x[_LEXICAL_AT : _LEXICAL_AT + LEXICAL] = lexical
    return x


def chunk_step(age: int, size: int, structure: np.ndarray) -> np.ndarray:
    """Return the step of a chunk of ``size`` generated tokens that ends at ``age``.

    ``structure`` has shape ``(STRUCTURE,)``; the step is float32 of shape ``(WIDTH,)``.
    """
    x = np.zeros(WIDTH, dtype=np.float32)
    x[3] = 1.0
    x[_COMMON] = log_scaled(age)
    x[_COMMON + 1] = log_scaled(size)
    x[_STRUCTURE_AT : _STRUCTURE_AT + STRUCTURE] = structure
    return x
