"""The rivals: against brute force, and against each other on data of known difficulty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from evaluation_stubs import Fixed, history, remaining_is_current

from sagellm_lifetime.evaluation.floor import noise_floor, skill
from sagellm_lifetime.evaluation.points import draw_points
from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.evaluation.rivals import RIVALS, ConstantMedian, ResidualLife, fit_rivals
from sagellm_lifetime.evaluation.rivals.kaplan_meier import kaplan_meier
from sagellm_lifetime.evaluation.scoring import score_groups
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.workloads import PROFILES, generate

TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"
LEAKY_RIVALS = ["constant_median", "residual_life"]


def test_kaplan_meier_by_hand():
    curve = kaplan_meier(np.array([2, 3, 3, 5]), np.array([True, True, False, True]))
    assert curve.at.tolist() == [0, 2, 3, 5]
    assert curve.survival == pytest.approx([1.0, 0.75, 0.75 * 2 / 3, 0.0])


def test_residual_life_is_the_median_of_those_alive():
    length = np.random.default_rng(0).lognormal(4, 1, 3001).astype(int) + 1
    curve = kaplan_meier(length, np.ones(len(length), dtype=bool))
    for age in (0, 10, 100, 300):
        left = np.sort(length[length > age]) - age
        for level in (0.1, 0.5, 0.9):
            found = curve.residual(np.array([age]), np.array([level]))[0, 0]
            assert found == left[int(np.ceil(level * len(left) - 1e-9)) - 1]


def test_residual_life_goes_on_past_the_longest_length():
    curve = kaplan_meier(np.arange(1, 101), np.ones(100, dtype=bool))
    found = curve.residual(np.array([90, 100, 1000, 100_000]), np.array([0.05, 0.5, 0.95]))
    assert (found >= 1).all()
    assert (np.diff(found, axis=1) >= 0).all()


def test_censored_rows_make_lengths_longer_not_shorter():
    rng = np.random.default_rng(0)
    true = rng.exponential(200, 4000).astype(int) + 1
    stop = rng.exponential(300, 4000).astype(int) + 1
    seen = np.minimum(true, stop)
    reason = np.where(true <= stop, "stop", "abort")
    rival = ConstantMedian()
    rival.fit(pl.DataFrame({"actual_length": seen, "finish_reason": reason}))
    frame = pl.DataFrame({"actual_length": true})
    points = draw_points(frame)
    median = rival.forecast(frame, points).point[points.groups()["admission"]][0]
    assert median == pytest.approx(np.median(true), rel=0.08)
    assert median > 1.2 * np.median(seen)


def test_rivals_respect_the_cap():
    frame = history(300, max_length=[60] * 300).with_columns(
        pl.col("actual_length").clip(upper_bound=60)
    )
    points = draw_points(frame)
    for rival in fit_rivals(history(300, seed=1)):
        found = rival.forecast(frame, points)
        assert (found.point + points.age <= 60).all()
        assert (found.point >= 1).all()


def test_rivals_are_ordered_as_the_data_says():
    """The prompt length explains half of it: boosting wins, and its intervals hold."""
    train, test = history(2500, seed=1), history(600, seed=2)
    found = evaluate(Fixed(), test, rivals=fit_rivals(train)).to_dict()["baselines"]
    assert set(found) == set(RIVALS)
    boosted, residual, constant = (
        found[name]["steps"]["mae"] for name in ("lightgbm", "residual_life", "constant_median")
    )
    assert boosted < 0.92 * residual
    assert residual < constant
    for name in ("lightgbm", "residual_life"):
        assert 0.8 < found[name]["steps"]["coverage_90"] < 0.95
        assert found[name]["steps"]["confidence_ece"] < 0.1


def test_boosting_takes_names_text_and_what_it_never_saw():
    n = 600
    rng = np.random.default_rng(0)
    client = rng.choice(["short", "long"], n)
    extra = {
        "client_id": client,
        "model": [None] * n,
        "prompt_text": [None if i % 7 == 0 else f"Write a {c} story" for i, c in enumerate(client)],
        "prefix_hashes": [[i % 3, i] if i % 2 else None for i in range(n)],
        "actual_length": np.where(client == "short", 20, 400) + rng.integers(0, 10, n),
    }
    (rival,) = fit_rivals(history(n, **extra), ["lightgbm"])
    test = history(n, seed=3, **extra)
    points = draw_points(test)
    found = score_groups(points, rival.forecast(test, points))["admission"]["mae"]
    assert found < 45  # a constant misses by 190
    bare = test.select("actual_length", client_id=pl.lit("new"))
    assert np.isfinite(rival.forecast(bare, points).point).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILES)
def test_remaining_is_current_never_beats_the_baselines_on_a_profile(name):
    _rule_loses(generate(name, 3000, seed=5))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["azure_conv", "mooncake_conversation", "servegen_reasoning"])
def test_remaining_is_current_never_beats_the_baselines_on_a_trace(file):
    path = TRACES / f"{file}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    _rule_loses(pl.read_parquet(path))


def _rule_loses(frame: pl.DataFrame) -> None:
    """Check that the rule that wins the specification's benchmark loses at independent ages."""
    parts = split(frame)
    rivals = fit_rivals(parts.train, LEAKY_RIVALS)
    found = evaluate(remaining_is_current(), parts.test, rivals=rivals, max_rows=1500).to_dict()
    for rival in found["baselines"].values():
        for group in ("admission", "steps"):
            assert found[group]["mae"] > rival[group]["mae"]
            assert found[group]["within_10pct"] < 0.3


