"""Headroom: what a risk process says it is, and never more than a fifth of the pool."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagellm_lifetime.policies.headroom import MOST, headroom, worth

BLOCK = 16


def highest(prompt, answer, runs, seed):
    """How far the memory of a constant number of sequences ever rises, in blocks, run by run.

    Between two ends a sequence's share of the growth is exponential with mean ``answer``; an end
    gives back its prompt and its answer, exponential with the same mean.
    """
    rng = np.random.default_rng(seed)
    growth = rng.exponential(answer, (runs, 4000))
    ended = prompt + rng.exponential(answer, (runs, 4000))
    before = np.cumsum(ended, axis=1) - ended
    return np.maximum((np.cumsum(growth, axis=1) - before).max(axis=1), 0.0) / BLOCK


@pytest.mark.parametrize(("prompt", "answer"), [(100, 150), (400, 400), (1200, 200)])
def test_it_is_outgrown_about_as_often_as_it_says(prompt, answer):
    rises = highest(prompt, answer, runs=2000, seed=1)
    room = headroom(prompt, answer, total_blocks=1_000_000, block_size=BLOCK)
    assert 0.2 < (rises > room).mean() < 0.45  # 1 / e = 0.37, sequences are not quite exponential
    assert (rises > 3 * room).mean() < 0.1


def test_long_prompts_need_no_more_than_an_answer():
    assert headroom(100_000, 320, total_blocks=10_000, block_size=BLOCK) == 20


@given(
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.integers(1, 1_000_000),
    st.sampled_from([1, 16, 32, 128]),
)
def test_it_is_a_share_of_the_pool_that_leaves_most_of_it(prompt, answer, total, block):
    room = headroom(prompt, answer, total, block)
    assert 0 <= room <= round(MOST * total)


@given(st.floats(1, 1e4), st.floats(1, 1e4), st.floats(1.0, 3.0))
def test_longer_answers_need_more_and_longer_prompts_less(prompt, answer, factor):
    room = headroom(prompt, answer, 100_000, BLOCK)
    assert headroom(prompt, factor * answer, 100_000, BLOCK) >= room
    assert headroom(factor * prompt, answer, 100_000, BLOCK) <= room


@given(st.floats(0, 10), st.floats(1.0, 3.0))
def test_the_longer_others_wait_the_more_of_it_is_left_free(wait, factor):
    assert 0.0 <= worth(wait) <= worth(factor * wait) <= 1.0
    assert worth(0.0) == 0.0
    assert worth(0.02) == 1.0
