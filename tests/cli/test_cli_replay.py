"""``replay``: refusals and help without vLLM; one small trace from end to end with it."""

import re
import subprocess
import sys
from importlib.util import find_spec

import polars as pl
import pytest

from sagellm_lifetime.core.errors import MissingExtraError
from sagellm_lifetime.replay.metrics import MEASURED
from sagellm_lifetime.workloads import generate

REASON = "needs vLLM: pip install 'isagellm-lifetime[vllm]'"
DESIGN = (
    "mean_latency_s",
    "p50_latency_s",
    "p99_latency_s",
    "mean_ttft_s",
    "tokens_per_s",
    "makespan_s",
    "preemptions",
    "recomputed_tokens",
    "reserved_unused_block_s",
    "goodput",
    "max_wait_s",
)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """120 short requests; the later 30 % of them are replayed."""
    drawn = generate("reasoning", 400, seed=5, capped_share=0.3, abort_share=0.05)
    few = (pl.col("prompt_length") <= 800) & (pl.col("actual_length") <= 800)
    path = tmp_path_factory.mktemp("short") / "short.parquet"
    drawn.filter(few).head(120).write_parquet(path)
    return path


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--policy", "sjff"], "unknown policy 'sjff': choose one of fcfs, fcfs-watermark, prior"),
        (["--policy", "fcfs,oracle"], "unknown policy 'oracle'"),
        (["--policy", "fcfs", "oracle"], "unknown policy 'oracle'"),
        (["--policy", "fcfs", "--blocks", "9", "lifetime"], "unexpected extra argument"),
        (["--policy", ","], "no policy is named"),
        (["--load", "heavy"], "unknown load 'heavy': choose one of relaxed, knee, overload, a n"),
        (["--load", "0"], "--load"),
        (["--load", "-1"], "--load"),
        (["--load", "nan"], "--load"),
        (["--load", "inf"], "--load"),
        (["--load", "knee", "--offline"], "leave --load out"),
        (["--cost-model", "tpu"], "choose one of cpu-small, a100-7b, h100-70b"),
        (["--blocks", "1"], "--blocks"),
        (["--max-model-len", "0"], "--max-model-len"),
        (["--seeds", "0"], "--seeds"),
        (["--max-requests", "0"], "--max-requests"),
        (["--predictor-type", "nobody"], "choose one of auto"),
        (["--predictor-type", "orca,linear"], "one --predictor-type"),
        (["--checkpoint", "c", "--train-path", "t"], "choose one"),
        (["--checkpoint", "c", "--predictor-type", "orca"], "leave --predictor-type out"),
        (["--checkpoint", "nowhere"], "no such checkpoint"),
        (["--train-path", "nowhere.csv"], "no such file"),
    ],
    ids=" ".join,
)
def test_usage(refused, history, args, told):
    assert told in refused("replay", "--data-path", history, *args)


def test_histories_that_cannot_be_replayed(refused, tmp_path):
    path = tmp_path / "h.csv"
    replay = ("replay", "--data-path", path)
    assert "no such file" in refused(*replay)
    path.write_text("actual_length,prompt_length\n")
    assert "no rows" in refused(*replay)
    path.write_text("actual_length,prompt_length\n5,5\n")
    assert "cannot split" in refused(*replay)
    path.write_text("actual_length,prompt_length,arrival_time\n" + "5,5,1\n" * 9 + "0,5,2\n" * 4)
    assert "the trace is empty" in refused(*replay)
    path.write_text("actual_length,prompt_length\n" + "0,5\n" * 14 + "5,5\n" * 6)
    assert "nothing to train on" in refused(*replay)
    path.write_text("actual_length\n" + "5\n" * 9)
    assert "a replay needs the column 'prompt_length'" in refused(*replay)
    assert "a replay needs the column 'prompt_length'" in refused(*replay, "--train-path", path)
    path.write_text("actual_length,prompt_length\n" + "5,\n" * 5 + "5,5\n" * 5)
    assert "no prompt_length in" in refused(*replay, "--train-path", path)


