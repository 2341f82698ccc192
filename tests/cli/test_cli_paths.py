"""Nothing is lost: what is read is not written over, and places are tried before the work."""

import json
import os
import shutil

import pytest

from sagellm_lifetime import load_predictor

ORCA = ("--predictor-type", "orca")
TRACE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)


@pytest.fixture
def mine(frame, tmp_path):
    """A history in the folder of the command."""
    (tmp_path / "data").mkdir()
    frame.write_parquet(tmp_path / "data/mine.parquet")
    return tmp_path / "data/mine.parquet"


@pytest.fixture
def checkpoint(survival, tmp_path):
    return shutil.copytree(survival, tmp_path / "c")


@pytest.mark.parametrize("source", ["data/mine.parquet", "data/*.parquet", "data"])
def test_numbers_do_not_go_into_the_history(refused, mine, source):
    before = mine.read_bytes()
    for command in (("train", "--output-path", "out"), ("evaluate",)):
        told = refused(*command, *ORCA, "--data-path", source, "--json", "data/mine.parquet")
        assert "overwr" in told
    told = refused("evaluate", *ORCA, "--data-path", "x", "--train-path", source, "--json", mine)
    assert "overwr" in told
    assert mine.read_bytes() == before


@pytest.mark.parametrize("command", ["evaluate", "replay"])
def test_a_report_does_not_overwrite_numbers_nor_fail_after_the_work(refused, mine, command):
    ask = (command, *ORCA, "--data-path", mine, "--report", "out")
    assert "overwr" in refused(*ask, "--json", "out/report.md")
    assert "no name" in refused(*ask, "--json", "")
    os.makedirs("out/report.md")
    assert "in the way" in refused(*ask)


def test_a_trace_is_not_converted_into_itself(refused, cli, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)
    (tmp_path / "link.csv").symlink_to("trace.csv")
    convert = ("convert", "--from", "azure")
    assert "overwr" in refused(*convert, "trace.csv", "trace.csv")
    assert "overwr" in refused(*convert, "trace.csv", "link.csv")
    assert "overwr" in refused(*convert, "*.csv", "./trace.csv")
    assert "overwr" in refused(*convert, "trace.csv", "out.csv", "--json", "out.csv")
    assert "overwr" in refused(*convert, "trace.csv", "out.csv", "--json", "trace.csv")
    assert trace.read_text() == TRACE
    assert cli(*convert, "trace.csv", "out.csv", "--json", "out.json").code == 0
    written = (tmp_path / "out.csv").read_bytes()
    (tmp_path / "out.csv").write_text("mine")
    assert "--force" in refused(*convert, "trace.csv", "out.csv")
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert cli(*convert, "trace.csv", "out.csv", "--force", "--json", "out.json").code == 0
    assert (tmp_path / "out.csv").read_bytes() == written
    assert "overwr" in refused(*convert, "trace.csv", "trace.csv", "--force")


def test_a_checkpoint_is_not_written_into(refused, checkpoint):
    at = ("--checkpoint", checkpoint)
    for name in ("model.safetensors", "manifest.json"):
        assert "part of a checkpoint" in refused("stats", *at, "--json", checkpoint / name)
    told = refused("export", *at, "--output-path", checkpoint / "model.safetensors")
    assert "part of a checkpoint" in told
    both = ("--output-path", "m.safetensors", "--json", "m.safetensors")
    assert "overwr" in refused("export", *at, *both)
    assert load_predictor(checkpoint).name == "survival"


def test_what_stands_beside_a_checkpoint_is_not_lost(refused, checkpoint, mine):
    (checkpoint / "notes.txt").write_text("mine")
    train = ("train", "--data-path", mine, *ORCA)
    assert "'notes.txt' stands beside" in refused(*train, "--output-path", checkpoint)
    assert (checkpoint / "notes.txt").read_text() == "mine"


def test_a_link_to_a_checkpoint_stays_a_link(cli, checkpoint, mine, tmp_path):
    (tmp_path / "latest").symlink_to("c")
    (tmp_path / "next").symlink_to("d")
    for link, target in (("latest", "c"), ("next", "d")):
        assert cli("train", "--data-path", mine, *ORCA, "--output-path", link).code == 0
        assert os.readlink(tmp_path / link) == target
        assert load_predictor(tmp_path / target).name == "orca"
    assert sorted(os.listdir(tmp_path)) == ["c", "d", "data", "latest", "next"]


def test_places_that_fail_are_refused_before_training(refused, mine, monkeypatch):
    train = ("train", "--data-path", mine, *ORCA, "--output-path")
    monkeypatch.setattr("sagellm_lifetime.cli.train.fit", None)
    assert "out: named for two things" in refused(*train, "out", "--json", "out")
    assert "File name too long" in refused(*train, "x" * 256)
    assert "a mount point" in refused(*train, "/proc")
    assert "cannot be written" in refused(*train, "/proc/x")  # even for root
    for name in ("logs", "logs/below"):
        lstm = ("--predictor-type", "lstm")
        network = ("train", "--data-path", mine, *lstm, "--output-path", "logs")
        assert "outside of the checkpoint" in refused(*network, "--tensorboard", name)


def test_the_current_directory_is_not_replaced(refused, tmp_path, history, monkeypatch):
    train = ("train", "--data-path", history, *ORCA, "--output-path")
    assert "the current directory" in refused(*train, ".")
    assert "the current directory" in refused(*train, tmp_path)


def test_a_folder_without_permission(refused, history, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    # The tests may run as root.
    monkeypatch.setattr("sagellm_lifetime.core.atomic._new_file", denied)
    train = ("train", "--data-path", history, *ORCA)
    told = "cannot be written (Permission denied)"
    assert refused(*train) == f"error: runs/lifetime/orca: {told}\n"
    assert f"new.json: {told}" in refused("stats", "--json", "new.json")
    assert f"error: report: {told}" in refused("demo")
    assert f"error: rep: {told}" in refused("evaluate", "--data-path", history, "--report", "rep")


def test_numbers_beside_a_checkpoint_are_fine(cli, checkpoint):
    assert cli("stats", "--checkpoint", checkpoint, "--json", "stats.json").code == 0
    with open("stats.json") as file:
        assert json.load(file)["predictor"] == "survival"


def test_a_device_or_a_pipe_is_no_place(refused, tmp_path, checkpoint):
    os.mkfifo(tmp_path / "pipe.json")
    os.mkfifo(tmp_path / "pipe.pt")
    assert "a pipe is in the way" in refused("stats", "--json", "pipe.json")
    export = ("export", "--checkpoint", checkpoint, "--output-path", "pipe.pt")
    assert "a pipe is in the way" in refused(*export)
    assert "a device or" in refused("stats", "--json", "/dev/null")
