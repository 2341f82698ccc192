"""The prompt score: what it learns, out of fold, online, and what it does not tell."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import PredictionRequest, create_predictor, load_predictor
from sagellm_lifetime.core import hazard
from sagellm_lifetime.features.context import RecentCompletions
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.models.context import ObservedRequest
from sagellm_lifetime.models.prompt_score import PromptScore
from sagellm_lifetime.models.residual_life import ResidualLife

VERBS = {"list": 30, "explain": 200, "write": 700}
THINGS = [f"thing{i}" for i in range(300)]


def prompts(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Return prompts whose verb tells the length, and their lengths."""
    rng = np.random.default_rng(seed)
    verbs = rng.choice(list(VERBS), count)
    lengths = np.array([VERBS[verb] for verb in verbs]) * rng.lognormal(0.0, 0.25, count)
    return [f"please {v} {rng.choice(THINGS)}" for v in verbs], lengths.astype(np.int64) + 1


def asked(text: str, features: RequestFeatures | None = None) -> ObservedRequest:
    request = PredictionRequest(1, [], 0, None, {"prompt_text": text})
    return ObservedRequest(request, features or RequestFeatures(), 0, RecentCompletions())


def fitted(count: int = 400) -> tuple[PromptScore, list[RequestFeatures], np.ndarray]:
    texts, lengths = prompts(count)
    score = PromptScore()
    found = score.fit([asked(text) for text in texts], lengths, np.zeros(count, dtype=bool))
    return score, found, lengths


def error(score: PromptScore, count: int = 200) -> float:
    """Return the mean error of the logarithm on new prompts; the median's is about 1.1."""
    texts, lengths = prompts(count, seed=9)
    scores = [score.scored(asked(text))[0].prompt_score for text in texts]
    return float(np.mean(np.abs(np.array(scores, dtype=float) - np.log1p(lengths))))


def test_fit_orders_new_prompts():
    assert error(fitted()[0]) < 0.35


def test_scores_of_a_fit_have_not_seen_their_prompts():
    rng = np.random.default_rng(1)
    texts = [f"word{i} again{i}" for i in range(300)]
    lengths = rng.integers(1, 4000, 300)
    found = PromptScore().fit([asked(t) for t in texts], lengths, np.zeros(300, dtype=bool))
    scores = [one.prompt_score for one in found]
    assert abs(np.corrcoef(np.array(scores, dtype=float), np.log1p(lengths))[0, 1]) < 0.2


def test_samples_of_one_prompt_are_in_one_fold():
    rng = np.random.default_rng(2)
    texts = [f"word{i // 5} again{i // 5}" for i in range(500)]
    lengths = np.repeat(rng.integers(1, 4000, 100), 5)
    found = PromptScore().fit([asked(t) for t in texts], lengths, np.zeros(500, dtype=bool))
    scores = np.array([one.prompt_score for one in found], dtype=float)
    assert abs(np.corrcoef(scores, np.log1p(lengths))[0, 1]) < 0.3


def test_online_from_nothing():
    score = PromptScore()
    texts, lengths = prompts(600)
    for i, (text, length) in enumerate(zip(texts, lengths.tolist(), strict=True)):
        features, terms = score.scored(asked(text))
        assert (features.prompt_score is None) == (i < 100)
        score.learn(features, terms, length, censored=False)
    assert error(score) < 0.4


def test_a_lower_bound_teaches_only_if_it_is_longer_than_predicted():
    score, _, _ = fitted()
    text = "please list thing3"
    features, terms = score.scored(asked(text))
    assert features.prompt_score is not None
    score.learn(features, terms, 2, censored=True)
    after = score.scored(asked(text))[0].prompt_score
    assert after == features.prompt_score
    score.learn(features, terms, 5000, censored=True)
    later = score.scored(asked(text))[0].prompt_score
    assert later is not None
    assert later > features.prompt_score + 0.02


def test_lengths_of_a_client_are_not_put_down_to_its_prompts():
    texts, lengths = prompts(400)
    clients = [RequestFeatures(client_key=1 + i % 2) for i in range(400)]
    # The second client's answers are eight times as long, whatever it asks.
    lengths = lengths * np.where(np.arange(400) % 2, 8, 1)
    texts = [f"{'beta' if i % 2 else 'alpha'} {text}" for i, text in enumerate(texts)]
    score = PromptScore()
    score.fit(
        [asked(t, c) for t, c in zip(texts, clients, strict=True)], lengths, np.zeros(400, bool)
    )
    one, two = (
        score.scored(asked(f"{word} please list thing3"))[0].prompt_score
        for word in ("alpha", "beta")
    )
    assert one is not None
    assert two is not None
    assert abs(one - two) < 0.5 < np.log(8)


