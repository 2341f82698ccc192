"""Who is ahead over all steps: baselines count, and chance does."""

import numpy as np
import polars as pl
import pytest
from evaluation_stubs import Fixed, PointOnly, history

from sagellm_lifetime.evaluation.protocol import clusters, evaluate
from sagellm_lifetime.evaluation.report import markdown
from sagellm_lifetime.evaluation.rivals import fit_rivals
from sagellm_lifetime.evaluation.verdict import gap, verdict

SIMPLE = ["constant_median", "residual_life"]


def told() -> PointOnly:
    """Return a predictor of the half of the length that the prompt length explains."""
    return PointOnly(
        lambda r: max(
            round(0.4 * r.prompt_features["prompt_length"]) + 5 - r.current_length,
            r.current_length // 3,
            1,
        )
    )


def test_a_predictor_that_knows_more_pays():
    test = history(600, seed=2)
    found = verdict([evaluate(told(), test, rivals=fit_rivals(history(600, seed=1), SIMPLE))])
    assert (found.best, found.own, found.pays) == ("rule", "rule", True)
    assert found.other is None
    saved = 1 - found.maes["rule"] / found.maes[found.simple.over]
    assert found.simple.gain == pytest.approx(saved)
    assert 0 < found.simple.margin < found.simple.gain
    assert found.says().startswith("prediction pays: rule (")
    assert f"{100 * saved:.1f} ± {100 * found.simple.margin:.1f} % less error than" in found.says()


def test_a_baseline_that_is_ahead_is_named_as_the_best():
    evaluation = evaluate(
        Fixed(400.0, 0.2), history(600, seed=2), rivals=fit_rivals(history(900, seed=1))
    )
    found = verdict([evaluation])
    assert found.best == "lightgbm"
    assert not found.pays
    assert found.simple.sign == found.other.sign == -1
    said = found.says()
    assert said.startswith("prediction does not pay: fixed (")
    assert "% more error than residual_life (" in said
    assert "The baseline lightgbm (" in said
    assert said.endswith("Least error of all: lightgbm.")
    assert said in markdown([evaluation], title="x")
    written = found.to_dict()
    assert written["best"] == "lightgbm"
    assert written["best_predictor"] == "fixed"
    assert written["pays"] is False
    assert written["against_simple"]["gain"] < 0


def test_a_difference_by_chance_is_called_that():
    rivals = fit_rivals(history(600, seed=1), SIMPLE)
    found = verdict([evaluate(Fixed(110.0, 0.7), history(100, seed=2), rivals=rivals)])
    assert found.simple.sign == 0
    assert not found.pays
    assert found.says().startswith("no difference beyond chance: fixed (")


def test_the_best_of_several_predictors_stands_for_them():
    rivals = fit_rivals(history(400, seed=1), SIMPLE)
    test = history(300, seed=2)
    both = [evaluate(each, test, rivals=rivals) for each in (Fixed(400.0, 0.2), told())]
    found = verdict(both)
    assert found.own == "rule"
    assert found.predictors == ("fixed", "rule")
    assert set(found.maes) == {"fixed", "rule", *SIMPLE}
    assert verdict([evaluate(told(), test)]) is None, "nobody to compare with"


def test_equal_errors_are_a_tie():
    """All answers have 5 tokens, so predictors and baselines make no error."""
    train, test = (
        history(100, seed=s).with_columns(actual_length=pl.lit(5), max_length=pl.lit(10))
        for s in (1, 2)
    )
    exact = PointOnly(lambda r: 5 - r.current_length)
    found = verdict([evaluate(exact, test, rivals=fit_rivals(train))])
    said = found.says()
    assert found.best == "rule"
    assert not found.pays
    assert found.simple.sign == 0
    assert "the same error as" in said
    assert "is ahead" not in said
    assert "0.0 %" not in said
    assert "Least error of all: rule, " in said
    worse = verdict([evaluate(Fixed(400.0, 0.2), test, rivals=fit_rivals(train, SIMPLE))]).says()
    assert "has more error than constant_median (0.0)" in worse


