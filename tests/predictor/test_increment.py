"""What a predictor learns after a checkpoint is known by its lineage, and kept apart from it."""

import numpy as np
import pytest

from sagellm_lifetime import BackgroundLearner, create_predictor, load_predictor
from sagellm_lifetime.predictor.distinct import distinct, load_state
from sagellm_lifetime.predictor.increment import BASE, OWN, beside, increment_parts
from sagellm_lifetime.predictor.lineage import (
    LINEAGE,
    MOST_STRETCHES,
    contains,
    joined,
    lineage_of,
)
from sagellm_lifetime.predictor.merging import merge_predictors
from sagellm_lifetime.testing.common import teach
from sagellm_lifetime.workloads import generate

SOON = 60.0


def test_a_lineage_goes_with_every_copy(tmp_path):
    predictor = create_predictor("survival")
    assert predictor.lineage == {}
    taught = teach(predictor, 4)
    assert taught is None
    (name,) = predictor.lineage
    count = predictor.lessons
    predictor.save(tmp_path / "a")
    loaded, twin = load_predictor(tmp_path / "a"), predictor.clone()
    assert loaded.lineage == twin.lineage == {name: count}
    for each in (predictor, loaded, twin):
        teach(each, 4, seed=7, name="more")
    assert predictor.lineage == {name: predictor.lessons}
    for each in (loaded, twin):
        assert each.lineage[name] == count
        assert sum(each.lineage.values()) == each.lessons
        assert contains(each.lineage, {name: count})
    assert set(loaded.lineage) & set(twin.lineage) == {name}


def test_fits_of_one_history_are_one_stretch():
    log = generate("chat", 120, seed=3)
    one, two = (create_predictor("survival").fit(log) for _ in range(2))
    other = create_predictor("survival").fit(log.head(100))
    assert one.lineage == two.lineage
    assert not contains(one.lineage, other.lineage)
    one.fit(log.head(100))
    assert one.lineage == other.lineage


@pytest.mark.parametrize("value", [None, 3, "a", {"a": -1}, {"a": 1.5}, {3: 3}, {"a" * 65: 2}])
def test_a_lineage_of_a_file_that_is_none(value):
    assert lineage_of(value) == {}
    predictor = create_predictor("survival")
    teach(predictor, 3)
    predictor.summary = {LINEAGE: value}
    assert list(predictor.lineage.values()) == [predictor.lessons]


def test_a_lineage_is_bounded():
    many = {f"{n}": n + 1 for n in range(MOST_STRETCHES + 50)}
    kept = lineage_of(many)
    assert len(kept) == len(joined([many, {"x": 1}])) == MOST_STRETCHES
    assert min(kept.values()) == 51


def test_learners_that_started_from_one_checkpoint_merge_to_it_and_both(tmp_path):
    create_predictor("survival").fit(generate("chat", 120, seed=3)).save(tmp_path / "monday")
    monday = load_predictor(tmp_path / "monday")
    for i in range(2):
        for run in range(2):  # the second goes on where the first ended
            predictor = load_predictor(tmp_path / "monday")
            path = tmp_path / f"live{i}"
            with BackgroundLearner(predictor, path, every=3600.0, keeps_increment=True) as learner:
                teach(predictor, 5, seed=10 * i + run, name=f"{i}{run}")
                assert learner.drain(SOON)
    paths = [tmp_path / name for name in ("live0", "live1")]
    lives = [load_predictor(path) for path in paths]
    parts = [increment_parts(path, live) for path, live in zip(paths, lives, strict=True)]
    for live, (base, own) in zip(lives, parts, strict=True):
        assert base.lineage == monday.lineage
        assert joined([base.lineage, own.lineage]) == live.lineage
        assert own.lessons == live.lessons - monday.lessons > 0
    kept, notes = distinct([load_state(path) for path in (*paths, tmp_path / "monday")])
    merged = merge_predictors([state.predictor for state in kept])
    assert merged.lessons == sum(live.lessons for live in lives) - monday.lessons
    assert len(notes) == 2
    by_hand = merge_predictors([monday, parts[0][1], parts[1][1]])
    for name, array in by_hand.learned_state().items():
        np.testing.assert_allclose(merged.learned_state()[name], array, atol=1e-5, err_msg=name)


def test_an_increment_that_is_not_whole_is_not_continued(tmp_path):
    create_predictor("survival").fit(generate("chat", 120, seed=3)).save(tmp_path / "monday")
    path = tmp_path / "live"
    for run in range(2):
        predictor = load_predictor(tmp_path / "monday")
        # The first run has no increment, as one of an earlier version.
        with BackgroundLearner(predictor, path, every=3600.0, keeps_increment=run == 1) as learner:
            teach(predictor, 5, seed=run, name=f"{run}")
            assert learner.drain(SOON)
    assert not beside(path, OWN).exists()
    assert not beside(path, BASE).exists()
    assert increment_parts(path, load_predictor(path)) is None


def test_without_a_path_there_is_nothing_beside():
    predictor = create_predictor("survival").fit(generate("chat", 120, seed=3))
    with BackgroundLearner(predictor, keeps_increment=True) as learner:
        assert not beside(learner.path, BASE).exists()
