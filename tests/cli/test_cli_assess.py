"""``assess``: refusals, output without vLLM, and one log from end to end with it."""

import json
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from sagellm_lifetime.cli.options import CapReached, Clock, OnBadRows
from sagellm_lifetime.cli.reading import Mapping, Reading
from sagellm_lifetime.core.errors import MissingExtraError
from sagellm_lifetime.workloads import generate

ENGINE = ("--gpu", "a100", "--model-size", "7b")


@pytest.fixture
def without_vllm(monkeypatch):
    if find_spec("vllm") is not None:

        def absent():
            raise MissingExtraError("the replay", "vllm")

        monkeypatch.setattr("sagellm_lifetime.assessment.assessment.check_interface", absent)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--gpu", "tpu"], "unknown GPU 'tpu': choose one of l4"),
        (["--model-size", "9b"], "unknown model size '9b'"),
        (["--gpu", "l4", "--model-size", "70b"], "leaves no room on l4"),
        (["--kv-tokens", "100"], "--kv-tokens"),
        (["--kv-tokens", "9000", "--engine", "http://localhost:1"], "leave one out"),
        (["--engine", "localhost"], "not the address of an engine"),
        (["--slo", "fast"], "write it as ttft=2s,tpot=100ms,share=0.95"),
        (["--slo", "share=95"], "at most 1"),
        (["--predictor-type", "nobody"], "choose one of auto"),
        (["--kv-tokens", "300"], "do not fit into a KV cache of 272 tokens"),
        (["--report", "."], "in the way"),
        (["--json", "x", "--report", "x"], "named for two things"),
    ],
    ids=" ".join,
)
def test_usage(refused, history, args, told):
    assert told in refused("assess", history, *args)


def test_logs_that_cannot_be_assessed(refused, tmp_path):
    path = tmp_path / "h.csv"
    assert "no such file" in refused("assess", path)
    path.write_text("actual_length,prompt_length\n" + "5,5\n" * 20)
    assert "20 rows are too few" in refused("assess", path)
    path.write_text("actual_length\n" + "5\n6\n" * 100)
    assert "needs the column 'prompt_length'" in refused("assess", path)


def test_the_log_is_not_overwritten(refused, history):
    assert "would overwrite" in refused("assess", history, "--report", history)


def test_without_vllm(cli, history, tmp_path, without_vllm):
    args = ("--predictor-type", "baseline", "--quick", "--json", "out.json", "--report", "out.html")
    done = cli("assess", history, *ENGINE, *args)
    assert done.code == 0, done
    lines = [line for line in done.out.splitlines() if line]
    assert " ".join(lines[:2]) == (
        "Whether it pays on your engine is not known: the replay needs vLLM: pip install "
        "'isagellm-lifetime[vllm]'."
    )
    assert "Predictor: baseline was chosen" in done.out
    assert "engine start MODEL --enable-lifetime-prediction" in done.out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["replay"] is None
    assert found["log"]["rows"] == 240
    assert "isagellm-lifetime[vllm]" in (tmp_path / "out.html").read_text()


def test_a_log_with_columns_of_its_own(cli, tmp_path, without_vllm):
    frame = generate("chat", 300).rename({"actual_length": "out", "prompt_length": "in"})
    frame.write_parquet(tmp_path / "own.parquet")
    args = (*ENGINE, "--predictor-type", "baseline", "--quick", "--json")
    mapping = ("--map", "actual_length=out,prompt_length=in")
    done = cli("assess", tmp_path / "own.parquet", *args, *mapping)
    assert done.code == 0, done
    assert done.json()["log"]["columns"]["actual_length"] == "out"
    train = next(line for line in done.json()["commands"] if " train " in line)
    assert " ".join(mapping) in train


def test_options_are_carried():
    def options(maps, target=None, *given, query=None):
        reading = Reading(*given, mapping=Mapping(None, target), query=query)
        return reading.options(maps)

    assert options(None) == []
    assert options(["a=b", "c=d"]) == ["--map", "a=b", "--map", "c=d"]
    assert options(["a=b"], Path("m.toml")) == ["--map", "m.toml"]
    assert options(None, None, OnBadRows.skip, CapReached.stop, Clock.wall, query="SELECT 1") == [
        *("--query", "SELECT 1", "--on-bad-rows", "skip"),
        *("--cap-reached", "stop", "--clock", "wall"),
    ]


def test_a_query_is_for_a_database(refused, history):
    assert "a query is for a database" in refused("assess", history, "--query", "SELECT 1")


def test_from_end_to_end(cli, vllm, tmp_path, monkeypatch):
    from sagellm_lifetime.assessment.assessment import AssessmentSettings

    small = AssessmentSettings(
        multiples=(1.0, 3.0),
        windows=1,
        cpu_s=0.02,
        predictors=("baseline",),
        precision=2.0,
        watermarks=(0.1,),
    )
    monkeypatch.setattr(AssessmentSettings, "of", lambda **_: small)
    path = tmp_path / "log.parquet"
    drawn = generate("chat", 400, seed=3, rate_scale=200.0)
    short = (pl.col("prompt_length") < 1500) & (pl.col("actual_length") < 60)
    drawn.filter(short).write_parquet(path)
    args = ("--kv-tokens", 8000, "--predictor-type", "baseline", "--quick", "--report", "out.html")
    done = cli("assess", path, *ENGINE, *args)
    assert done.code == 0, done
    assert max(map(len, done.out.split("# 1. learn")[0].splitlines())) <= 80
    for told in ("1 x default", "3 x oracle", "within the objective", "Today"):
        assert told in done.out
    assert "<svg" in (tmp_path / "out.html").read_text()
