"""The command ``merge``."""

from shutil import rmtree

import pytest

from sagellm_lifetime import (
    MergeError,
    PredictionRequest,
    create_predictor,
    load_predictor,
    merge_predictors,
)
from sagellm_lifetime import workloads as profiles
from sagellm_lifetime.predictor.increment import Increment


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    paths = []
    for i in range(3):
        frame = profiles.generate("chat", 120, seed=10 + i)
        paths.append(folder / f"part{i}")
        create_predictor("survival").fit(frame).save(paths[-1])
    return paths


def test_merge_adds_what_was_learned(cli, parts):
    done = cli("merge", *parts, "-o", "merged")
    assert done.code == 0
    assert "Merged 3 survival predictors" in done.out
    merged = load_predictor("merged")
    assert merged.lessons == sum(load_predictor(part).lessons for part in parts)
    assert merged.summary["rows"] == 360
    told = cli("merge", *parts[:2], "--output-path", "merged", "--json").json()
    assert told["completions"] == sum(told["merged"].values())
    assert cli("stats", "--checkpoint", "merged").code == 0


def test_what_cannot_be_merged_is_one_line(cli, refused, parts, tmp_path):
    create_predictor("orca").save(tmp_path / "orca")
    create_predictor("survival", seed=1).save(tmp_path / "seed")
    create_predictor("survival", max_nodes=70).save(tmp_path / "small")
    out = ("-o", "merged")
    assert "holds a 'orca' predictor, not 'survival'" in refused("merge", parts[0], "orca", *out)
    assert "another secret" in refused("merge", parts[0], "seed", *out)
    assert "max_nodes" in refused("merge", parts[0], "small", *out)
    assert "given twice" in refused("merge", parts[0], parts[0], *out)
    assert "two checkpoints or more" in refused("merge", parts[0], *out)
    assert "no such checkpoint" in refused("merge", parts[0], "absent", *out)
    load_predictor(parts[0]).save(tmp_path / "copy")
    assert "holds the same" in refused("merge", parts[0], "copy", *out)
    load = load_predictor(parts[1])
    load.save(tmp_path / "merged")
    assert cli("merge", *parts[:2], *out).code == 0  # a checkpoint there is replaced


def test_what_was_merged_already_is_not_merged_again(cli, refused, parts):
    assert cli("merge", *parts[:2], "-o", "both").code == 0
    assert cli("export", "--checkpoint", "both", "--output-path", "both.safetensors").code == 0
    for given in (("both", parts[0]), (parts[1], "both.safetensors")):
        told = refused("merge", *given, "-o", "again")
        assert "learned is in both" in told
        assert "already: use both" in told
    assert cli("merge", "both", parts[2], "-o", "all").code == 0
    assert "both" in refused("merge", "all", "both", "-o", "again")
    assert "already: use all" in refused("merge", "all", parts[0], "-o", "again")
    assert "is merged itself" in refused("merge", "both", parts[2], "-o", "both")
    assert load_predictor("both").lessons == sum(load_predictor(p).lessons for p in parts[:2])
    done = cli("merge", "both", parts[0], parts[2], "-o", "again")
    assert "is in both already, and counts once" in done.words
    assert load_predictor("again").lessons == load_predictor("all").lessons


LESSONS = (20, 30, 40)


@pytest.fixture
def lives(parts, tmp_path):
    """Three servers that started from the first part; the last without ``.base`` and ``.own``."""
    paths = [tmp_path / f"live{i}" for i in range(3)]
    for i, path in enumerate(paths):
        monday = load_predictor(parts[0])
        if i < 2:
            monday.save(tmp_path / f"live{i}.base")
        live = load_predictor(parts[0])
        increment = Increment(live, path) if i < 2 else None
        completions: list = []
        teacher = live.clone()
        teacher.hand_over_to(Queue(completions))
        for n in range(LESSONS[i]):
            teacher.predict(PredictionRequest(n, [], 0, 512, {"client_id": f"new{i}"}))
            teacher.update(n, 100 + i, 2.0)
        for completion in completions:
            live.learn(completion)
            if increment is not None:
                increment.learn(completion)
        if increment is not None:
            increment.save()
        live.save(path)
    return paths


class Queue:
    def __init__(self, completions):
        self.take = completions.append

    def counts(self):
        return {}


def test_servers_that_started_from_one_checkpoint(cli, parts, lives):
    monday, first = load_predictor(parts[0]), load_predictor(lives[0])
    assert first.lessons == monday.lessons + LESSONS[0]
    for given in (lives[:2], [parts[0], *lives[:2]], [lives[1], lives[0], parts[0]]):
        done = cli("merge", *given, "-o", "merged")
        assert done.code == 0, done.err
        merged = load_predictor("merged")
        assert merged.lessons == monday.lessons + sum(LESSONS[:2])
        assert merged.model.tables.count == merged.lessons
        assert "that several of them started from counts once" in done.words
    assert cli("merge", lives[0], parts[1], "-o", "other").code == 0  # shares nothing
    # What began as two is known to be in the third.
    assert "already: use merged" in cli("merge", "merged", parts[0], "-o", "again").err
    done = cli("merge", "merged", lives[1], "-o", "again")
    assert (done.code, load_predictor("merged").lessons) == (2, merged.lessons)


def test_what_a_merge_knows_of_a_server_that_goes_on(cli, refused, parts, lives):
    assert cli("merge", parts[0], parts[1], "-o", "week").code == 0
    week = load_predictor("week").lessons
    assert cli("merge", lives[0], "week", "-o", "all").code == 0, "its start is in week"
    assert load_predictor("all").lessons == week + LESSONS[0]
    told = refused("merge", "all", lives[1].with_name("live2"), "-o", "again")
    assert "share" in told
    assert "live2.base and live2.own" in told


def test_a_server_in_which_all_is_already(refused, parts, lives):
    for live in lives:
        told = refused("merge", parts[0], live, "-o", "merged")
        assert f"is in {live} already: use {live}" in told


def test_without_the_increments_it_says_what_is_lacking(cli, refused, lives, parts):
    # One of several may lack them: the others' are added to it.
    assert cli("merge", lives[0], lives[2], parts[0], "-o", "merged").code == 0
    started = load_predictor(parts[0]).lessons
    assert load_predictor("merged").lessons == started + LESSONS[0] + LESSONS[2]
    rmtree(lives[0].with_name("live0.own"))
    told = refused("merge", lives[0], lives[2], parts[0], "-o", "again")
    assert "share 120 completions, to be counted once" in told
    assert "live0.own" in told


def test_the_library_refuses_what_would_count_twice(lives, parts):
    states = [load_predictor(path) for path in (parts[0], lives[0])]
    with pytest.raises(MergeError, match="first state and second state share 120 completions"):
        merge_predictors(states)
