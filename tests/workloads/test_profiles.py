"""The workload profiles: deterministic, well formed, and as heavy-tailed as the real traces.

Comparisons with the traces themselves run where a checkout has them beside it; everything else
needs only what ships.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime.core.errors import LifetimeError, UnknownNameError
from sagellm_lifetime.core.protocol import FINISH_REASONS
from sagellm_lifetime.history import HISTORY_SCHEMA, read_history
from sagellm_lifetime.workloads import (
    PROFILES,
    describe,
    generate,
    regular,
    specification,
)
from sagellm_lifetime.workloads.endings import CAPS
from sagellm_lifetime.workloads.generate import COLUMNS

TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"
FILES = {
    "azure-conversation": "azure_conv.parquet",
    "mooncake-conversation": "mooncake_conversation.parquet",
    "reasoning": "servegen_reasoning.parquet",
    "chat": "servegen_chat.parquet",
    "coding-agent": "claude_code.parquet",
}
WORKLOADS = {
    **{name: (lambda n, seed, name=name: generate(name, n, seed=seed)) for name in PROFILES},
    "regular": regular,
    "specification": specification,
}


def plain(profile: str, n: int = 40_000, seed: int = 1) -> pl.DataFrame:
    """Return what the traces show: no aborts, no caps."""
    return generate(profile, n, seed=seed, abort_share=0, capped_share=0)


def trace(profile: str) -> pl.DataFrame:
    path = TRACES / FILES[profile]
    if not path.exists():
        pytest.skip(f"the real trace {path.name} is not beside this checkout")
    return pl.read_parquet(path)


def distance(one: pl.Series, two: pl.Series) -> float:
    """Return the Kolmogorov–Smirnov distance of two samples."""
    at = np.union1d(one.to_numpy(), two.to_numpy())
    below = [np.searchsorted(np.sort(s.to_numpy()), at, side="right") / len(s) for s in (one, two)]
    return float(np.abs(below[0] - below[1]).max())


def neighbours(frame: pl.DataFrame, group: str) -> float:
    """Return the rank correlation of the lengths of consecutive requests of a group."""
    pairs = frame.with_columns(before=pl.col("actual_length").shift().over(group))
    pairs = pairs.drop_nulls("before")
    return float(pairs.select(pl.corr("actual_length", "before", method="spearman")).item())


@pytest.mark.parametrize("name", WORKLOADS)
def test_same_seed_same_history(name):
    make = WORKLOADS[name]
    assert make(500, 3).equals(make(500, 3))
    assert not make(500, 3).equals(make(500, 4))


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("n", [0, 1, 2, 3000])
def test_history_format(name, n):
    frame = WORKLOADS[name](n, 0)
    assert frame.height == n
    extra = ["prefix_hashes"] if name == "mooncake-conversation" else []
    assert frame.schema == {name: HISTORY_SCHEMA[name] for name in [*COLUMNS, *extra]}
    assert frame["request_id"].n_unique() == n
    always = ["arrival_time", "prompt_length", "actual_length", "actual_time", "finish_reason"]
    assert frame.select(always).null_count().sum_horizontal().sum() == 0
    assert frame["arrival_time"].is_sorted()
    assert frame["arrival_time"].is_finite().all()
    assert (frame["arrival_time"] >= 0).all()
    assert (frame["prompt_length"] >= 1).all()
    assert (frame["actual_length"] >= 1).all()
    assert (frame["actual_time"] > 0).all()
    assert (frame["actual_length"] <= frame["max_length"]).all()  # nulls are ignored
    assert set(frame["finish_reason"]) <= set(FINISH_REASONS)


@pytest.mark.parametrize("name", WORKLOADS)
def test_read_as_a_history_without_a_bad_row(name, tmp_path):
    frame = WORKLOADS[name](2000, 0)
    frame.write_parquet(tmp_path / "history.parquet")
    read = read_history(tmp_path / "history.parquet")
    assert read.skipped == 0
    assert read.frame.height == 2000


@pytest.mark.parametrize("profile", PROFILES)
def test_endings_are_what_the_options_say(profile):
    frame = generate(profile, 20_000, seed=2, abort_share=0.05, capped_share=0.3)
    free = plain(profile, 20_000, seed=2)
    assert (frame["actual_length"] <= free["actual_length"]).all()
    capped = frame.filter(pl.col("max_length").is_not_null())
    assert capped.height / frame.height == pytest.approx(0.3, abs=0.02)
    assert set(capped["max_length"]) <= set(CAPS)
    by_reason = frame.with_columns(free=free["actual_length"]).partition_by(
        "finish_reason", as_dict=True
    )
    assert (by_reason[("stop",)]["actual_length"] == by_reason[("stop",)]["free"]).all()
    assert (by_reason[("length",)]["actual_length"] == by_reason[("length",)]["max_length"]).all()
    aborted = by_reason[("abort",)]
    assert (aborted["actual_length"] < aborted["free"]).all()
    assert 0.03 < aborted.height / frame.height < 0.06  # one-token answers cannot be cut short


@pytest.mark.parametrize("profile", PROFILES)
def test_without_options_nothing_is_censored(profile):
    frame = plain(profile, 1000)
    assert frame["max_length"].is_null().all()
    assert set(frame["finish_reason"]) == {"stop"}


@pytest.mark.parametrize("profile", PROFILES)
def test_as_heavy_tailed_as_the_stored_figures(profile):
    lengths = plain(profile)["actual_length"]
    summary = describe(profile)["summary"]["actual_length"]
    for key in ("q50", "q90", "q99"):
        generated = lengths.quantile(float(key[1:]) / 100)
        assert generated == pytest.approx(summary[key], rel=0.12, abs=1), key
    assert lengths.mean() == pytest.approx(summary["mean"], rel=0.1)


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "coding-agent"])
def test_arrivals_have_the_rate_and_the_burstiness(profile):
    arrivals = describe(profile)["arrivals"]
    gaps = plain(profile)["arrival_time"].diff().drop_nulls()
    assert gaps.mean() == pytest.approx(arrivals["gap_mean_s"], rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(arrivals["gap_cv"], rel=0.15)


def test_rate_scale_changes_the_clock_only():
    slow, fast = generate("chat", 500), generate("chat", 500, rate_scale=4)
    assert np.allclose(slow["arrival_time"], fast["arrival_time"] * 4, atol=1e-5)
    assert slow.drop("arrival_time").equals(fast.drop("arrival_time"))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("column", ["actual_length", "prompt_length"])
def test_close_to_the_real_trace(profile, column):
    assert distance(trace(profile)[column], plain(profile)[column]) < 0.06


@pytest.mark.parametrize("profile", ["reasoning", "chat"])
def test_clients_differ_as_the_real_ones_do(profile):
    real = trace(profile).group_by("client_id").agg(pl.len(), pl.median("actual_length"))
    real = real.sort("len", descending=True).head(20)
    made = plain(profile).group_by("client_id").agg(pl.len(), pl.median("actual_length"))
    ranked = [f"c{rank:02d}" for rank in range(1, 21)]
    made = pl.DataFrame({"client_id": ranked}).join(made, on="client_id", maintain_order="left")
    for column in ("actual_length", "len"):
        logs = np.log(real[column].to_numpy()), np.log(made[column].to_numpy())
        assert np.corrcoef(*logs)[0, 1] > 0.97, column


@pytest.mark.parametrize("profile", ["reasoning", "chat"])
def test_clients_differ_by_the_stored_medians(profile):
    groups = {group["name"]: group for group in describe(profile)["groups"]}
    made = plain(profile).group_by("client_id").agg(pl.median("actual_length"))
    medians = dict(made.iter_rows())
    tops = [name for name in groups if name != "rest"]
    assert len(tops) == 20
    wanted = np.log([groups[name]["output_median"] for name in tops])
    assert np.corrcoef(wanted, np.log([medians[name] for name in tops]))[0, 1] > 0.97
    others = [name for name in medians if name.startswith("rest")]
    assert len(others) == groups["rest"]["members"]


def test_coding_sessions_are_sessions():
    frame = plain("coding-agent")
    sessions = frame.sort("session_id", "turn")
    facts = describe("coding-agent")["sessions"]
    by = sessions.group_by("session_id").agg(pl.len(), pl.col("turn").n_unique().alias("turns"))
    assert (by["len"] == by["turns"]).all()
    assert by["len"].mean() == pytest.approx(facts["size_mean"], rel=0.2)
    grown = sessions.select(
        pl.col("prompt_length", "arrival_time").diff().over("session_id")
    ).drop_nulls()
    assert (grown >= 0).select(pl.all().all()).row(0) == (True, True)
    near = facts["output_correlation"]["measured_by_lag"]["1"]
    assert neighbours(sessions, "session_id") == pytest.approx(near, abs=0.06)
    kinds = set(frame["client_id"])
    assert kinds == {group["name"] for group in describe("coding-agent")["groups"]}
    assert set(frame.filter(pl.col("turn") == 0)["client_id"]) == {"text"}


def test_mooncake_conversations_share_prompt_blocks():
    frame = plain("mooncake-conversation", 10_000)
    blocks = frame["prefix_hashes"]
    assert (blocks.list.len() == -(-frame["prompt_length"] // 512)).all()
    assert (blocks.list.first() == 0).all()
    talk = frame.with_columns(talk=blocks.list.get(1)).sort("talk", "arrival_time")
    near = describe("mooncake-conversation")["sessions"]["output_correlation"]["persistent"]
    assert neighbours(talk, "talk") == pytest.approx(near, abs=0.06)
    one = max(talk.partition_by("talk"), key=len)["prefix_hashes"].to_list()
    for before, after in pairwise(one):
        full = len(before) - 1
        assert before[:full] == after[:full]
        assert before[full] not in after


def test_mooncake_without_conversations_in_sight():
    frame = plain("mooncake-conversation", 100)
    assert frame.select("client_id", "session_id", "turn").null_count().row(0) == (100, 100, 100)


@pytest.mark.parametrize("profile", PROFILES)
def test_described_with_its_source(profile):
    facts = describe(profile)
    assert facts["citation"]
    assert facts["licence"] in {"CC-BY-4.0", "Apache-2.0"}
    assert facts["url"].startswith("https://")
    assert set(facts["invented"]) == {"finish_reason", "max_length", "actual_time"}
    facts["summary"].clear()
    assert describe(profile)["summary"]  # a copy each time


def test_regular_work_is_regular():
    frame = regular(6000, seed=1)
    median = pl.col("actual_length").median().over("client_id")
    error = frame.select((pl.col("actual_length") - median).abs()).to_series()
    assert frame["client_id"].n_unique() == 12
    assert error.mean() < 8
    assert (error <= 0.1 * frame["actual_length"]).mean() > 0.95


def test_specification_data_is_the_specification_s():
    frame = specification(20_000, seed=1)
    assert frame["max_length"].min() == 50
    assert frame["max_length"].max() == 500
    share = frame["actual_length"] / frame["max_length"]
    assert share.max() < 0.9
    assert share.min() > 0.6 - 1 / 50
    guess = (frame["max_length"] * 0.75 - frame["actual_length"]).abs()
    assert guess.mean() == pytest.approx(20.6, abs=0.6)


@pytest.mark.parametrize(
    "options", [{"n": -1}, {"rate_scale": 0.0}, {"abort_share": 1.5}, {"capped_share": -0.1}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(LifetimeError):
        generate("chat", **{"n": 10, **options})


def test_unknown_profile_names_the_known():
    with pytest.raises(UnknownNameError, match="azure-conversation"):
        describe("nonsense")
