"""The benchmarks of `assess` run on made-up logs and write their pages."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_trace_is_assessed_and_followed(
    vllm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sagellm_lifetime.workloads import generate

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = import_module("assess")
    (tmp_path / "traces").mkdir()
    generate("azure-conversation", 900).write_parquet(tmp_path / "traces" / "azure_conv.parquet")
    monkeypatch.setitem(bench.MULTIPLES, "azure_conv", (1.0,))
    page = tmp_path / "assess.md"
    sizes = ["--rows", "300", "--windows", "1", "--cpu-s", "0.05"]
    bench.main([*sizes, "--data", str(tmp_path), "--only", "azure_conv", "--output", str(page)])
    (row,) = [line for line in page.read_text().splitlines() if line.startswith("| azure_conv")]
    assert row.count("%") >= 4
    assert "NOT measured" in page.read_text()


@pytest.mark.slow
def test_its_time_is_measured(vllm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = import_module("assess_time")
    monkeypatch.setattr(bench, "MODES", {"quick": (600, ("--quick", "--predictor-type=baseline"))})
    page, runs = tmp_path / "assess-time.md", tmp_path / "runs.jsonl"
    sizes = ["--rows", "400", "--only", "chat", "--runs", str(runs), "--output", str(page)]
    bench.main(sizes)
    bench.main(sizes)  # what is there is not made again
    assert len(runs.read_text().splitlines()) == 1
    (row,) = [line for line in page.read_text().splitlines() if line.startswith("| chat")]
    assert "quick" in row
    assert "within the limit of 600" in " ".join(page.read_text().split())