def test_words_tell_nothing_about_tokens():
    score = fitted()[0]
    request = PredictionRequest(1, [1, 2, 3], 0, None)
    observed = ObservedRequest(request, RequestFeatures(), 0, RecentCompletions())
    assert score.scored(observed)[0].prompt_score is None


def test_words_are_used_until_tokens_are_known():
    score, text = fitted()[0], "please write thing3"
    request = PredictionRequest(1, [1, 2, 3], 0, None, {"prompt_text": text})
    both = asked(text)._replace(request=request)
    tokens = asked(text)._replace(request=PredictionRequest(1, [1, 2, 3], 0, None))
    assert score.scored(both)[0].prompt_score == score.scored(asked(text))[0].prompt_score
    features, terms = score.scored(both)
    for _ in range(100):
        score.learn(features, terms, 5, censored=False)
    assert score.scored(both)[0] == score.scored(tokens)[0]
    assert score.scored(tokens)[0].prompt_score is not None


def test_a_score_that_is_given_stays():
    observed = asked("please list thing3", replace(RequestFeatures(), prompt_score=3.0))
    assert fitted()[0].scored(observed)[0].prompt_score == 3.0


def test_state():
    score = fitted()[0]
    other = PromptScore()
    other.restore({key: np.array(value) for key, value in score.state().items()})
    texts, _ = prompts(50, seed=3)
    for text in texts:
        assert other.scored(asked(text))[0] == score.scored(asked(text))[0]
    state = score.state()
    assert PromptScore().state().keys() == {"mean_keys", "mean_sums"}
    lies = {
        "words.weights": np.full(1 << 16, np.nan, dtype=np.float32),
        "words.documents": np.full(1 << 16, 1e6, dtype=np.float32),
        "words.precision": np.zeros(1 << 16, dtype=np.float32),
        "words.learned": np.array([-1]),
        "mean_sums": np.zeros((5, 2)),
    }
    for name, lie in lies.items():
        with pytest.raises(ValueError, match=name.split(".")[-1]):
            PromptScore().restore(state | {name: lie})


@pytest.mark.parametrize("kind", ["survival", "linear"])
def test_in_a_predictor(kind, tmp_path):
    texts, lengths = prompts(1500)
    history = pl.DataFrame({"prompt_text": texts, "actual_length": lengths})
    predictor = create_predictor(kind).fit(history)
    new, answers = prompts(200, seed=7)
    with_text, without = [], []
    for i, (text, answer) in enumerate(zip(new, answers.tolist(), strict=True)):
        for given, errors in (({"prompt_text": text}, with_text), ({}, without)):
            result = predictor.predict(PredictionRequest(f"{i} {given}", [], 0, None, given))
            errors.append(abs(result.estimated_remaining_tokens - answer))
    assert np.mean(with_text) < 0.5 * np.mean(without)
    predictor.save(tmp_path / "saved")
    again = load_predictor(tmp_path / "saved")
    request = PredictionRequest("x", [], 0, None, {"prompt_text": new[0]})
    saved, first = (one.predict(request).distribution for one in (again, predictor))
    assert [saved.quantile(q / 20) for q in range(1, 20)] == [
        first.quantile(q / 20) for q in range(1, 20)
    ]


def test_nothing_of_a_prompt_is_in_the_state(tmp_path):
    texts, lengths = prompts(300)
    predictor = create_predictor("survival").fit(
        pl.DataFrame({"prompt_text": texts, "actual_length": lengths})
    )
    predictor.save(tmp_path / "saved")
    stored = b"".join(path.read_bytes() for path in (tmp_path / "saved").iterdir())
    assert b"thing" not in stored
    assert b"explain" not in stored


def test_a_rare_score_borrows_its_neighbours_and_answers_lie_between():
    tables, rng = ResidualLife(), np.random.default_rng(3)
    for length in rng.integers(250, 350, 400):
        tables.learn(RequestFeatures(prompt_score=5.7), 0, int(length), censored=False)
        tables.learn(RequestFeatures(prompt_score=3.0), 0, int(length) // 15, censored=False)

    def median(score):
        row = tables.row(RequestFeatures(prompt_score=score), 0)
        return hazard.inverse(row, np.log(2.0))

    assert median(6.3) == pytest.approx(median(5.7), rel=0.1), "no completion had that score"
    assert median(2.4) == pytest.approx(median(3.0), rel=0.1)
    assert median(5.6) > 250


def test_a_second_answer_to_a_prompt_does_not_choose_the_weights_of_its_levels():
    chosen = []
    for keys in (range(1, 201), [7] * 200):
        tables = ResidualLife()
        for key in keys:
            given = RequestFeatures(prompt_length=20, prompt_score=4.0, prompt_key=key)
            tables.learn(given, 0, 60, censored=False)
        chosen.append(np.count_nonzero(tables._weights._losses.any(axis=1)))
    assert chosen == [6, 1], "every level; and only that of all requests, where the prompt is known"