def test_noise_floor_of_known_noise():
    """Samples uniform on the prompt's base +- 20: the floor is the error of a median of three."""
    rng = np.random.default_rng(0)
    base = np.repeat(rng.integers(100, 400, 500), 4)
    noise = rng.integers(-20, 21, 2000)
    frame = pl.DataFrame(
        {"prompt_id": np.repeat(np.arange(500), 4).astype(str), "actual_length": base + noise}
    )
    block = noise.reshape(500, 4)
    error = np.mean(
        [np.abs(np.median(np.delete(block, i, 1), axis=1) - block[:, i]) for i in range(4)]
    )
    floor = noise_floor(frame)
    assert floor["n"] == 2000
    assert floor["mae"] == pytest.approx(error)


def test_noise_floor_needs_three_samples_of_one_model():
    two = pl.DataFrame({"prompt_id": ["a", "a", "b"], "actual_length": [1, 2, 3]})
    assert noise_floor(two) is None
    assert noise_floor(two.drop("prompt_id")) is None
    many = pl.DataFrame(
        {"prompt_id": ["a"] * 3, "model": ["x", "y", "z"], "actual_length": [1, 2, 3]}
    )
    assert noise_floor(many) is None


def test_skill_is_reported_where_there_is_a_floor():
    length = np.repeat(np.random.default_rng(0).integers(20, 400, 100), 4) + np.arange(400) % 4
    frame = history(400, actual_length=length).with_columns(prompt_id=pl.int_range(400) // 4)
    rival = ConstantMedian()
    rival.fit(frame)
    found = evaluate(Fixed(), frame, rivals=[rival]).to_dict()
    assert found["baselines"]["constant_median"]["admission"]["skill"] == 0.0
    assert skill(30.0, 50.0, {"mae": 10.0}) == 0.5
    assert skill(10.0, 50.0, {"mae": 10.0}) == 1.0


def test_skill_looks_at_the_rows_whose_floor_is_known():
    """Half of the rows have one sample and are easier: they must not enter the skill."""
    length = np.repeat([100, 7], 200) + np.arange(400) % 4
    again = pl.when(pl.int_range(400) < 200).then(pl.int_range(400) // 4)
    frame = history(400, actual_length=length).with_columns(prompt_id=again)
    rival = ConstantMedian()
    rival.fit(frame.head(150))
    found = evaluate(Fixed(), frame, rivals=[rival])
    own, constant = (found.scores[name]["admission"] for name in ("fixed", rival.name))
    median = found.forecasts[rival.name].point[found.points.groups()["admission"]][0]
    assert found.floor["n"] == 200
    assert constant["mae_repeated"] == pytest.approx(np.abs(length[:200] - median).mean())
    assert constant["mae"] == pytest.approx(np.abs(length - median).mean())
    assert own["skill"] == skill(own["mae_repeated"], constant["mae_repeated"], found.floor)
    part = evaluate(Fixed(), frame, rivals=[rival], max_rows=300)
    assert 0 < part.floor["n"] < 200
    assert part.scores[rival.name]["admission"]["mae_repeated"] < 10 < constant["mae"]


def test_residual_life_beats_the_constant_on_heavy_tails():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"actual_length": rng.lognormal(5, 1.2, 4000).astype(int) + 1})
    parts = split(frame)
    rivals = fit_rivals(parts.train, LEAKY_RIVALS)
    points = draw_points(parts.test)
    constant, residual = (score_groups(points, r.forecast(parts.test, points)) for r in rivals)
    assert residual["steps"]["mae"] < constant["steps"]["mae"]
    assert isinstance(rivals[1], ResidualLife)
