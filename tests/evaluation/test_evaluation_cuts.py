"""Rows that were cut: scored so that the truth cannot lose because the long ones are missing."""

import numpy as np
import polars as pl
import pytest
from evaluation_stubs import Fixed, PointOnly

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.evaluation.cuts import NEVER, find_cuts
from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.evaluation.report import markdown
from sagellm_lifetime.evaluation.rivals import fit_rivals

MEDIAN, SPREAD = 240.0, 0.9
TRUE = LengthDistribution(hazard.log_logistic(MEDIAN, SPREAD), 0, 0, None)


def drawn(n: int, seed: int) -> np.ndarray:
    """Return lengths of the very distribution that ``Fixed(MEDIAN, SPREAD)`` states."""
    levels = np.random.default_rng(seed).random(n)
    return np.array([TRUE.quantile(float(level)) for level in levels])


def cut_at(lengths: np.ndarray, cut: np.ndarray, reason: str = "length") -> pl.DataFrame:
    """Return the log of a server that cuts each row at ``cut`` tokens and omits its cap."""
    return pl.DataFrame(
        {
            "actual_length": np.minimum(lengths, cut),
            "finish_reason": np.where(lengths > cut, reason, "stop"),
        }
    )


def uncut(lengths: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"actual_length": lengths})


def test_chances_by_hand():
    cuts = find_cuts(np.array([3, 5, 5, 7]), np.array([True, False, True, True]))
    # At 5 three are there; one ends, and one of the two that would go on is cut.
    assert cuts.chance(np.array([1, 3, 5, 6, 7, 99])).tolist() == [1, 1, 1, 0.5, 0.5, 0.5]
    assert (cuts.rows, cuts.cut, cuts.before, cuts.horizon) == (4, 1, 1, NEVER)
    assert cuts.largest_weight == 2.0
    assert cuts.to_dict()["horizon"] is None
    last = find_cuts(np.array([3, 5, 7]), np.array([True, True, False]))
    assert (last.horizon, last.before, last.largest_weight) == (7, 0, 1.0)
    none = find_cuts(np.array([3, 5]), np.array([True, True]))
    assert (none.cut, none.horizon, none.says()) == (0, NEVER, [])


def test_no_row_stands_for_more_than_ten():
    length = np.concatenate([np.full(95, 50), np.arange(60, 65)])
    cuts = find_cuts(length, length > 50)
    assert cuts.horizon == 50
    assert cuts.largest_weight == 1.0
    rng = np.random.default_rng(1)
    for _ in range(50):
        lengths, ends = rng.integers(1, 400, (2, 60))
        cuts = find_cuts(np.minimum(lengths, ends), lengths <= ends)
        assert 1.0 <= cuts.largest_weight <= 10.0


def test_the_truth_beats_a_constant_though_the_longest_are_cut():
    train, test = drawn(1500, 1), drawn(1500, 2)
    frame = cut_at(test, np.full(len(test), 400))
    rivals = fit_rivals(cut_at(train, np.full(len(train), 400)), ["constant_median"])
    found = evaluate(Fixed(MEDIAN, SPREAD), frame, rivals=rivals)
    truth, constant = (found.scores[name]["steps"] for name in ("fixed", "constant_median"))
    assert constant["mae_ended"] < truth["mae_ended"], "what is wrong with the rest alone"
    assert truth["mae"] < 0.9 * constant["mae"]
    assert found.to_dict()["cut"] == {
        "rows": int((test > 400).sum()),
        "horizon": 400,
        "before_horizon": 0,
        "largest_weight": 1.0,
    }
    assert truth["n_cut"] == 4 * (test > 400).sum()


def test_scores_up_to_the_horizon_are_those_of_the_whole_lengths():
    lengths = drawn(800, 3)
    frame = cut_at(lengths, np.full(len(lengths), 400))
    for guess in (100, 350, 900):
        found = evaluate(PointOnly(lambda _, guess=guess: guess), frame).scores["rule"]["admission"]
        error = np.abs(min(guess, 400) - np.minimum(lengths, 400))
        assert found["mae"] == pytest.approx(error.mean())
        assert found["crps"] == found["mae"]
        assert found["within_10_tokens"] == pytest.approx((error <= 10).mean())
        assert found["n"] == len(lengths)
        ended = lengths <= 400
        assert found["mae_ended"] == pytest.approx(np.abs(guess - lengths)[ended].mean())