@pytest.mark.parametrize("rows", [1, 29, 30])
def test_few_rows_have_no_verdict(rows):
    rivals = fit_rivals(history(600, seed=1), SIMPLE)
    found = verdict([evaluate(told(), history(rows, seed=2), rivals=rivals)])
    assert found.enough == (rows == 30)
    assert found.to_dict()["rows"] == rows
    if rows == 30:
        assert "% less error than" in found.says()
    else:
        assert not found.pays
        assert found.says().startswith("too few rows to say: ")
        assert "%" not in found.says()


def test_one_session_has_no_interval_and_no_verdict():
    rivals = fit_rivals(history(600, seed=1), SIMPLE)
    alone = history(60, seed=2).with_columns(session_id=pl.lit("s"))
    found = verdict([evaluate(told(), alone, rivals=rivals)])
    assert found.says().startswith("one session or prompt alone does not tell")
    assert not found.pays


def test_the_choice_is_the_untrained_unless_another_is_ahead_beyond_chance():
    rivals = fit_rivals(history(400, seed=1), SIMPLE)
    test = history(300, seed=2)
    survival, near, better = Fixed(110.0, 0.7), Fixed(109.0, 0.7), told()
    survival.name = "survival"
    ahead = verdict([evaluate(each, test, rivals=rivals) for each in (survival, better)])
    assert (ahead.own, ahead.choice) == ("rule", "rule")
    assert ahead.untrained.sign == 1
    same = verdict([evaluate(each, test, rivals=rivals) for each in (survival, near)])
    assert same.choice == "survival"
    assert same.to_dict()["choice"] == "survival"
    assert verdict([evaluate(near, test, rivals=rivals)]).choice == "fixed"


def test_rows_of_one_session_are_not_independent():
    frame = history(400, seed=3)
    repeated = pl.concat([frame.with_columns(session_id=pl.col("request_id"))] * 4)
    evaluation = evaluate(told(), repeated, rivals=fit_rivals(frame, ["residual_life"]))
    points, own = evaluation.points, evaluation.forecasts["rule"]
    other = evaluation.forecasts["residual_life"]
    gain, margin = gap(points, own, other, clusters=evaluation.clusters)
    same, narrow = gap(points, own, other, clusters=np.arange(len(repeated)))
    assert gain == same
    assert margin == pytest.approx(2 * narrow, rel=0.2)
    assert gap(points, own, other, clusters=np.zeros(len(repeated), dtype=int))[1] is None


def test_the_margin_is_that_of_drawing_the_sessions_anew():
    test = history(300, seed=4)
    evaluation = evaluate(told(), test, rivals=fit_rivals(history(400, seed=1), ["residual_life"]))
    points, own = evaluation.points, evaluation.forecasts["rule"]
    other = evaluation.forecasts["residual_life"]
    _, margin = gap(points, own, other, clusters=evaluation.clusters)
    at = points.groups()["steps"]
    sums = [
        np.bincount(points.row[at], points.weight[at] * np.abs(f.point - points.remaining)[at])
        for f in (own, other)
    ]
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, 300, 300) for _ in range(2000)]
    gains = [1 - sums[0][rows].sum() / sums[1][rows].sum() for rows in draws]
    low, high = np.quantile(gains, [0.025, 0.975])
    assert margin == pytest.approx((high - low) / 2, rel=0.15)


def test_clusters():
    rows = pl.DataFrame(
        {"session_id": ["a", None, "a", None, None], "prompt_id": ["p", "q", "r", "q", None]}
    )
    names = clusters(rows)
    assert names[0] == names[2] != names[1] == names[3] != names[4]
    assert sorted(set(names)) == [0, 1, 2]
    assert clusters(pl.DataFrame({"actual_length": [1, 2]})).tolist() == [0, 1]
