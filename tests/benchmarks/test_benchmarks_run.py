"""Every benchmark script runs, in sizes that say nothing, and prints its table."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import PREDICTORS

pytest.importorskip("torch")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the scripts were run from their folder; the number of threads is put back."""
    import torch

    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    torch.set_num_threads(threads)


def script(name: str) -> ModuleType:
    return import_module(name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with one small trace."""
    from sagellm_lifetime.workloads import generate

    (tmp_path / "traces").mkdir()
    generate("coding-agent", 240).write_parquet(tmp_path / "traces" / "claude_code.parquet")
    return tmp_path


def test_latency(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    latency = script("latency")
    monkeypatch.setattr(latency, "RUNNING", latency.RUNNING)  # put back afterwards
    target, page = tmp_path / "latency.json", tmp_path / "latency.md"
    latency.main(["--quick", "--json", str(target), "--output", str(page)])
    written = page.read_text()
    for title in latency._SHORT.values():
        assert f"| {title} " in written
    printed = capsys.readouterr().out
    found = json.loads(target.read_text())
    for title in latency.TITLES.values():
        assert title in printed
    assert {t["name"] for t in found["timings"] if t["case"] == "first"} == {
        *PREDICTORS,
        "reference-lstm",
        "reference-transformer",
    }
    assert not found["imports"][0]["torch"]
    assert found["imports"][0]["median_s"] < 0.3


def test_latency_cases_time_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full context before a first prediction, a network run per chunk, none between."""
    latency = script("latency")
    predictor = latency.trained("lstm", latency.history(), epochs=1)
    ran: list[int] = []
    runner = predictor.model.runner
    monkeypatch.setattr(
        predictor.model,
        "runner",
        lambda steps, *rest: ran.append(len(steps)) or runner(steps, *rest),
    )
    counted: dict[str, list[int]] = {}

    def timed(call: Any, *arguments: Any) -> float:
        ran.clear()
        call(*arguments)
        counted[case].extend([len(ran)] if case != "first" else ran)
        return 1.0

    monkeypatch.setattr(latency, "timed", timed)
    for case in ("first", "later", "chunk", "batch", "quantiles"):
        counted[case] = []
        list(latency.CASES[case](predictor, latency.Calls(), 8))
    assert set(counted["first"]) == {latency.OF_SESSION + latency.OF_CLIENT + 1}
    assert set(counted["chunk"]) == {1}
    assert set(counted["later"]) == set(counted["batch"]) == set(counted["quantiles"]) == {0}
    assert predictor.get_metrics()["running"] == 0


@pytest.mark.slow
def test_online_learning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "online.json"
    script("online_learning").main(
        ["--quick", "--predictors", "baseline", "lstm", "--json", str(target)]
    )
    found = json.loads(target.read_text())
    assert {(each["predictor"], each["learns"]) for each in found["update"]} == {
        (name, learns) for name in ("baseline", "lstm") for learns in ("inline", "elsewhere")
    }
    late = {each["learns"]: each for each in found["late"]}
    assert set(late) == {"nothing", "inline", "elsewhere"}
    assert late["elsewhere"]["swaps"] > 0, "nothing was swapped in while it was measured"
    assert late["elsewhere"]["training_steps"] > 0
    assert late["nothing"]["training_steps"] == 0
    (kept,) = found["kept"]
    assert kept["predictor"] == "lstm"
    assert kept["swaps"] == 3
    assert kept["cpu"] > 0.0
    assert "| lstm, learns elsewhere" in capsys.readouterr().out


def test_specification_benchmark(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sagellm_lifetime.evaluation import specification_benchmark as specification

    for name in ("SAMPLES", "samples"):  # put back afterwards
        monkeypatch.setattr(specification, name, getattr(specification, name))
    names = ["baseline", "lstm", "reference-lstm", "reference-transformer", "reference-baseline"]
    script("specification_benchmark").main(["--seeds", "1", "--samples", "40", "--only", *names])
    printed = capsys.readouterr().out
    for name in (*names, "Bayes floor, exact", "rule: remaining = current"):
        assert f"| {name} " in printed


@pytest.mark.slow
def test_sequence_ablation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ablation = script("sequence_ablation")
    target = tmp_path / "ablation.json"
    ablation.main(
        ["--data", str(tmp_path), "--rows", "160", "--epochs", "1", "--json", str(target)]
    )
    captured = capsys.readouterr()
    assert "claude_code: skipped" in captured.err
    found = json.loads(target.read_text())
    assert {(each["network"], each["variant"]) for each in found} == {
        ("–", "survival"),
        *(
            (network, variant)
            for network in ("lstm", "transformer")
            for variant in ("full", "admission only", "shuffled", "random weights")
        ),
    }
    assert "| lstm, full " in captured.out


def test_results(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = script("results")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    page = tmp_path / "docs" / "results.md"
    # fmt: off
    results.main([
        "--data", str(data), "--output", str(page), "--jobs", "1", "--max-rows", "40",
        "--predictors", "survival", "baseline",
    ])
    # fmt: on
    text = page.read_text(encoding="utf-8")
    assert "python benchmarks/results.py --data" in text
    assert "### claude_code" in text
    for who in ("constant_median", "residual_life", "lightgbm", "survival", "baseline"):
        assert f"| {who} " in text
    assert "azure_conv: skipped" in capsys.readouterr().err


def test_results_page_has_the_skill_where_prompts_were_repeated() -> None:
    results = script("results")
    score = {
        key: 50.0 for _, key in results._TRACE_COLUMNS if key not in {"coverage_80", "coverage_90"}
    } | {"coverage_80": 0.8, "coverage_90": None}
    row = {
        "data": "vicuna7b_alpaca",
        "split": "prompt",
        "train": 1,
        "scored": 1,
        "mean_length": 1.0,
        "mode": "frozen",
        "noise_floor": {"mae": 20.0},
        "steps": score,
    }
    rows = [
        row | {"who": "constant_median", "admission": score | {"mae": 70.0, "mae_repeated": 80.0}},
        row | {"who": "lstm", "admission": score | {"mae": 15.0, "mae_repeated": 50.0}},
    ]
    text = results.section(rows, "vicuna7b_alpaca")
    line = next(each for each in text.splitlines() if each.startswith("| lstm"))
    assert [cell.strip() for cell in line.split("|")][-3:-1] == ["50.0", "50.0"]
    assert "**15.0**" in line
    floor = next(each for each in text.splitlines() if each.startswith("| noise floor"))
    assert [cell.strip() for cell in floor.split("|")][-3:-1] == ["20.0", "100.0"]


def test_no_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no data set found"):
        script("results").main(["--data", str(tmp_path), "--output", str(tmp_path / "x.md")])


def test_references_are_as_wrong_as_the_specification() -> None:
    """The figures of dev notes: 55–58 / 9 %, 98–102 / 0 %, 101–104 / 0 %."""
    from sagellm_lifetime.evaluation.specification_benchmark import run_benchmark

    references = import_module("reference.specification")
    found = run_benchmark(references.ReferenceBaseline())
    assert 54 < found["mae"] < 59
    assert 0.08 < found["within_10pct"] < 0.11
    lstm = references.ReferenceLSTM()
    assert sum(p.numel() for p in [*lstm.lstm.parameters(), *lstm.output.parameters()]) == 200_321
    held = {id(p) for group in lstm._optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in lstm.output.parameters()}


def test_table_is_aligned() -> None:
    text = script("common").table(["a", "b"], [["x", 1234.5], ["long name", None]])
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "1,234" in text


def test_session_bootstrap(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("session_bootstrap").main(["--data", str(data)])
    printed = capsys.readouterr().out
    assert "survival, frozen" in printed
    assert "survival, online" in printed


def test_session_bootstrap_draws_whole_sessions() -> None:
    """Points of one session that are all alike tell no more than one point."""
    difference = script("session_bootstrap").difference
    rng = np.random.default_rng(0)
    gap = rng.normal(1.0, 1.0, 100)
    alone = difference(np.ones(100), gap, np.arange(100), np.random.default_rng(0))
    often = difference(
        np.ones(2000), gap.repeat(20), np.arange(100).repeat(20), np.random.default_rng(0)
    )
    assert alone == pytest.approx(often)
    assert alone[0] == pytest.approx(gap.mean())
    assert alone[2] - alone[1] == pytest.approx(2 * 1.96 * gap.std() / 10, rel=0.1)


def test_decisions_say_which_load_no_rate_reached() -> None:
    decisions = script("decisions")
    figures = {metric: 1.0 for metric, _, _ in decisions.SHOWN}

    def page(*reached: bool | None) -> str:
        lines = [
            {
                "trace": "mooncake_conversation",
                "blocks": 8000,
                "load": "relaxed",
                "seed": seed,
                "requests": 400,
                "rate": 0.00123456,
                "policies": dict.fromkeys(decisions.OPEN, figures),
            }
            | ({} if said is None else {"reached": said})
            for seed, said in enumerate(reached)
        ]
        return str(decisions.report(lines))

    assert decisions._rate(11.346) == "11.35"
    told = "400 requests, 0.00123, 0.00123 requests/s; 2 seeds"
    for known in ((True, True), (None, None)):
        assert f"{told}.\n" in page(*known)
        assert "not reached" not in page(*known)
    assert f"{told}; relaxed not reached.\n" in page(False, False)
    assert f"{told}; relaxed not reached (seed 1).\n" in page(None, False)
    assert "| mooncake_conversation, 8,000, relaxed (not reached) |" in page(True, False)


def test_a_run_of_decisions_records_whether_its_load_was_reached(
    vllm: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sagellm_lifetime.replay import load

    decisions = script("decisions")
    monkeypatch.setattr(decisions, "OPEN", ("fcfs",))
    monkeypatch.setattr(
        load, "at_load", lambda _, trace, *rest: load.Calibrated(trace, 1.5, reached=False)
    )
    options = Namespace(data=data, requests=5, cost="a100-7b", predictor="baseline", more=False)
    asked = ("claude_code", 40_000, "relaxed", 0)
    run = decisions.setting(*asked, None, options)
    assert run["reached"] is False
    assert decisions.setting(*asked, run, options)["reached"] is False
    del run["reached"]  # as the lines of old
    assert decisions.setting(*asked, run, options)["reached"] is None


@pytest.mark.slow
def test_strangers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers = script("strangers")
    monkeypatch.setattr(strangers, "FLOODS", ("100 tokens", "a new name each"))
    monkeypatch.setattr(strangers, "CAPS", (256,))
    target, written, runs = tmp_path / "lines.json", tmp_path / "page.md", tmp_path / "runs.jsonl"
    asked = ["--quick", "--json", str(target), "--page", str(written), "--runs", str(runs)]
    strangers.main(asked)
    assert written.read_text() == capsys.readouterr().out[:-1]
    lines = json.loads(target.read_text())
    parts = {line["part"] for line in lines}
    assert parts == set(strangers.PARTS) - {strangers.PARTS[6], strangers.OUT_OF_REACH}
    for line in lines:
        assert line["kind"] == "survival"
        bound = float(line["target"].split()[1])
        met = line["figure"] <= bound + 1e-3 if "<" in line["target"] else True
        assert met or not line["met"], line
    # What is met even on a hundred rows; the rest is for the traces.
    sure = {line["what"]: line["met"] for line in lines if line["part"] == "names"}
    assert sure
    assert all(sure.values()), sure
    missed = written.read_text().split("## Not met")[1]
    for line in lines:
        assert (f"{line['part']}: {line['what']} " in missed) == (not line["met"]), line
    # Nothing is done again, and the page is the same.
    monkeypatch.setattr(strangers, "work", None)
    strangers.main(asked)
    assert json.loads(target.read_text()) == lines
    with pytest.raises(SystemExit):
        strangers.main(["--quick", "--jobs", "2"])


def test_strangers_over_seeds() -> None:
    strangers = script("strangers")

    def run(seed: int, *figures: float) -> dict[str, Any]:
        low, high, middle = figures
        lines = [
            strangers.above("floods", "coverage", low, 0.86),
            strangers.below("floods", "MAE", high, 1.05),
            strangers.below("floods", f"p99, {strangers.MEDIAN}", middle, 1.03),
            strangers.Line("floods", f"p99 known, {strangers.MEDIAN}", middle, "–", None),
        ]
        found = {"part": "floods", "trace": "chat", "seed": seed}
        return found | {"lines": [strangers.asdict(line) for line in lines]}

    lines = strangers.merged([run(1, 0.9, 1.0, 1.0), run(0, 0.8, 1.2, 9.0), run(2, 0.9, 1.1, 1.02)])
    assert [(line.figure, line.met) for line in lines] == [
        (0.8, False),
        (1.2, False),
        (1.02, True),
        (1.02, None),
    ]


def test_coverage_by_group_finds_the_group_that_is_missed() -> None:
    """Two clients of one law each; the intervals of one of them are much too narrow."""
    coverage = script("conditional_coverage")
    points = Namespace(remaining=np.array([1, 1, 2, 30, 10]))
    quantiles = np.tile(np.array([1] * 12 + [9] * 8 + [20]), (5, 1))
    plain, shared = coverage.covered(points, Namespace(quantiles=quantiles))
    assert plain.tolist() == [True, True, True, False, False]
    # A length of one token has half of the probability, from 0 on: a tenth of it is outside.
    assert shared[0] == pytest.approx((0.55 - 0.05) / 0.55, abs=0.01)
    assert shared[2] == pytest.approx(1.0, abs=0.01)
    assert shared[3] == pytest.approx(0.0, abs=0.01)


def test_half_of_the_clients_are_never_met() -> None:
    strangers_replay = script("strangers_replay")
    frame = pl.DataFrame(
        {"client_id": [f"c{i % 9}" for i in range(90)], "actual_length": range(90)}
    )
    chosen = [strangers_replay.half_of_the_clients(frame, seed) for seed in (0, 0, 1)]
    assert chosen[0]["client_id"].n_unique() == 4
    assert chosen[0].equals(chosen[1])
    assert not chosen[0].equals(chosen[2])


def test_auto(tmp_path: Path) -> None:
    import polars as pl

    (tmp_path / "prompts").mkdir()
    lengths = [20 + 7 * (i % 40) for i in range(300)]
    pl.DataFrame(
        {"prompt_id": [str(i) for i in range(300)], "actual_length": lengths}
    ).write_parquet(tmp_path / "prompts" / "sharegpt.parquet")
    page = tmp_path / "page.md"
    options = ["--data", str(tmp_path), "--only", "sharegpt", "--predictors", "survival", "auto"]
    script("auto").main([*options, "--output", str(page)])
    text = page.read_text()
    assert "is +0.0 … +0.0 % of that of its best member" in text, "too few rows for a network"
    assert text.count("| sharegpt") == 5


def test_prompt_score(tmp_path: Path) -> None:
    import polars as pl

    (tmp_path / "prompts").mkdir()
    verbs = ["list", "explain"] * 200
    pl.DataFrame(
        {
            "prompt_id": [str(i) for i in range(400)],
            "prompt_text": [f"{verb} thing {i}" for i, verb in enumerate(verbs)],
            "actual_length": [30 if verb == "list" else 300 for verb in verbs],
        }
    ).write_parquet(tmp_path / "prompts" / "sharegpt.parquet")
    page = tmp_path / "page.md"
    options = ["--data", str(tmp_path), "--only", "sharegpt", "--rounds", "2"]
    script("prompt_score").main([*options, "--output", str(page)])
    rows = [line for line in page.read_text().splitlines() if line.startswith("| sharegpt")]
    without, with_text = (float(row.split("|")[4]) for row in rows)
    assert with_text < without


@pytest.mark.slow
def test_hidden_score(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    options = ["--rows", "400", "--seeds", "1", "--output", str(page)]
    script("hidden_score").main(options)
    text = page.read_text()
    assert text.startswith("# What the hidden score buys\n")
    assert "| survival, 100 answers, hidden score |" in text
    assert text.count("| sampling noise") == 4


@pytest.mark.slow
@pytest.mark.usefixtures("vllm")
def test_hidden_replay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    options = ["--windows", "1", "--requests", "40", "--output", str(page)]
    script("hidden_replay").main(options)
    text = page.read_text()
    assert text.startswith("# The hidden score in decisions, and peeking\n")
    for arm in ("vLLM", "history", "hidden", "peek 4", "known at arrival", "oracle"):
        assert text.count(f"\n| {arm} ") == 2


@pytest.mark.slow
def test_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "fleet.md"
    script("fleet").main(["--rows", "400", "--later", "10", "--output", str(page)])
    written = page.read_text()
    assert written.count("| `survival` |") == 2
    assert "core hours" in written
    assert "tokens from nothing" in capsys.readouterr().out.replace("\n", " ")