@pytest.mark.slow
def test_those_that_went_on_stand_for_those_cut_early():
    """Clients cancel at random times: the weighted scores equal those without cancelling."""
    lengths = drawn(5000, 4)
    rng = np.random.default_rng(5)
    gone = np.where(rng.random(len(lengths)) < 0.4, rng.integers(1, 1500, len(lengths)), 10**7)
    frame = cut_at(lengths, gone, "abort")
    predictor = Fixed(0.6 * MEDIAN, 0.5)  # wrong, so that its error says something
    whole = evaluate(predictor, uncut(lengths))
    found = evaluate(predictor, frame)
    assert found.points.cuts.before > 400
    right, weighted = (each.scores["fixed"] for each in (whole, found))
    for group in ("admission", "64", "256"):
        for key in ("within_10pct", "coverage_90"):
            assert weighted[group][key] == pytest.approx(right[group][key], abs=0.03)
        assert weighted[group]["confidence_ece"] == pytest.approx(
            right[group]["confidence_ece"], abs=0.02
        )
        ended = right[group]["mae"] - weighted[group]["mae_ended"]
        assert ended > 0.1 * right[group]["mae"], "the rest alone is too short"
        assert abs(right[group]["mae"] - weighted[group]["mae"]) < 0.5 * ended


def test_the_intervals_of_the_truth_cover_what_they_say():
    lengths = drawn(2000, 6)
    frame = cut_at(lengths, np.full(len(lengths), 400))
    found = evaluate(Fixed(MEDIAN, SPREAD), frame).scores["fixed"]
    for group in ("admission", "64", "256", "steps"):
        assert found[group]["coverage_90"] == pytest.approx(0.9, abs=0.02)
        assert found[group]["coverage_80"] == pytest.approx(0.8, abs=0.03)
    assert found["admission"]["confidence_ece"] < 0.03
    assert found["256"]["confidence_ece"] is None, "a hit would lie beyond the horizon"
    narrow = evaluate(Fixed(MEDIAN, 0.2), frame).scores["fixed"]["admission"]
    assert narrow["coverage_90"] < 0.5, "cut rows beyond all that it thought possible are misses"


def test_a_cap_that_is_known_is_no_cut():
    lengths = drawn(400, 7)
    frame = cut_at(lengths, np.full(len(lengths), 400)).with_columns(max_length=pl.lit(400))
    found = evaluate(Fixed(MEDIAN, SPREAD), frame)
    assert found.to_dict()["cut"]["rows"] == 0
    assert found.scores["fixed"]["admission"]["n"] == 400


def test_nothing_beyond_the_horizon_is_asked_for():
    lengths = np.concatenate([np.full(95, 50), np.full(5, 5000)])
    frame = cut_at(lengths, np.where(lengths > 50, 10**6, 49))
    found = evaluate(Fixed(MEDIAN, SPREAD), frame)
    assert found.points.cuts.horizon == 49
    assert list(found.scores["fixed"]) == ["admission", "16", "32", "steps"]
    points = found.points
    assert (points.age[points.groups()["steps"]] < 49).all()
    assert found.scores["fixed"]["admission"]["n"] == 100


def test_what_was_cut_is_said():
    lengths = drawn(400, 8)
    frame = cut_at(lengths, np.where(np.arange(400) % 4, 400, 90))
    found = evaluate(Fixed(MEDIAN, SPREAD), frame)
    cuts = found.points.cuts
    ended, *others = cuts.says()
    assert ended.startswith(f"{400 - cuts.cut} of 400 ended by themselves")
    assert "Lengths and predictions count up to 400 tokens" in others[0]
    assert f"The {cuts.before} cut earlier are stood for" in others[1]
    page = markdown([found], title="Cut")
    for line in cuts.says():
        assert line in page
