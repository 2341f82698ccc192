"""A history fitted in parts is that of one fit, but for rounding and the order of learning."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import HistoryError, PredictionRequest, create_predictor, load_predictor
from sagellm_lifetime import workloads as profiles
from sagellm_lifetime.cli.main import run
from sagellm_lifetime.history import History, read_history
from sagellm_lifetime.predictor.ray_fit import RayFit
from sagellm_lifetime.predictor.sharded import Outline, Plan, finish, fit_part, outline


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return read_history(profiles.generate("chat", 3000, seed=5)).frame


def in_parts(name: str, rows: pl.DataFrame, parts: int = 3, **options):
    like = create_predictor(name, seed=0, **options)
    shards = [rows[i::parts] for i in range(parts)]
    plan = Plan.of([outline(shard) for shard in shards])
    return finish(like, (fit_part(shard, like, plan) for shard in shards), plan)


def survival(predictor, rows: pl.DataFrame) -> np.ndarray:
    found = []
    for i, row in enumerate(rows.iter_rows(named=True)):
        features = {key: row[key] for key in ("client_id", "model") if row.get(key)}
        request = PredictionRequest(i, [], 0, row.get("max_length"), features)
        distribution = predictor.predict(request).distribution
        found.append([distribution.survival(n) for n in (20, 60, 150, 400, 1000)])
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baseline", "orca", "linear", "survival"])
def test_parts_give_what_one_fit_gives(name: str, rows: pl.DataFrame) -> None:
    merged = in_parts(name, rows)
    alone = create_predictor(name, seed=0).fit(History(rows))
    assert merged.lessons == len(rows) == alone.lessons
    assert merged.summary["rows"] == 3000
    gap = np.abs(survival(merged, rows[::60]) - survival(alone, rows[::60]))
    # One fit sees the parts one after the other: windows and fading sums are of its newest rows.
    assert gap.mean() < (0.06 if name == "baseline" else 0.03)
    pace = [each.get_metrics()["seconds_per_token"] for each in (merged, alone)]
    assert pace[0] == pytest.approx(pace[1], rel=0.1)


@pytest.mark.slow
def test_a_network_is_trained_on_a_sample(rows: pl.DataFrame) -> None:
    pytest.importorskip("torch")
    merged = in_parts("lstm", rows[:600], hidden_size=8, num_layers=1, epochs=1)
    assert merged.model.runner is not None
    assert merged.lessons == 600
    assert merged.model.training


def test_the_default_decides_on_its_network_from_the_sample(rows: pl.DataFrame) -> None:
    merged = in_parts("auto", rows[:300])
    assert merged.model.runner is None
    assert merged.model.decision == "no network: 240 rows to train on, 2,000 needed"


def test_the_command_tells_what_a_fit_in_parts_decided(rows, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        RayFit, "run", lambda fit, source, step: in_parts(fit.predictor, rows[:300])
    )
    line = ["train", "--data-path", "logs", "--ray", "auto", "--output-path", str(tmp_path / "t")]
    assert run(line, "sagellm-lifetime") == 0
    assert "no network: 240 rows" in capsys.readouterr().out
    assert load_predictor(tmp_path / "t").summary["network"].startswith("no network: 240 rows")


def test_the_newest_rows_calibrate_and_sessions_stay_whole(rows: pl.DataFrame) -> None:
    plan = Plan.of([outline(rows)])
    assert plan.cut is not None
    part = fit_part(rows, create_predictor("orca", seed=0), plan)
    assert 500 <= len(part.newest) <= 800
    if "session_id" in rows.columns:
        names = part.newest["session_id"].drop_nulls().unique()
        older = rows.filter(rows["arrival_time"] < part.newest["arrival_time"].min())
        assert not set(names) & set(older["session_id"].drop_nulls())


def test_a_session_without_times_is_on_one_side(rows: pl.DataFrame) -> None:
    named = pl.Series("session_id", [f"s{i % 300}" for i in range(len(rows))])
    frame = rows.drop("arrival_time").with_columns(named)
    plan, like = Plan.of([outline(frame)]), create_predictor("orca", seed=0)
    sides = [set(fit_part(frame[i::2], like, plan).newest["session_id"]) for i in range(2)]
    assert sides[0]
    assert all(
        len(fit_part(frame[i::2], like, plan).newest) % 5 == 0 for i in range(2)
    )  # whole sessions, of ten rows each


def test_without_times_a_share_of_the_sessions_calibrates(rows: pl.DataFrame) -> None:
    frame = rows.drop("arrival_time")
    plan = Plan.of([outline(frame)])
    assert plan.cut is None
    newest = fit_part(frame, create_predictor("orca", seed=0), plan).newest
    assert 300 <= len(newest) <= 900


def test_no_rows_is_one_line() -> None:
    nothing = Outline(0, 0, [], np.zeros(172), np.zeros(0))
    with pytest.raises(HistoryError, match="no rows"):
        Plan.of([nothing])


# -- on a cluster ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """Start a Ray cluster of two workers on this machine."""
    ray = pytest.importorskip("ray", reason="needs ray: pip install 'isagellm-lifetime[ray]'")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200 << 20,
    )
    yield "auto"
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_on_a_cluster_of_two_workers(cluster, rows, tmp_path, capsys) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for i in range(3):
        rows[i * 1000 : (i + 1) * 1000].write_parquet(folder / f"part{i}.parquet")
    fitted = RayFit(cluster, "survival", {"seed": 0}, rows_of_part=1000).run(str(folder))
    assert fitted.summary["parts"] == 3
    assert fitted.lessons == 3000
    alone = create_predictor("survival", seed=0).fit(History(rows))
    gap = np.abs(survival(fitted, rows[::60]) - survival(alone, rows[::60]))
    assert gap.mean() < 0.03
    # Other logs, one file a task; and the command.
    rows[:400].write_ndjson(tmp_path / "a.jsonl")
    rows[400:800].write_ndjson(tmp_path / "b.jsonl")
    out = str(tmp_path / "trained")
    line = ["train", "--data-path", f"{tmp_path}/*.jsonl", "--ray", cluster, "--output-path", out]
    assert run(line, "sagellm-lifetime") == 0, capsys.readouterr()
    assert load_predictor(out).lessons == 800
    (tmp_path / "a.jsonl").write_text('{"actual_length": -5}\n')
    assert run(line, "sagellm-lifetime") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert "actual_length" in told


def test_options_that_a_cluster_does_not_take(capsys, tmp_path) -> None:
    line = ["train", "--data-path", "x.csv", "--output-path", str(tmp_path / "t"), "--ray", "auto"]
    for more in (["--query", "SELECT 1"], ["--map", "a=b"], ["--on-bad-rows", "skip"]):
        assert run([*line, *more], "sagellm-lifetime") == 2
        assert "--ray" in capsys.readouterr().err
