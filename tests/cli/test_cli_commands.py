"""The commands end to end, on a few hundred rows."""

import json
import re
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import PREDICTORS, PredictionRequest, create_predictor, load_predictor
from sagellm_lifetime.cli.convert import NAMES
from sagellm_lifetime.cli.demo import _closing
from sagellm_lifetime.cli.options import repeated
from sagellm_lifetime.core.errors import MissingExtraError
from sagellm_lifetime.evaluation.verdict import Gap, Verdict
from sagellm_lifetime.history import read_history
from sagellm_lifetime.history.convert import FORMATS

METRICS = {
    "mae",
    "within_10pct",
    "within_10_tokens",
    "kendall_tau",
    "crps",
    "coverage_80",
    "coverage_90",
    "confidence_ece",
}
SURVIVAL = ("--predictor-type", "survival")


def check_contract(found):
    """The JSON of section 6 of the design."""
    assert found["rows"] > 0
    groups = [found["admission"], found["steps"], *found["ages"].values()]
    assert "16" in found["ages"]
    for group in groups:
        assert set(group) >= METRICS
    assert {"constant_median", "residual_life", "lightgbm"} <= set(found["baselines"])
    for baseline in found["baselines"].values():
        assert set(baseline["admission"]) >= METRICS
        assert set(baseline) >= {"admission", "ages", "steps"}


def test_train_then_stats_then_export_find_each_other(cli, tmp_path, history):
    trained = cli("train", "--data-path", history, *SURVIVAL)
    assert trained.code == 0
    assert "Rows:            240" in trained.out
    assert (tmp_path / "runs/lifetime/survival/manifest.json").is_file()

    stats = cli("stats")
    assert stats.code == 0
    assert stats.out.splitlines()[:6] == [
        "Lifetime Predictor Statistics:",
        "  Predictor Type: Survival",
        "  Total Predictions: 0",
        "  MAE: n/a",
        "  10% Accuracy: n/a",
        "  Avg Confidence: n/a",
    ]
    assert "  Trained Rows: 240" in stats.out
    assert cli("stats", "--json").json()["training_data"]["rows"] == 240

    exported = cli("export", "--output-path", "model.safetensors")
    assert exported.code == 0
    assert load_predictor(tmp_path / "model.safetensors").name == "survival"


def test_stats_in_the_form_of_the_specification(cli, tmp_path):
    predictor = create_predictor("baseline")
    for i in range(30):
        predictor.predict(PredictionRequest(i, [], 0, 100))
        predictor.update(i, 60 + i % 3, 1.5)
    predictor.save(tmp_path / "served")
    metrics = predictor.get_metrics()
    lines = cli("stats", "--checkpoint", "served").out.splitlines()
    assert lines[1:6] == [
        "  Predictor Type: Baseline",
        "  Total Predictions: 30",
        f"  MAE: {metrics['mae']:.1f} tokens",
        f"  10% Accuracy: {metrics['accuracy_within_10_percent']:.1%}",
        f"  Avg Confidence: {metrics['avg_confidence']:.2f}",
    ]


def test_train_a_network_with_tensorboard(cli, tmp_path, history):
    pytest.importorskip("tensorboard")
    options = ("--hidden-size", "8", "--epochs", "2", "--tensorboard", "logs")
    command = ("train", "--predictor-type", "lstm", "--data-path", history)
    done = cli(*command, *options, "--output-path", "net", "--json")
    assert done.code == 0
    found = done.json()
    assert found["predictor"] == "lstm"
    assert found["held_out_loss"] <= found["held_out_loss_before"]
    assert load_predictor(tmp_path / "net").options["hidden_size"] == 8
    (events,) = (tmp_path / "logs").glob("events*")
    assert b"loss/held_out" in events.read_bytes()


def test_training_again_replaces_the_checkpoint_and_is_the_same(cli, tmp_path, history):
    command = ("train", "--data-path", history, *SURVIVAL, "--output-path", "c")
    assert cli(*command).code == 0
    first = (tmp_path / "c/model.safetensors").read_bytes()
    assert cli(*command).code == 0
    assert (tmp_path / "c/model.safetensors").read_bytes() == first


def test_a_long_history_is_cut_to_its_newest_rows(cli, tmp_path, history, monkeypatch):
    monkeypatch.setattr("sagellm_lifetime.predictor.fitting.MAX_ROWS", 100)
    done = cli("train", "--data-path", history, *SURVIVAL, "--json")
    assert done.told == "training on the newest 100 of 240 rows\n"
    assert done.json()["rows"] == 100


