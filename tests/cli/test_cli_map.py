"""``--map`` and ``--save-map`` of every command that reads a log."""

import json

import polars as pl
import pytest

MAP = "actual_length=usage.out,arrival_time=at,client_id=who,actual_time=took"


@pytest.fixture
def log(tmp_path):
    records = [
        {"at": float(n), "who": f"u{n % 3}", "took": 900 + n, "usage": {"out": 30 + n % 7}}
        for n in range(60)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return "log.jsonl"


def test_a_map_is_kept_and_read_again(cli, tmp_path, log):
    train = ("train", "--data-path", log, "--predictor-type", "orca", "--output-path", "ck")
    done = cli(*train, "--map", MAP, "--save-map", "log.toml", "--json")
    assert done.code == 0, done.err
    found = done.json()["log"]
    assert found["columns"]["actual_time"] == "took"
    assert "took: read as milliseconds" in " ".join(found["notes"])
    assert found["clients"] == 3
    assert 'actual_time = "took@ms"' in (tmp_path / "log.toml").read_text()
    again = cli("convert", log, "out.parquet", "--map", "log.toml", "--json")
    assert again.code == 0, again.err
    assert "took: read as milliseconds (as said)" in again.words
    assert pl.read_parquet(tmp_path / "out.parquet")["actual_time"][0] == pytest.approx(0.9)
    evaluate = ("evaluate", "--data-path", log, "--predictor-type", "orca", "--json")
    scored = cli(*evaluate, "--map", "log.toml", "actual_time=took@s")
    assert scored.code == 0, scored.err
    assert "is it in milliseconds?" in scored.words  # what is said replaces what was kept
    assert "actual_time: " in scored.json()["log"]["warnings"][0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--map", "actual_lenght=usage.out"], "did you mean 'actual_length'?"),
        (["--map", "actual_length=usage.outt"], "did you mean 'usage.out'?"),
        (["--map", "actual_length=usage"], "is an object, not a number"),
        (["--map", "none.toml"], "none.toml: No such file"),
        (["--save-map", "log.toml"], "--save-map keeps the mapping of --map"),
        (["--map", MAP, "--save-map", "log.json"], "name it .toml"),
    ],
)
def test_what_a_map_cannot_be(refused, log, options, told):
    train = ("train", "--data-path", log, "--predictor-type", "orca", "--output-path", "ck")
    assert told in refused(*train, *options)
    assert told in refused("convert", log, "out.csv", *options)


def test_convert_takes_a_map_on_top_of_a_format(cli, refused, tmp_path):
    (tmp_path / "u.csv").write_text("ts,prompt_tokens,completion_tokens,tenant\n0,9,50,acme\n")
    done = cli("convert", "--from", "usage", "u.csv", "out.csv", "--map", "client_id=tenant")
    assert done.code == 0, done.err
    assert pl.read_csv(tmp_path / "out.csv")["client_id"].to_list() == ["acme"]
    azure = refused("convert", "--from", "azure", "u.csv", "new.csv", "--map", "client_id=tenant")
    assert "the columns of azure are known" in azure


def test_a_query_is_for_a_database(cli, refused, log):
    train = ("train", "--data-path", log, "--predictor-type", "orca")
    assert "a query is for a database" in refused(*train, "--query", "SELECT 1")
    assert "a query is for a database" in refused("convert", log, "o.csv", "--query", "SELECT 1")
    needs = refused("train", "--data-path", "sqlite:///log.db", "--predictor-type", "orca")
    assert "a database needs a query" in needs
    done = cli("convert", "postgresql://me:secret@127.0.0.1:1/db", "o.csv")
    assert done.code == 2
    assert "postgresql://me@127.0.0.1:1/db" in done.err
    assert "secret" not in done.err
    for command in (("train", "--predictor-type", "orca", "--data-path"), ("convert",)):
        out = ("o.csv",) if command == ("convert",) else ()
        mysql = refused(*command, "mysql://me:secret@host/db", *out, "--query", "SELECT 1")
        assert "mysql:// is not read" in mysql
        assert "secret" not in mysql
        file = refused(*command, "s.db", *out, "--query", "SELECT 1")
        assert "sqlite:///s.db" in file
