"""The hidden score: a ridge of the model's states, a shape, and the weight beside the table."""

import numpy as np
import pytest

from sagellm_lifetime.core.hidden_states import COLUMNS
from sagellm_lifetime.features.hidden_state import HiddenReadings, Reading
from sagellm_lifetime.models.hidden_score import LEAST, HiddenScore, _shape
from sagellm_lifetime.models.residual_life import prior_hazards
from sagellm_lifetime.models.shrinkage import Hazards, padded

WIDTH = 6
ABOVE = Hazards(padded(prior_hazards()))


def states(count, seed=0, noise=0.4):
    """States whose first component is the logarithm of the length, nearly."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, WIDTH)).astype(np.float32)
    lengths = np.exp(5.0 + 0.8 * vectors[:, 0] + noise * rng.normal(size=count))
    return vectors, np.maximum(lengths.astype(int), 1)


def of(*vectors, source=1):
    return HiddenReadings(source, tuple(Reading(i, one) for i, one in enumerate(vectors)))


def taught(count, seed=0, cap=None, **options):
    learned = HiddenScore()
    for vector, length in zip(*states(count, seed), strict=True):
        cut = cap is not None and length > cap
        learned.learn(of(vector), min(length, cap) if cut else length, ABOVE, censored=cut)
    return learned


def median(hazards):
    from sagellm_lifetime.core.distribution import LengthDistribution

    return LengthDistribution(hazards.row, 0, 0, None, None).quantile(0.5)


def test_no_score_and_nothing_to_store_before_the_least_number():
    learned = taught(LEAST - 1)
    (vector,), _ = states(1)
    assert learned.score(of(vector)) is None
    assert learned.applied(ABOVE, of(vector)) is ABOVE
    assert {name: array.size for name, array in learned.state().items()} == {"sources": 0}
    assert taught(LEAST).score(of(vector)) is not None


def test_a_hundred_answers_halve_the_error_of_the_table():
    learned = taught(100)
    vectors, lengths = states(400, seed=1)
    found = np.array([median(learned.applied(ABOVE, of(vector))) for vector in vectors])
    constant = np.abs(np.median(lengths) - lengths).mean()
    assert np.abs(found - lengths).mean() < 0.7 * constant
    assert np.corrcoef(np.log(found), np.log(lengths))[0, 1] > 0.8


def test_intervals_cover_what_they_say():
    from sagellm_lifetime.core.distribution import LengthDistribution

    learned = taught(1000)
    vectors, lengths = states(1000, seed=1)
    inside = 0
    for vector, length in zip(vectors, lengths, strict=True):
        row = learned.applied(ABOVE, of(vector)).row
        low, high = LengthDistribution(row, 0, 0, None, None).interval(0.9)
        inside += low <= length <= high
    assert 860 <= inside <= 950


def test_states_that_say_nothing_change_little():
    rng = np.random.default_rng(77)
    learned = HiddenScore()
    _, lengths = states(400)
    for length in lengths:
        noise = rng.normal(size=WIDTH).astype(np.float32)
        learned.learn(of(noise), int(length), ABOVE)
    scores = [learned.score(of(rng.normal(size=WIDTH).astype(np.float32))) for _ in range(100)]
    assert np.std(scores) < 0.2


def test_censored_lengths_are_lower_bounds():
    capped = taught(1500, cap=200)
    vectors, lengths = states(300, seed=1)
    long = lengths > 400
    found = np.array([capped.score(of(vector)) for vector in vectors[long]])
    # Counted at their caps, none of them would have a score far above log(200) = 5.3.
    assert found.mean() > 5.6


def test_fit_gives_scores_that_have_not_seen_their_states():
    vectors, lengths = states(300)
    noise = np.random.default_rng(5).normal(size=(300, 200)).astype(np.float32)
    learned, cut = HiddenScore(), np.zeros(300, dtype=bool)
    rows = [of(np.concatenate([v, n])) for v, n in zip(vectors, noise, strict=True)]
    scored = learned.fit(rows, lengths, cut)
    honest = np.array([one.scores[0] for one in scored])
    fitted = np.array([learned.score(one) for one in rows])
    target = np.log(lengths)
    assert np.mean((fitted - target) ** 2) < np.mean((honest - target) ** 2)
    assert learned.score(scored[0]) == scored[0].scores[0]


def test_equal_states_are_in_one_fold():
    vectors, _ = states(60)
    noise = np.random.default_rng(1).normal(size=60)
    lengths = np.exp(5.0 + noise).astype(int)  # of the prompt, and nothing of the state
    rows = [of(vector) for vector in vectors for _ in range(5)]
    scored = HiddenScore().fit(rows, np.repeat(lengths, 5), np.zeros(300, dtype=bool))
    scores = np.array([one.scores[0] for one in scored])[::5]
    assert np.corrcoef(scores, np.log(lengths))[0, 1] < 0.3


def test_later_readings_add_to_earlier_ones():
    learned = HiddenScore()
    first, lengths = states(600, noise=0.8)
    later = np.random.default_rng(9).normal(size=(600, WIDTH)).astype(np.float32)
    later[:, 1] = np.log(lengths) - 5.0 - 0.8 * first[:, 0]
    for one, two, length in zip(first, later, lengths, strict=True):
        learned.learn(of(one, two), int(length), ABOVE)
    errors = {1: [], 2: []}
    fresh, lengths = states(200, seed=3, noise=0.8)
    for one, length in zip(fresh, lengths, strict=True):
        rest = np.log(length) - 5.0 - 0.8 * one[0]
        two = np.zeros(WIDTH, dtype=np.float32)
        two[1] = rest
        if length > 32:
            errors[1].append(learned.score(of(one)) - np.log(length))
            errors[2].append(learned.score(of(one, two)) - np.log(length))
    assert np.std(errors[2]) < 0.6 * np.std(errors[1])


def test_a_shorter_answer_than_a_reading_teaches_the_reading_nothing():
    learned = HiddenScore()
    vectors, _ = states(64)
    for vector in vectors:
        learned.learn(of(vector, vector, vector), 40, ABOVE)
    counts = [stage.count for stage in learned._sources[1]]
    assert counts == [64, 64, 0]


def test_another_source_starts_anew_and_takes_the_place_of_one_that_is_not_used_any_more():
    learned = taught(100)
    (vector,), _ = states(1)
    assert learned.score(of(vector, source=2)) is None
    for _ in range(257):
        for source in range(2, 6):
            learned.learn(of(vector, source=source), 100, ABOVE)
    assert set(learned._sources) == {2, 3, 4, 5}
    assert learned.score(of(vector)) is None


def test_more_adapters_than_places_do_not_drive_each_other_out():
    vectors, lengths = states(1600)
    learned = HiddenScore()
    for i, (vector, length) in enumerate(zip(vectors, lengths, strict=True)):
        learned.learn(of(vector, source=1 + i % 20), int(length), ABOVE)
    assert sum(stages[0].count == 80 for stages in learned._sources.values()) == 4


def test_another_width_under_the_same_key_is_left_out():
    learned = taught(100)
    wide = of(np.ones(WIDTH + 1, dtype=np.float32))
    assert learned.score(wide) is None
    learned.learn(wide, 100, ABOVE)
    assert learned._sources[1][0].count == 100


def test_state_restores_scores_and_learning():
    learned = taught(150)
    twin = HiddenScore()
    twin.restore(learned.state())
    vectors, lengths = states(50, seed=1)
    for vector, length in zip(vectors, lengths, strict=True):
        assert twin.score(of(vector)) == learned.score(of(vector))
        left, right = (one.applied(ABOVE, of(vector)).row for one in (twin, learned))
        assert np.array_equal(left, right)
        for one in (twin, learned):
            one.learn(of(vector), int(length), ABOVE)


def test_what_is_stored_holds_no_vector_of_a_row():
    vectors, lengths = states(200)
    learned = HiddenScore()
    for vector, length in zip(vectors, lengths, strict=True):
        learned.learn(of(vector), int(length), ABOVE)
    for name, array in learned.state().items():
        # Sums have the size of one row at most, and no row is among them.
        assert array.size <= max((WIDTH + 3) * (WIDTH + 4) // 2, 3 * 172, 4 * (WIDTH + 2))
        flat = np.atleast_2d(array.reshape(-1))
        for vector in vectors:
            for start in range(flat.shape[1] - WIDTH + 1):
                assert not np.allclose(flat[0, start : start + WIDTH], vector, atol=1e-4), name


def test_no_checkpoint_holds_a_state_of_one_answer():
    from sagellm_lifetime import PredictionRequest, create_predictor

    vectors, lengths = states(120)
    predictor = create_predictor("survival")
    for i, (vector, length) in enumerate(zip(vectors, lengths, strict=True)):
        predictor.predict(PredictionRequest(i, [], 0, None, {"hidden_state": vector}))
        predictor.update(i, int(length), 1.0)
    predictor.predict(PredictionRequest("running", [], 0, None, {"hidden_state": vectors[0]}))
    floats = [a.ravel() for a in predictor.state().values() if a.dtype.kind == "f"]
    numbers = np.concatenate(floats).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, WIDTH)
    for vector in vectors:
        assert not (np.abs(windows - vector) < 1e-5).all(axis=1).any()


@pytest.mark.parametrize("name", ["0.0.sums", "0.0.products", "0.0.weights", "0.0.shape"])
def test_impossible_states_are_refused(name):
    state = taught(100).state()
    state[name] = np.full_like(state[name], np.nan)
    with pytest.raises(ValueError, match=name.rpartition(".")[2]):
        HiddenScore().restore(state)


def test_no_array_of_a_state_is_taken_at_its_word():
    state = taught(100).state()
    for name, array in state.items():
        lies = [np.zeros((3, *array.shape), dtype=array.dtype)]
        for number in (np.nan, np.inf, 1e30) if array.dtype.kind == "f" else (-7,):
            for place in (0, -1):
                lie = array.copy()
                lie.flat[place] = number
                lies.append(lie)
        for lie in lies:
            with pytest.raises(ValueError, match="'"):
                HiddenScore().restore({**state, name: lie})
        with pytest.raises(ValueError, match=r"missing|impossible"):
            HiddenScore().restore({key: state[key] for key in state if key != name})


def test_delayed_entry_counts_only_from_the_entry_on():
    counts = np.zeros((3, 172))
    counts[0, 90:100] = 10.0
    plain = _shape(counts, 1.0)
    counts[2, 85] = 100.0  # all of them entered shortly before
    late = _shape(counts, 1.0)
    assert late[85] > plain[85]  # nobody was at risk before, so the prior alone speaks there
    assert late[100] - late[90] == pytest.approx(plain[100] - plain[90], rel=0.2)


def test_history_columns_and_requests_are_learned_by_a_predictor(tmp_path):
    import polars as pl

    from sagellm_lifetime import PredictionRequest, create_predictor, load_predictor

    vectors, lengths = states(300)
    frame = pl.DataFrame({"actual_length": lengths, COLUMNS[0]: vectors.tolist()})
    for kind in ("survival", "linear"):
        predictor = create_predictor(kind).fit(frame)
        high, low = (np.array([sign * 1.5, *[0.0] * 5]) for sign in (1, -1))
        predictor.save(tmp_path / kind)
        for one in (predictor, load_predictor(tmp_path / kind)):
            long, short = (
                one.predict(PredictionRequest(f"{kind}{i}", [], 0, None, {"hidden_state": x}))
                for i, x in enumerate((high, low))
            )
            assert long.estimated_remaining_tokens > 3 * short.estimated_remaining_tokens
        before = predictor.predict(PredictionRequest("later", [], 0, None))
        after = predictor.predict(PredictionRequest("later", [], 1, None, {"hidden_state": low}))
        assert after.estimated_remaining_tokens < before.estimated_remaining_tokens


def test_merged_scores_are_those_of_all_completions():
    halves = taught(150, seed=0), taught(150, seed=1)
    both = taught(150, seed=0)
    for vector, length in zip(*states(150, 1), strict=True):
        both.learn(of(vector), int(length), ABOVE)
    merged = taught(150, seed=0)
    merged.merge([halves[1]])
    vectors, _ = states(50, seed=2)
    apart = [merged.score(of(vector)) - both.score(of(vector)) for vector in vectors]
    assert np.abs(apart).max() < 0.1
    twin = HiddenScore()
    twin.restore(merged.state())
    assert twin.score(of(vectors[0])) == merged.score(of(vectors[0]))
    empty = HiddenScore()
    empty.merge([halves[0]])
    assert empty.score(of(vectors[0])) == halves[0].score(of(vectors[0]))


def test_replayed_completions_are_learned_when_the_replay_is_over():
    vectors, lengths = states(200)
    learned = taught(100, seed=5)
    before = learned._sources[1][0].count
    for vector, length in zip(vectors, lengths, strict=True):
        learned.learn(of(vector), int(length), ABOVE, replayed=True)
    assert learned._sources[1][0].count == before
    learned.finish()
    assert learned._sources[1][0].count == before + 200
