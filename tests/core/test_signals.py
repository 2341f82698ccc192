"""Signals of the model, from tokens to windows."""

import math

import pytest

from sagellm_lifetime.core.logit_signals import windows


def test_a_window_is_the_mean_hazard_and_the_mean_entropy():
    chances = [0.001] * 15 + [0.5] + [0.25] * 16 + [0.9] * 3
    spread = [1.0] * 8 + [3.0] * 8 + [0.0] * 19
    ends, entropy = windows([math.log(p) for p in chances], spread)
    assert ends == pytest.approx([math.log((0.015 + 0.5) / 16), math.log(0.25)], abs=1e-3)
    assert entropy == [2.0, 0.0]


def test_what_cannot_be_stays_finite():
    assert windows([-math.inf] * 16, [0.0] * 16) == ([-100.0], [0.0])
    assert windows([-1.0] * 15, [0.0] * 15) == ([], [])
    assert windows([], []) == ([], [])