def test_train_says_where_the_time_per_token_is_not_known(cli, tmp_path):
    rows = pl.DataFrame({"actual_length": [30 + 7 * i for i in range(40)]})
    rows.write_csv(tmp_path / "plain.csv")
    rows.with_columns(actual_time=pl.col("actual_length") * 0.02).write_csv(tmp_path / "timed.csv")
    plain = cli("train", "--data-path", "plain.csv", *SURVIVAL, "--json", "plain.json")
    assert "Time per token:  unknown (0.02 s assumed)" in plain.out
    assert json.loads((tmp_path / "plain.json").read_text())["seconds_per_token_assumed"] is True
    timed = cli("train", "--data-path", "timed.csv", *SURVIVAL, "--json", "timed.json")
    assert "Time per token:  0.02 s" in timed.out
    assert json.loads((tmp_path / "timed.json").read_text())["seconds_per_token_assumed"] is False


@pytest.fixture
def no_replay(monkeypatch):
    """As if vLLM were not installed: the demo's assessment measures the predictor alone."""

    def absent():
        raise MissingExtraError("the replay", "vllm")

    monkeypatch.setattr("sagellm_lifetime.assessment.assessment.check_interface", absent)


def test_evaluate_splits_the_history(cli, tmp_path, history):
    done = cli(
        "evaluate", "--data-path", history, *SURVIVAL, "--json", "e.json", "--report", "report"
    )
    assert done.code == 0
    assert "split by time: trained on 168 rows, scored on the other 72" in done.err
    for name in ("survival", "(constant_median)", "(residual_life)", "(lightgbm)"):
        assert name in done.out
    found = json.loads((tmp_path / "e.json").read_text())
    check_contract(found)
    assert found["rows"] == 72
    assert "predictors" not in found
    assert (tmp_path / "report/report.md").is_file()
    assert len(list((tmp_path / "report").glob("*.png"))) == 5


def test_evaluate_several_online(cli, history, later):
    done = cli(
        *("evaluate", "--data-path", later, "--train-path", history, "--online"),
        *("--predictor-type", "orca,survival", "baseline", "--json"),
    )
    assert done.code == 0
    found = done.json()
    check_contract(found)
    assert found["rows"] == 160
    assert found["predictor"] == "orca"
    assert found["mode"] == "online"
    assert list(found["predictors"]) == ["orca", "survival", "baseline"]
    for each in found["predictors"].values():
        check_contract(each)
        assert each["baselines"] == found["baselines"]


def test_an_option_that_may_be_repeated_takes_what_follows_it():
    several = {"--policy"}
    for given, read in (
        ("--policy a b --blocks 9", "--policy a --policy b --blocks 9"),
        ("--policy a --policy b c", "--policy a --policy b --policy c"),
        ("--policy a --blocks 9 b", "--policy a --blocks 9 b"),
        ("--policy a -- b", "--policy a -- b"),
        ("--policy", "--policy"),
    ):
        assert repeated(given.split(), several) == read.split()


def test_evaluate_a_checkpoint(cli, later, survival, history):
    alone = cli("evaluate", "--data-path", later, "--checkpoint", survival, "--json")
    assert alone.code == 0
    assert "half of these rows" in alone.err
    check_contract(alone.json())
    assert alone.json()["rows"] == 160
    beside = cli(
        *("evaluate", "--data-path", later, "--checkpoint", survival, "--json", "-"),
        *("--train-path", history, "--max-rows", "100"),
    )
    check_contract(beside.json())
    assert beside.json()["rows"] == 100


def test_the_checkpoint_scores_what_its_own_training_scores(cli, later, survival, history):
    one = cli("evaluate", "--data-path", later, "--checkpoint", survival, "--json").json()
    other = cli(
        "evaluate", "--data-path", later, "--train-path", history, *SURVIVAL, "--json"
    ).json()
    assert one["admission"] == other["admission"]
    assert one["steps"] == other["steps"]


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "onnx"])
def test_export(cli, tmp_path, lstm, suffix):
    target = tmp_path / f"deep/model.{suffix}"
    done = cli("export", "--checkpoint", lstm, "--output-path", target, "--json")
    assert done.code == 0
    assert done.json()["bytes"] == target.stat().st_size
    if suffix != "onnx":
        assert load_predictor(target).name == "lstm"
        return
    import onnx
    import onnxruntime

    model = onnx.load(target)
    onnx.checker.check_model(model)
    assert {each.key for each in model.metadata_props} == {"predictor", "manifest"}
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    width = session.get_inputs()[0].shape[2]
    feeds = {"x": np.zeros((1, 3, width), np.float32), "lengths": np.array([3], np.int32)}
    assert np.isfinite(session.run(None, feeds)[0]).all()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx"])
