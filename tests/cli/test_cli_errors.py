"""Every error is one line on stderr and exit code 2, and nothing has been written."""

import subprocess
import sys
from pathlib import Path

import pytest

from sagellm_lifetime import __version__

HEADER = "request_id,prompt_length,max_length,actual_length,finish_reason\n"
GOOD = "a,10,100,20,stop\n"
BAD_HISTORIES = {
    "wrong header": ("h.csv", "request_id,output_tokens\na,20\n", "actual_length"),
    "empty file": ("h.csv", "", "empty"),
    "no rows": ("h.csv", HEADER, "no rows"),
    "NaN": ("h.csv", HEADER + GOOD + "b,10,100,NaN,stop\n", "line 3"),
    "negative": ("h.csv", HEADER + GOOD + "b,10,100,-5,stop\n", "negative"),
    "10^12": ("h.csv", HEADER + GOOD + "b,10,,1000000000000,stop\n", "1000000000000"),
    "over the cap": ("h.csv", HEADER + GOOD + "b,10,100,101,stop\n", "max_length"),
    "unknown finish reason": ("h.csv", HEADER + GOOD + "b,10,100,9,done\n", "'done'"),
    "not JSON": ("h.jsonl", '{"actual_length": 5}\n{nonsense\n', "line 2"),
    "truncated Parquet": ("h.parquet", "PAR1 and nothing more", "Parquet"),
    "another type": ("h.xlsx", "x", ".xlsx"),
}
COMMANDS = (
    ("train", "--predictor-type", "survival", "--output-path", "out", "--data-path"),
    (
        *("evaluate", "--predictor-type", "survival"),
        *("--json", "out.json", "--report", "out", "--data-path"),
    ),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
@pytest.mark.parametrize("kind", BAD_HISTORIES)
def test_bad_history(refused, tmp_path, command, kind):
    name, text, told = BAD_HISTORIES[kind]
    (tmp_path / name).write_text(text)
    assert told in refused(*command, tmp_path / name)


def test_folder_without_history_and_missing_file(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "no history files" in refused("train", "--data-path", tmp_path / "folder")
    assert "no such file" in refused("train", "--data-path", tmp_path / "nowhere.csv")


def test_bad_rows_are_skipped_where_that_is_asked_for(cli, tmp_path):
    path = tmp_path / "h.csv"
    path.write_text(HEADER + GOOD * 50 + "b,10,100,NaN,stop\n")
    done = cli("train", "--data-path", path, "--predictor-type", "orca", "--on-bad-rows", "skip")
    assert done.code == 0
    assert "1 bad skipped" in done.words
    assert "line 52" in done.words


def test_nothing_is_left_after_skipping(refused, tmp_path):
    path = tmp_path / "h.csv"
    path.write_text(HEADER + "b,10,100,NaN,stop\n")
    for command in COMMANDS:
        assert "h.csv" in refused(*command, path, "--on-bad-rows", "skip")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["nonsense"], "nonsense"),
        (["train"], "--data-path"),
        (["train", "--data-path", "h", "--sed", "1"], "--sed"),
        (["train", "--data-path", "h", "--seed", "-1"], "--seed"),
        (["train", "--data-path", "h", "--seed", "99999999999999999999"], "--seed"),
        (["train", "--data-path", "h", "--hidden-size", "99999999"], "--hidden-size"),
        (["train", "--data-path", ""], "no history is named"),
        (["demo", "--rows", "99999999999"], "--rows"),
        (["train", "--data-path", "h", "--predictor-type", "oracle"], "choose one of auto"),
        (["train", "--data-path", "h", "--predictor-type", ","], "no predictor"),
        (["train", "--data-path", "h", "--predictor-type", "orca,linear"], "evaluate"),
        (["train", "--data-path", "h", "--predictor-type", "orca", "--epochs", "3"], "--epochs"),
        (["evaluate", "--data-path", "h", "--split", "row"], "--split"),
        (["evaluate", "--data-path", "h", "--split", "time", "--train-path", "t"], "--split"),
        (["evaluate", "--data-path", "h", "--checkpoint", "nowhere"], "no such checkpoint"),
        (
            ["evaluate", "--data-path", "h", "--checkpoint", "c", "--predictor-type", "lstm"],
            "--predictor-type",
        ),
        (["predict"], "--checkpoint"),
        (["predict", "--checkpoint", "nowhere"], "no such checkpoint"),
        (["stats"], "no checkpoint below"),
        (["stats", "--engine", "http://x", "--checkpoint", "c"], "choose one"),
        (["export", "--output-path", "model.bin"], ".safetensors"),
        (["export", "--output-path", "model.pt"], "no checkpoint below"),
        (["convert", "in.csv", "out.csv", "--from", "elsewhere"], "elsewhere"),
        (["convert", "in.csv", "out.csv"], "in.csv: no such file"),
        (["convert", "in.csv", "out.csv", "--time-unit", "h"], "--time-unit"),
        (["demo", "--profile", "nonsense"], "choose one of"),
    ],
    ids=" ".join,
)
def test_usage(refused, args, told):
    assert told in refused(*args)