def test_request_that_does_not_fit(refused, history):
    told = refused("replay", "--data-path", history, "--blocks", 3)
    assert re.search(r"needs \d+ blocks of 16 tokens, the pool has 2: give --blocks \d+", told)
    told = refused("replay", "--data-path", history, "--max-model-len", 100)
    assert re.search(
        r"the request with request_id '.+', arrival_time .+, prompt_length \d+, "
        r"actual_length \d+ is (\d+) tokens long \(prompt and output\), the model length is 100: "
        r"give --max-model-len \1 or more",
        told,
    )


def test_model_length_that_just_fits(cli, vllm, tmp_path):
    rows = pl.DataFrame({"prompt_length": [64] * 20, "actual_length": [50] * 20})
    rows.write_parquet(tmp_path / "h.parquet")
    replay = ("replay", "--data-path", "h.parquet", "--policy", "fcfs", "--offline", "--json")
    found = cli(*replay, "--max-model-len", 114).json()
    assert found["settings"]["max_model_len"] == 114
    default = cli(*replay).json()
    assert default["settings"]["max_model_len"] is None
    assert found["policies"] == default["policies"]


def test_outputs_are_refused_before_the_work(refused, tmp_path, history):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    replay = ("replay", "--data-path", history)
    assert "in the way" in refused(*replay, "--report", "file")
    assert "in the way" in refused(*replay, "--json", "folder")


def test_without_vllm(refused, history, monkeypatch):
    if find_spec("vllm") is not None:

        def absent():
            raise MissingExtraError("the replay", "vllm")

        monkeypatch.setattr("sagellm_lifetime.vllm.compat.interface.check_interface", absent)
    monkeypatch.setattr(
        "sagellm_lifetime.SurvivalLifetimePredictor.fit", None
    )  # nothing is trained before
    told = refused("replay", "--data-path", history, "--json", "out.json", "--report", "out")
    assert told == f"error: replay {REASON}\n"