def test_export_replaces_its_own_files_alone(cli, refused, tmp_path, lstm, suffix):
    target = tmp_path / f"model{suffix}"
    for _ in range(2):
        assert cli("export", "--checkpoint", lstm, "--output-path", target).code == 0
    target.write_bytes(b"weights of another program" * 9)
    told = refused("export", "--checkpoint", lstm, "--output-path", target)
    assert "is there already" in told
    assert target.read_bytes() == b"weights of another program" * 9


def test_a_table_has_no_network_to_export(refused, survival):
    told = refused("export", "--checkpoint", survival, "--output-path", "model.onnx")
    assert "no network" in told


def test_convert(cli, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    done = cli("convert", "--from", "azure", trace, "out.parquet")
    assert done.code == 0
    assert "Wrote 2 rows" in done.out
    assert read_history(tmp_path / "out.parquet").frame["actual_length"].to_list() == [44, 109]


@pytest.mark.slow
@pytest.mark.usefixtures("no_replay")
def test_demo(cli, tmp_path):
    pytest.importorskip("torch")
    done = cli(
        *("demo", "--profile", "chat", "--rows", "300", "--epochs", "1", "--json", "demo.json")
    )
    assert done.code == 0
    for name in ("chat", *PREDICTORS, "(lightgbm)", "Next, with your own history"):
        assert name in done.out
    assert len(list((tmp_path / "report").glob("*.png"))) == 5
    found = json.loads((tmp_path / "demo.json").read_text())
    check_contract(found["chat"])
    assert list(found["chat"]["predictors"]) == list(PREDICTORS)
    assert found["assessment"]["verdict"].startswith("Whether it pays on your engine is not known")
    assert "the replay needs vLLM" in " ".join(done.out.split())
    assert "assess FILE --gpu h100" in done.out
    assert "train --data-path report/azure-conversation.parquet" in done.out
    assert len(read_history(tmp_path / "report" / "azure-conversation.parquet").frame) == 300
    assert "<html" in (tmp_path / "report" / "verdict.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("no_replay")
def test_the_demo_says_who_is_ahead_and_what_to_do_next(cli, monkeypatch):
    """One run of two workloads without PyTorch, since drawing their plots takes seconds."""
    monkeypatch.setattr("sagellm_lifetime.cli.demo.can_train_networks", lambda: False)
    demo = ("demo", "--profile", "regular", "--profile", "specification", "--rows", "300")
    done = cli(*demo, "--json", "demo.json")
    assert "Best MAE" not in done.out
    found = json.loads(Path("demo.json").read_text())
    found.pop("assessment")
    verdicts = {name: each["verdict"] for name, each in found.items()}
    starred = [line.split() for line in done.out.splitlines() if "*" in line][:-1]
    for name, each in verdicts.items():
        everybody = found[name]["predictors"] | found[name]["baselines"]
        maes = {who: scores["steps"]["mae"] for who, scores in everybody.items()}
        best = min(maes, key=maes.get)
        assert each["best"] == best
        tied = [who for who, mae in maes.items() if mae <= maes[best] + 1e-9]
        assert f"Least error of all: {', '.join(tied)}." in " ".join(done.out.split())
        shown = f"({best})" if best in found[name]["baselines"] else best
        assert any(row[0] == shown and f"{maes[best]:,.1f}*" in row for row in starred)
        assert f"{name}: " in done.out
    assert verdicts["regular"]["pays"]
    assert "Prediction pays on regular" in done.out
    assert f"Start with {verdicts['regular']['choice']}" in done.out
    told = " ".join(done.out.split())
    for group, when in (("steps", "over all steps"), ("admission", "at admission")):
        beaten = []
        for name, each in found.items():
            maes = {
                who: scores[group]["mae"]
                for who, scores in (each["predictors"] | each["baselines"]).items()
            }
            best = min(maes, key=maes.get)
            beaten += [f"{name} ({best})"] if best in each["baselines"] else []
        said = re.search(rf"A baseline has the least error of all {when} on (.*?)\.(?: |$)", told)
        assert (said.group(1).split(" and ") if said else []) == beaten
    for command in ("evaluate --data-path", "train --data-path", "assess"):
        assert f"sagellm-lifetime {command} FILE" in done.out
    page = Path("report/report.md").read_text()
    assert "Least error of all: " in page
    assert "Left out: lstm and transformer: pip install" in done.out
    for name in ("regular", "specification"):
        assert f"({name}/report.md)" in page
        assert len(list(Path("report", name).glob("*.png"))) == 5
    # The same numbers again for the same seed.
    again = cli("demo", "--profile", "regular", "--rows", "300", "--json").json()
    assert again["regular"] == found["regular"]


def gap_to(over, gain, margin=0.02):
    return Gap(over, gain, margin)


def led(own, untrained, best="lightgbm"):
    """A verdict where prediction pays and lightgbm is ahead when a request comes in."""
    return Verdict(
        best=own,
        own=own,
        simple=gap_to("residual_life", 0.2),
        other=None,
        untrained=untrained,
        maes={own: 80.0, "survival": 80.3, "residual_life": 100.0},
        at_admission={own: 60.0, "survival": 61.0, best: 50.0},
        predictors=("survival", own),
        rows=500,
    )


def test_the_demo_names_a_network_only_where_it_is_ahead_beyond_chance():
    level, ahead = gap_to("survival", 0.004), gap_to("survival", 0.1)
    alone = " ".join(_closing({"chat": led("lstm", level)}, "p"))
    assert "Start with survival: it needs no training, and no other predictor is ahead" in alone
    assert "lstm on" not in alone
    assert "--predictor-type survival" in alone
    assert "the least error of all at admission on chat (lightgbm)." in alone
    assert "the least error of all over all steps" not in alone
    both = {"chat": led("lstm", level), "code": led("transformer", ahead)}
    said = " ".join(_closing(both, "p"))
    assert "Start with survival: it needs no training." in said
    assert "Ahead of survival by more than chance: transformer on code." in said
    few = " ".join(_closing({"few": replace(both["code"], rows=9)}, "p"))
    assert "Prediction pays" not in few
    assert "Start with survival" in few
    assert "Start with transformer." in " ".join(_closing({"code": both["code"]}, "p"))


def test_evaluate_names_the_baseline_that_is_ahead(cli, tmp_path):
    """Lengths that nothing tells: the residual life is all there is to know."""
    rng = np.random.default_rng(11)
    rows = pl.DataFrame(
        {"arrival_time": np.arange(400.0), "actual_length": rng.geometric(0.01, 400)}
    )
    rows.write_csv(tmp_path / "h.csv")
    done = cli(
        "evaluate", "--data-path", "h.csv", "--predictor-type", "baseline", "--json", "e.json"
    )
    found = json.loads((tmp_path / "e.json").read_text())
    told = " ".join(done.out.split())
    assert "Over all steps (± is a 95 % interval): " in told
    assert f"Least error of all: {found['verdict']['best']}." in told
    maes = {name: each["steps"]["mae"] for name, each in found["baselines"].items()}
    maes["baseline"] = found["steps"]["mae"]
    assert found["verdict"]["best"] == min(maes, key=maes.get) != "baseline"
    assert found["verdict"]["pays"] is False


METRICS_OF_AN_ENGINE = {
    "predictor": "lstm",
    "total_predictions": 1000,
    "mae": 8.3,
    "accuracy_within_10_percent": 0.725,
    "avg_confidence": 0.85,
}
ANSWERS = {
    "/lifetime/stats": json.dumps(METRICS_OF_AN_ENGINE).encode(),
    "/list/lifetime/stats": b"[1]",
    "/html/lifetime/stats": b"<html>",
}


class _Engine(BaseHTTPRequestHandler):
    def do_GET(self):
        found = ANSWERS.get(self.path)
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def engine():
    with HTTPServer(("127.0.0.1", 0), _Engine) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_stats_of_an_engine(cli, engine):
    assert cli("stats", "--engine", engine).out == (
        "Lifetime Predictor Statistics:\n"
        "  Predictor Type: LSTM\n"
        "  Total Predictions: 1000\n"
        "  MAE: 8.3 tokens\n"
        "  10% Accuracy: 72.5%\n"
        "  Avg Confidence: 0.85\n"
    )
    assert cli("stats", "--engine", f"{engine}/", "--json").json()["mae"] == 8.3


def test_stats_of_an_odd_engine(cli, monkeypatch):
    odd = {
        "predictor": "a\x1b[2J\nb",
        "mae": "much",
        "total_predictions": 10**400,
        "avg_confidence": True,
        "completions": None,
        "training_data": {
            "rows": "many",
            "censored": [],
            "length_quantiles": {"x": "y", "0.5": 3, "0.9": 10**400},
            "held_out_loss": {},
        },
    }
    monkeypatch.setattr("sagellm_lifetime.cli.stats.ask_engine", lambda url, key: odd)
    lines = cli("stats", "--engine", "http://x").out.splitlines()
    assert lines[1:4] == [
        "  Predictor Type: A[2jb",
        "  Total Predictions: n/a",
        "  MAE: n/a",
    ]
    assert "  Trained Rows: n/a (n/a censored)" in lines
    assert "  Trained Lengths: x n/a, 50% 3, 90% n/a tokens" in lines


def test_stats_of_no_engine(refused, engine):
    assert "404" in refused("stats", "--engine", f"{engine}/other")
    assert "does not answer with statistics" in refused("stats", "--engine", f"{engine}/list")
    assert "does not answer with statistics" in refused("stats", "--engine", f"{engine}/html")
    assert "not the address" in refused("stats", "--engine", "file:///etc/passwd")
    assert "not the address" in refused("stats", "--engine", "nonsense")
    with HTTPServer(("127.0.0.1", 0), _Engine) as server:
        port = server.server_port
    assert "no engine answers" in refused("stats", "--engine", f"http://127.0.0.1:{port}")


def test_help_and_version(cli):
    assert cli("--version").out.strip() == "0.1.0"
    for args in ([], ["--help"], ["train", "--help"], ["evaluate", "--help"]):
        done = cli(*args)
        assert done.code == 0
        assert "Usage" in done.out


def test_only_the_log_is_on_stderr_without_a_terminal(cli, history):
    assert not sys.stderr.isatty()
    done = cli("train", "--data-path", history, *SURVIVAL, "--json")
    assert done.told == ""
    assert done.err.startswith(f"log       {history}:")
    assert done.json()["rows"] == 240


def test_convert_says_what_it_skipped_and_did_not_read(cli, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens,Region\n2023-11-16 18:15:46,374,44,eu\n"
        "2023-11-16 18:15:47,374,-1,eu\nnoon,3,4,eu\n2023-11-16 18:15:48,,4,eu\n"
    )
    refusal = cli("convert", "--from", "azure", trace, "out.jsonl")
    assert refusal.code == 2
    assert "3 bad rows" in refusal.err
    done = cli("convert", "--from", "azure", "--on-bad-rows", "skip", trace, "out.jsonl", "--json")
    assert done.code == 0
    assert "1 row good, 3 bad skipped" in done.words
    assert "line 3: GeneratedTokens -1 is negative" in done.words
    assert "not read Region" in done.words
    found = done.json()
    assert (found["rows"], found["skipped"], found["ignored"]) == (1, 3, ["Region"])
    assert found["kinds"] == {"negative": 1, "not a number": 1, "missing": 1}
    assert len(found["problems"]) == 3
    assert found["notes"] == ["columns not read: Region"]


def test_what_was_understood_of_a_log_is_said_and_in_the_json(cli, tmp_path):
    log = tmp_path / "usage.csv"
    log.write_text(
        "timestamp,prompt_tokens,completion_tokens,latency,stop_reason\n"
        + "".join(f"{i},10,{40 + i},{2000 + i},end_turn\n" for i in range(30))
        + "31,10,-4,2000,end_turn\n"
    )
    train = ("train", "--data-path", log, "--predictor-type", "orca", "--output-path", "ck")
    done = cli(*train, "--on-bad-rows", "skip", "--json")
    assert done.code == 0
    said = " ".join(done.json()["notes"])
    for part in (
        "a log of requests", "latency: read as milliseconds", "end_turn → stop (30)",
        "completion_tokens",
    ):  # fmt: skip
        assert part in said
        assert part in done.words
    assert "skipped 1 bad row," in said
    log = done.json()["log"]
    assert (log["rows"], log["skipped"], log["format"]) == (30, 1, "a log of requests")
    assert log["columns"]["actual_time"] == "latency"
    assert log["span_s"] == 29.0
    quiet = tmp_path / "h.csv"
    quiet.write_text("actual_length\n" + "5\n" * 30)
    again = cli("train", "--data-path", quiet, "--predictor-type", "orca", "--json")
    assert "notes" not in again.json()
    assert again.told == ""
    assert again.json()["log"]["warnings"] == [
        "100 % of the answers have exactly 5 tokens: fixed lengths (a benchmark that ignores the "
        "end token) say nothing of a model"
    ]


def test_the_formats_of_the_command_are_those_of_the_library():
    assert list(FORMATS) == list(NAMES)