def test_outputs_are_refused_before_the_work(refused, tmp_path, history):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    survival = ("--predictor-type", "survival")
    train = ("train", "--data-path", history, *survival)
    assert "not a checkpoint" in refused(*train, "--output-path", "folder")
    assert "not a checkpoint" in refused(*train, "--output-path", "file")
    for place in ("new.pt", "file.safetensors"):
        (tmp_path / "file.safetensors").write_text("mine")
        said = refused(*train, "--output-path", place)
        assert f"a directory: name it without {Path(place).suffix}" in said
    assert "not a folder" in refused(*train, "--output-path", "file/below/it")
    assert "in the way" in refused(*train, "--output-path", "new", "--json", "folder")
    evaluate = ("evaluate", "--data-path", history, *survival)
    assert "in the way" in refused(*evaluate, "--report", "file")
    assert "in the way" in refused(*evaluate, "--json", "folder")
    assert "in the way" in refused("demo", "--output", "file")


def test_networks_without_torch(refused, history, monkeypatch):
    monkeypatch.setattr("sagellm_lifetime.core.extras.find_spec", lambda name: None)
    for command in ("train", "evaluate"):
        network = (command, "--data-path", history, "--predictor-type", "lstm")
        assert "isagellm-lifetime[train]" in refused(*network)


def test_damaged_checkpoint(refused, tmp_path, survival):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_bytes((survival / "manifest.json").read_bytes())
    (damaged / "model.safetensors").write_bytes(b"nonsense")
    assert "damaged" in refused("stats", "--checkpoint", damaged)
    assert "damaged" in refused("predict", "--checkpoint", damaged)
    assert "damaged" in refused("export", "--checkpoint", damaged, "--output-path", "m.pt")


@pytest.mark.parametrize("extra", [["--online"], []], ids=" ".join)
def test_what_cannot_be_scored_is_refused_before_training(refused, tmp_path, monkeypatch, extra):
    monkeypatch.setattr("sagellm_lifetime.SurvivalLifetimePredictor.fit", None)
    evaluate = ("evaluate", "--predictor-type", "survival", "--data-path", "h.csv", *extra)
    path = tmp_path / "h.csv"
    path.write_text("actual_length\n" + "0\n" * 99)
    assert "nothing to evaluate" in refused(*evaluate)
    path.write_text("actual_length,arrival_time\n" + "0,1\n" * 70 + "5,2\n" * 29)
    assert "nothing to train on" in refused(*evaluate)
    path.write_text("actual_length,finish_reason\n" + "5,abort\n" * 99)
    assert "every length is a lower bound" in refused(*evaluate)
    if extra:
        path.write_text("actual_length\n" + "5\n" * 99)
        assert "arrival_time" in refused(*evaluate)


def test_not_enough_memory_is_one_line(refused, history, monkeypatch):
    def large(*args, **options):
        raise MemoryError

    monkeypatch.setattr("sagellm_lifetime.cli.train.fit", large)
    train = ("train", "--data-path", history, "--predictor-type", "survival")
    assert "not enough memory" in refused(*train)


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "sagellm_lifetime", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__
