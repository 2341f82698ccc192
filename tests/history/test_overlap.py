"""Rows that stand in two histories are found by their sketch."""

import json

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime.cli.main import run
from sagellm_lifetime.history.overlap import MANY, SIZE, share_of, sketch
from sagellm_lifetime.workloads import generate


def rows(count, seed):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "arrival_time": np.sort(rng.uniform(0.0, 1e4, count)),
            "actual_length": rng.integers(1, 500, count),
            "prompt_length": rng.integers(1, 4000, count),
        }
    )


def test_the_share_is_estimated():
    a, b = rows(4000, 1), rows(4000, 2)
    assert len(sketch(a)) == SIZE
    assert share_of(sketch(a), b) == 0.0
    assert share_of(sketch(a), a.sample(fraction=1.0, shuffle=True, seed=3)) == 1.0
    half = pl.concat([a.head(2000), b])
    assert share_of(sketch(a), half) == pytest.approx(0.5, abs=0.15)


def test_a_sketch_survives_json_and_missing_values():
    a = rows(500, 1).with_columns(
        pl.when(pl.col("prompt_length") > 2000).then(None).otherwise("prompt_length").alias("x")
    )
    a = a.drop("prompt_length").rename({"x": "prompt_length"})
    assert share_of(json.loads(json.dumps(sketch(a))), a) == 1.0


def test_without_arrival_times_nothing_is_told():
    a = rows(500, 1).drop("arrival_time")
    assert sketch(a) == []
    assert share_of(sketch(rows(500, 1)), a) == 0.0


@pytest.mark.slow
def test_evaluate_has_no_verdict_on_the_rows_of_the_checkpoint(tmp_path, capsys):
    log, model = str(tmp_path / "log.parquet"), str(tmp_path / "model")
    generate("chat", 400, seed=5).write_parquet(log)
    generate("chat", 400, seed=6).write_parquet(tmp_path / "other.parquet")
    kind = ["--predictor-type", "survival"]
    assert run(["train", "--data-path", log, "--output-path", model, *kind], "lifetime") == 0
    capsys.readouterr()
    for path, seen in ((log, True), (str(tmp_path / "other.parquet"), False)):
        command = ["evaluate", "--checkpoint", model, "--data-path", path, "--json", "-"]
        assert run(command, "lifetime") == 0
        printed = capsys.readouterr()
        result = json.loads(printed.out)
        assert (result["settings"]["seen_before"] >= MANY) is seen
        assert (result["verdict"] is None) is seen
        assert ("no test on unseen rows" in printed.err) is seen