def test_help_loads_nothing():
    heavy = ("vllm", "torch", "numpy", "polars", "matplotlib", "sagellm_lifetime.predictor.base")
    code = (
        "import sys\n"
        "from sagellm_lifetime.cli.main import run\n"
        "run(['replay', '--help'], 'x')\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert "--cost-model" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_help_names_every_policy(cli, monkeypatch):
    from sagellm_lifetime import create_predictor
    from sagellm_lifetime.cli import replay
    from sagellm_lifetime.replay.planned import planned_policies
    from sagellm_lifetime.replay.policies import POLICIES

    oracles = [f"{name}-oracle" for name in replay.PLANS]
    assert list(replay.REFERENCES) == list(POLICIES)
    assert {*replay.PLANS, *oracles, *replay.RIVALS} == set(
        planned_policies(create_predictor("baseline"))
    )
    assert set(replay.POLICIES) <= {*replay.REFERENCES, *replay.PLANS, *oracles}
    monkeypatch.setenv("COLUMNS", "2000")
    assert replay.POLICY_HELP in cli("replay", "--help").out


def test_defaults_are_those_of_the_library():
    from sagellm_lifetime.cli import replay
    from sagellm_lifetime.cli.options import DEFAULT_PREDICTOR
    from sagellm_lifetime.replay.experiment import ExperimentSettings

    assert ExperimentSettings() == ExperimentSettings(
        policies=replay.POLICIES,
        load=replay.LOAD,
        blocks=replay.BLOCKS,
        max_requests=replay.REQUESTS,
        predictor=DEFAULT_PREDICTOR,
        cost_model=replay.COST,
    )


def test_a_trace_end_to_end(cli, vllm, short, tmp_path):
    replay = ("replay", "--data-path", short, "--blocks", 200, "--max-requests", 20)
    done = cli(*replay, "--load", 4, "--seeds", 2, "--json", "out.json", "--report", "out")
    assert done.code == 0, done
    for told in ("fcfs-watermark", "lifetime-oracle", "TTFT", "makespan", "Source:", "Fit: R²"):
        assert told in done.out
    assert re.search(r"^Replay: [\d,]+ steps, [\d,]+ a CPU second\.$", done.out, re.MULTILINE)
    assert done.told.startswith("split by time: trained on 84 rows, requests from the other 36\n")
    page = (tmp_path / "out" / "report.md").read_text()
    for told in (
        "| lifetime |",
        "Llama-2-7B",
        "R² 0.994",
        "(latency.png)",
        "(memory.png)",
        "a CPU second",
    ):
        assert told in page
    assert (tmp_path / "out" / "latency.png").stat().st_size > 5000
    assert (tmp_path / "out" / "memory.png").stat().st_size > 5000

    names = ("--policy", "fcfs", "fcfs-watermark", "lifetime,lifetime-oracle")
    again = cli(*replay, *names, "--load", 4, "--seeds", 2, "--json")
    found = again.json()
    assert (tmp_path / "out.json").read_text() == again.out
    assert list(found) == ["settings", "policies", "log"]
    assert list(found["policies"]) == ["fcfs", "fcfs-watermark", "lifetime", "lifetime-oracle"]
    for values in found["policies"].values():
        assert set(DESIGN) <= set(values)
        assert not set(MEASURED) & set(values), "the same in every run"
        each = [seed["mean_latency_s"] for seed in values["seeds"]]
        assert len(set(each)) == 2
        assert values["mean_latency_s"] == pytest.approx(sum(each) / 2)
    assert found["settings"]["rates"] == [4.0, 4.0]
    assert found["settings"]["prefix_caching"] is False
    tuned = found["policies"]["fcfs-watermark"]
    assert tuned["mean_latency_s"] <= found["policies"]["fcfs"]["mean_latency_s"]


def test_offline_and_prefixes_and_no_predictor(cli, vllm, tmp_path):
    rows = pl.DataFrame(
        {
            "prompt_length": [1024] * 20,
            "actual_length": [20 + 5 * i for i in range(20)],
            "arrival_time": [float(i) for i in range(20)],
            "prefix_hashes": [[7, 100 + i] for i in range(20)],
        }
    )
    rows.write_parquet(tmp_path / "h.parquet")
    replay = ("replay", "--data-path", "h.parquet", "--policy", "fcfs", "--json")
    found = cli(*replay, "--offline").json()
    assert found["settings"]["prefix_caching"]
    assert found["settings"]["load"] == "offline"
    assert found["settings"]["rate"] is None
    assert found["settings"]["predictor"] is None
    assert found["policies"]["fcfs"]["cached_tokens"] > 0
    named = cli(*replay, "--load", "relaxed").json()
    assert named["settings"]["capacity"] > named["settings"]["rate"] > 0


def blocks_of_16(tmp_path, **columns):
    """20 prompts of 320 tokens that share the first 32, an id for each 16 tokens."""
    rows = pl.DataFrame(
        {
            "prompt_length": [320] * 20,
            "actual_length": [20 + 5 * i for i in range(20)],
            "arrival_time": [float(i) for i in range(20)],
            "prefix_hashes": [[1, 2, *range(100 * i, 100 * i + 18)] for i in range(1, 21)],
        }
        | columns
    )
    rows.write_parquet(tmp_path / "h.parquet")


def test_ids_of_16_tokens_share_what_the_trace_says(cli, vllm, tmp_path):
    blocks_of_16(tmp_path)
    replay = ("replay", "--data-path", "h.parquet", "--policy", "fcfs", "--offline")
    found = cli(*replay, "--json").json()
    assert found["settings"]["hash_block_size"] == 16
    assert found["settings"]["hash_block_size_source"] == "inferred"
    # Those admitted together with the first find nothing in the cache yet, the others 32 tokens.
    assert 0 < found["policies"]["fcfs"]["cached_tokens"] <= 19 * 32
    told = cli(*replay, "--hash-block-size", 16).out
    assert "prefix caching on (prefix_hashes of 16 tokens each, as stated)" in told


def test_ids_whose_size_is_not_clear_are_refused(refused, tmp_path):
    replay = ("replay", "--data-path", "h.parquet", "--policy", "fcfs", "--offline")
    blocks_of_16(tmp_path, prompt_length=[320] * 10 + [900] * 10)
    assert "say it with --hash-block-size N" in refused(*replay)
    blocks_of_16(tmp_path)
    assert "more than a prompt of 320 tokens has" in refused(*replay, "--hash-block-size", 64)


def test_equal_token_ids_share_blocks(cli, vllm, tmp_path):
    rows = pl.DataFrame(
        {
            "prompt_token_ids": [[7] * 320 + [i] for i in range(20)],
            "actual_length": [20 + 5 * i for i in range(20)],
            "arrival_time": [float(i) for i in range(20)],
        }
    )
    replay = ("replay", "--data-path", "h.parquet", "--policy", "fcfs", "--offline", "--json")
    for history, shared in ((rows, True), (rows.rename({"prompt_token_ids": "x"}), False)):
        lengths = pl.lit(321).alias("prompt_length")
        history.with_columns(lengths).write_parquet(tmp_path / "h.parquet")
        found = cli(*replay).json()
        assert found["settings"]["prefix_caching"] is shared
        assert (found["policies"]["fcfs"]["cached_tokens"] > 0) is shared


def test_a_load_that_is_not_reached_is_told(cli, vllm, tmp_path):
    rows = pl.DataFrame(
        {
            "prompt_length": [64] * 40,
            "actual_length": [50] * 40,
            "arrival_time": [100.0 * (i // 4) for i in range(40)],  # four at a time, room for one
        }
    )
    rows.write_parquet(tmp_path / "h.parquet")
    replay = ("replay", "--data-path", "h.parquet", "--policy", "fcfs", "--blocks", 10)
    done = cli(*replay, "--load", "relaxed", "--report", "out")
    told = "NOT relaxed: no rate that was tried"
    assert [line for line in done.err.splitlines() if line.startswith(told)]
    assert told in done.out
    assert told in (tmp_path / "out" / "report.md").read_text()
    assert cli(*replay, "--load", "relaxed", "--json").json()["settings"]["load_reached"] is False
    reached = cli(*replay, "--load", "overload", "--json")
    assert reached.json()["settings"]["load_reached"]
    assert "NOT" not in reached.err


def test_checkpoint_and_training_history(cli, vllm, short, survival, history):
    replay = ("replay", "--data-path", short, "--blocks", 200, "--max-requests", 10)
    common = ("--policy", "lifetime", "--load", 2, "--json")
    asked = cli(*replay, *common, "--checkpoint", survival)
    assert asked.json()["settings"]["predictor"] == "survival"
    trained = cli(*replay, *common, "--train-path", history, "--predictor-type", "baseline")
    assert trained.json()["settings"]["training_rows"] == 240


def test_what_is_not_believed_is_the_engines(cli, vllm, short):
    replay = ("replay", "--data-path", short, "--blocks", 200, "--max-requests", 40, "--load", 20)
    believing, doubting = (
        cli(*replay, "--policy", "fcfs", "reserve", "--json", "--min-confidence", each).json()
        for each in (0, 1)
    )
    assert doubting["settings"]["min_confidence"] == 1
    fcfs, theirs, ours = (
        [each["policies"][name][key] for key in ("mean_latency_s", "p99_latency_s", "steps")]
        for each, name in ((doubting, "fcfs"), (doubting, "reserve"), (believing, "reserve"))
    )
    assert theirs == fcfs != ours
