"""The command ``merge``."""

import pytest

from sagellm_lifetime import create_predictor, load_predictor
from sagellm_lifetime import workloads as profiles


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
        assert "what was merged into it is in" in told
    assert cli("merge", "both", parts[2], "-o", "all").code == 0
    assert "both" in refused("merge", "all", "both", "-o", "again")
    assert "would count twice" in refused("merge", "all", parts[0], "-o", "again")
    assert "is merged itself" in refused("merge", "both", parts[2], "-o", "both")
    assert load_predictor("both").lessons == sum(load_predictor(p).lessons for p in parts[:2])


def test_a_common_start_is_said(cli, parts, tmp_path):
    for i, path in enumerate(parts[:2]):
        predictor = load_predictor(path)
        predictor.summary["started_from"] = "0" * 64
        predictor.save(tmp_path / f"live{i}")
    done = cli("merge", "live0", "live1", "-o", "merged")
    assert done.code == 0
    assert "started from one checkpoint" in done.words
