"""Readings of the served model's hidden state, as in histories and requests.

A reading is one vector of the residual stream at about two thirds of the depth of the model: of the
last prompt token after prefill, later the mean over the last 16 inputs. Three readings are told
apart, by the tokens generated so far.
"""

from __future__ import annotations

from typing import Final

import numpy as np

READ_AT: Final = (0, 32, 64)
"""Ages of the three readings, tokens. The first comes with the first token, after prefill."""
COLUMNS: Final = ("hidden_state", "hidden_state_32", "hidden_state_64")
"""Columns of a history with the three readings."""
_DEPTH: Final = 2.0 / 3.0
"""Share of the layers after which the state is read: the most informative depth for lengths."""
WINDOW: Final = 16
"""Inputs over which the later readings are averaged."""


def compressed(states: np.ndarray) -> np.ndarray:
    """Return states of shape ``(..., width)`` with their few huge entries made small, float64.

    Some dimensions of a transformer are a thousand times as large as the others, and alike for all
    prompts (Sun et al. 2024, "massive activations"). They would drown the others in a projection.
    """
    states = np.asarray(states, dtype=np.float64)
    middle = states.shape[-1] // 2
    # The upper median: NumPy's own takes half as long again.
    scale = np.partition(np.abs(states), middle, axis=-1)[..., middle, None]
    result: np.ndarray = np.arcsinh(states / np.maximum(scale, 1e-12))
    return result


def layer_of(layers: int) -> int:
    """Return after how many of a model's layers its state is read.

    Example:
        >>> layer_of(30)
        20
    """
    return max(round(layers * _DEPTH), 1)
