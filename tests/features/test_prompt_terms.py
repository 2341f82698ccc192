"""Terms of prompts: hashed, distinct, bounded, and of text and token ids apart."""

import numpy as np
import pytest

from sagellm_lifetime import PredictionRequest
from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.features.prompt_terms import PromptTerms, TermKind, prompt_terms


def of_text(text: str) -> PromptTerms | None:
    found = prompt_terms(PredictionRequest(1, [], 0, None, {"prompt_text": text}))
    return found[0] if found else None


def of_tokens(ids: list[int], age: int = 0) -> PromptTerms | None:
    found = prompt_terms(PredictionRequest(1, ids, age, None))
    return found[0] if found else None


def buckets(text: str) -> set[int]:
    terms = of_text(text)
    assert terms is not None
    return set(terms.buckets.tolist())


@pytest.mark.parametrize("text", ["", " \n\t", None])
def test_nothing_to_read(text):
    assert of_text(text) is None


@pytest.mark.parametrize(
    "text",
    ["a", "?", "\ud800 broken \udfff", "word " * 5000, "汉字" * 4000, "\x00" * 50, "é" * 3000, "İ"],
)
def test_bounded_distinct_and_sorted(text):
    terms = of_text(text)
    assert terms is not None
    assert terms.kind is TermKind.WORDS
    assert terms.buckets.dtype == np.uint16
    assert 0 < len(terms.buckets) < 3200
    assert (np.diff(terms.buckets.astype(int)) > 0).all()


def test_a_word_and_a_pair():
    alone = buckets("summarise")
    assert len(alone) == 1
    pair = buckets("summarise this")
    assert len(pair) == 3
    assert alone < pair
    # The same words in another order share the words and not the pairs.
    assert len(buckets("tell me now") & buckets("now me tell")) == 3


def test_words_do_not_depend_on_their_place_or_case():
    assert buckets("story") < buckets("please write me a Story")
    assert buckets("Story.") == buckets("  story   .")


def test_languages_without_spaces():
    assert len(buckets("請寫一個故事") & buckets("一個故事")) == 4 + 3


def test_a_long_text_is_read_at_both_ends():
    found = buckets("opening " + "padding " * 2000 + " closing")
    assert buckets("opening") < found
    assert buckets("closing") < found


def test_tokens_of_the_prompt_alone():
    prompt = [5, 7, 11]
    whole = of_tokens([*prompt, 13, 17], age=2)
    alone = of_tokens(prompt)
    assert whole is not None
    assert alone is not None
    assert whole.kind is TermKind.TOKENS
    assert whole.buckets.tolist() == alone.buckets.tolist()
    assert len(alone.buckets) == 5
    assert of_tokens([13, 17], age=2) is None


def test_tokens_before_text():
    request = PredictionRequest(1, [1, 2], 0, None, {"prompt_text": "words"})
    assert [terms.kind for terms in prompt_terms(request)] == [TermKind.TOKENS, TermKind.WORDS]


def test_buckets_are_spread_evenly():
    rng = np.random.default_rng(0)
    counts = np.zeros(1 << 16)
    for _ in range(400):
        terms = of_tokens(rng.integers(0, 150_000, 200).tolist())
        assert terms is not None
        counts[terms.buckets] += 1
    # 160,000 terms in 65,536 buckets: 2.4 each on average, and a Poisson law has 14 at most.
    assert counts.max() <= 16
    assert 0.06 < np.mean(counts == 0) < 0.12


@pytest.mark.parametrize("ids", [[1.5], ["1"], [True], [2**63]])
def test_tokens_that_are_none(ids):
    with pytest.raises(RequestError, match="token_ids"):
        of_tokens(ids)
