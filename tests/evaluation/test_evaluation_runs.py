"""Frozen and prequential runs: what is asked, what is learned, and when."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import polars as pl
import pytest
from evaluation_stubs import Fixed, PointOnly, history
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.evaluation.points import EvaluationRequests
from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.evaluation.rivals import ConstantMedian, ResidualLife

KEYS = {
    "mae",
    "within_10pct",
    "within_10_tokens",
    "kendall_tau",
    "crps",
    "coverage_80",
    "coverage_90",
    "confidence_ece",
}


def test_frozen_learns_nothing_and_forgets_everything():
    predictor = Fixed()
    evaluate(predictor, history(300))
    assert not predictor.events("update")
    asked = {event[1] for event in predictor.events("predict")}
    assert asked == {event[1] for event in predictor.events("discard")}


def test_a_sequence_is_asked_at_ascending_ages_and_every_step_point_on_its_own():
    predictor = Fixed()
    evaluate(predictor, history(300))
    ages = defaultdict(list)
    for _, sequence_id, age, _ in predictor.events("predict"):
        ages[sequence_id].append(age)
    assert all(a == sorted(set(a)) for a in ages.values())
    for asked in ages.values():
        assert asked == [0, *(16 * 2**k for k in range(len(asked) - 1))] or len(asked) == 1


def test_json_form():
    train, test = history(300, seed=1), history(300)
    rivals = [ConstantMedian(), ResidualLife()]
    for rival in rivals:
        rival.fit(train)
    found = evaluate(Fixed(), test, rivals=rivals).to_dict()
    assert found["rows"] == 300
    assert found["mode"] == "frozen"
    for part in (found, *found["baselines"].values()):
        assert set(part["admission"]) >= KEYS
        assert set(part["steps"]) >= KEYS
        assert all(set(score) >= KEYS for score in part["ages"].values())
        assert list(part["ages"])[:2] == ["16", "32"]
    assert set(found["baselines"]) == {"constant_median", "residual_life"}
    assert found["steps"]["mae"] > 0
    assert 0 <= found["steps"]["coverage_90"] <= 1


def test_a_predictor_without_a_distribution_has_point_metrics_only():
    found = evaluate(PointOnly(lambda request: 50), history(300)).to_dict()
    assert found["admission"]["coverage_80"] is None
    assert found["admission"]["crps"] == found["admission"]["mae"]
    assert found["admission"]["confidence_ece"] is not None


def test_scores_match_a_direct_computation():
    frame = history(300)
    predictor = Fixed(100.0)
    found = evaluate(predictor, frame).to_dict()
    error = np.abs(frame["actual_length"].to_numpy() - 100)
    assert found["admission"]["mae"] == pytest.approx(error.mean())
    hits = error <= 0.1 * frame["actual_length"].to_numpy()
    assert found["admission"]["within_10pct"] == pytest.approx(hits.mean())


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 60), st.none() | st.integers(0, 20)),
        min_size=1,
        max_size=30,
    )
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_online_never_learns_from_the_future(rows):
    arrival, length, duration = zip(*rows, strict=True)
    frame = pl.DataFrame(
        {"arrival_time": arrival, "actual_length": length, "actual_time": duration},
        schema_overrides={"arrival_time": pl.Float64, "actual_time": pl.Float64},
    )
    finish = [a + (n * 0.02 if t is None else t) for a, n, t in rows]
    predictor = Fixed()
    evaluate(predictor, frame, online=True)
    row_of = {f"{row}": row for row in range(len(rows))}
    learned: list[int] = []
    for event in predictor.log:
        row = row_of[event[1].split("-")[2]]
        if event[0] == "update":
            learned.append(row)
            assert event[2:] == (length[row], pytest.approx(finish[row] - arrival[row]), "stop")
        elif event[0] == "predict":
            assert set(learned) == {
                i for i in range(len(rows)) if finish[i] <= arrival[row] and i != row
            } - ({i for i in range(len(rows)) if arrival[i] == arrival[row] and i > row})
    assert sorted(learned) == list(range(len(rows)))
    assert [finish[row] for row in learned] == sorted(finish)


def test_online_learns_from_the_ladder_only():
    """Step ages are drawn up to the true length: what learns from the ages asked must not see
    them under the id that is learned."""
    predictor = Fixed()
    evaluate(predictor, history(100), online=True)
    learned = {event[1] for event in predictor.events("update")}
    for _, sequence_id, age, _ in predictor.events("predict"):
        if sequence_id in learned:
            assert age == 0 or age in {16 * 2**k for k in range(12)}
    assert not learned & {event[1] for event in predictor.events("discard")}


def test_online_passes_the_finish_reason():
    reasons = ["stop", "abort", "length", "error"] * 30
    frame = history(120, finish_reason=reasons, max_length=[None, None, 1, None] * 30)
    frame = frame.with_columns(
        actual_length=pl.when(pl.col("finish_reason") == "length")
        .then(1)
        .otherwise(pl.col("actual_length"))
    )
    predictor = Fixed()
    found = evaluate(predictor, frame, online=True).to_dict()
    assert found["rows"] == 120
    assert found["admission"]["n_cut"] == found["cut"]["rows"] == 60
    assert found["admission"]["n"] >= 60
    assert {event[4] for event in predictor.events("update")} == set(reasons)


def test_online_without_arrivals_is_one_line():
    frame = history(50).drop("arrival_time")
    with pytest.raises(HistoryError, match="needs 'arrival_time' in every row"):
        evaluate(Fixed(), frame, online=True)


def test_max_rows_scores_fewer_but_online_learns_all():
    frame = history(100)
    frozen = evaluate(Fixed(), frame, max_rows=50)
    assert frozen.rows == frozen.to_dict()["admission"]["n"] == 50
    predictor = Fixed()
    online = evaluate(predictor, frame, online=True, max_rows=50)
    assert online.rows == online.to_dict()["admission"]["n"] == 50
    assert len(predictor.events("update")) == 100


def test_nothing_to_evaluate_is_one_line():
    with pytest.raises(HistoryError, match="nothing to evaluate"):
        evaluate(Fixed(), history(10).filter(pl.col("actual_length") < 0))


def test_progress_ends_at_all_rows():
    calls = []
    evaluate(Fixed(), history(600), progress=lambda done, rows: calls.append((done, rows)))
    assert calls[-1] == (600, 600)


def test_requests_hold_what_was_known_and_no_more():
    frame = pl.DataFrame(
        {
            "actual_length": [4, 4],
            "max_length": [9, None],
            "prompt_length": [2, None],
            "prompt_token_ids": [[7, 8], [7, 8]],
            "output_token_ids": [[1, 2, 3, 4], None],
            "output_text": ["abcdefgh", "abcdefgh"],
            "client_id": ["c", None],
            "finish_reason": ["stop", "stop"],
            "actual_time": [1.0, 2.0],
        }
    )
    asking = EvaluationRequests(frame)
    first, later = asking.request(0, 0), asking.request(0, 3)
    assert first.token_ids == [7, 8]
    assert later.token_ids == [7, 8, 1, 2, 3]
    assert (later.current_length, later.max_length) == (3, 9)
    assert later.prompt_features == {"prompt_length": 2, "client_id": "c"}
    other = asking.request(1, 3)
    assert other.token_ids == []
    assert other.max_length is None
    assert other.prompt_features == {"output_text": "abcdef"}
    assert asking.request(1, 0).token_ids == [7, 8]
    assert asking.request(1, 0).prompt_features is None
