"""Counts and buckets of text and tokens: bounded, stable, and nothing of the text itself."""

import numpy as np
import pytest

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.features.encode import LEXICAL, STRUCTURE
from sagellm_lifetime.features.text import (
    BUCKETS,
    MOST_WORDS,
    lexical,
    text_structure,
    token_buckets,
    token_structure,
    word_buckets,
)

TEXTS = [
    "",
    " ",
    "Why?",
    "\ud800 broken \udfff",
    "# Title\n\n1. one\n2. two\n- dot\n```python\nx = 1\n```\nOverall, fine.",
    "word " * 5000,
    "\x00" * 100,
    "汉字" * 600,
    '"' * 3000,
]


@pytest.mark.parametrize("text", TEXTS)
def test_bounded_and_finite(text):
    words = word_buckets(text)
    assert len(words) <= MOST_WORDS
    assert ((words >= 0) & (words < BUCKETS)).all()
    for numbers, size in ((lexical(text), LEXICAL), (text_structure(text), STRUCTURE)):
        assert numbers.shape == (size,)
        assert np.isfinite(numbers).all()
        assert np.abs(numbers).max() < 4.0


def test_case_does_not_matter_and_words_do():
    assert word_buckets("Hello World").tolist() == word_buckets("hello world").tolist()
    assert word_buckets("hello world").tolist() != word_buckets("hello there").tolist()


def test_a_long_text_keeps_its_ends():
    text = "start " + "middle " * 3000 + "finish"
    words = word_buckets(text).tolist()
    assert words[0] == word_buckets("start")[0]
    assert words[-1] == word_buckets("finish")[0]


def test_token_buckets():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 150_000, 5000).tolist()
    found = np.concatenate([token_buckets(ids[i : i + 100]) for i in range(0, 5000, 100)])
    assert ((found >= 0) & (found < BUCKETS)).all()
    assert np.bincount(found, minlength=BUCKETS).max() < 12
    assert len(token_buckets(ids)) == MOST_WORDS
    assert token_buckets(ids).tolist() == token_buckets(ids[:64] + ids[-64:]).tolist()
    assert (token_buckets([-5, 2**62, 0]) >= 0).all()
    assert token_buckets([np.int32(7), 8]).tolist() == token_buckets([7, 8]).tolist()
    for bad in (["a"], [None], [2**70], [10**5000], [[1], [2, 3]], [1.5], [True], ["1"], [3, 2.0]):
        with pytest.raises(RequestError, match="token_ids"):
            token_buckets(bad)


def test_structure_sees_lists_code_and_endings():
    plain, listed = text_structure("Some words."), text_structure("1. a\n2. b\n3. c\n")
    assert listed[3] > plain[3] == 0
    assert text_structure("```py\nx")[6] == 1
    assert text_structure("```py\nx\n```")[6] == 0
    assert text_structure("In conclusion, yes")[11] == 1


def test_token_structure_tells_missing_from_zero():
    buckets = np.array([1, 1, 2])
    missing, zero = token_structure(buckets, [], []), token_structure(buckets, [0.0], [0.0])
    assert missing[3] == 0 == missing[5]
    assert zero[3] == 1 == zero[5]
    assert missing[1] == pytest.approx(2 / 3)
