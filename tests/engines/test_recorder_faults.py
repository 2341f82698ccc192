"""The record under what disks, clients and crashes do to it: nothing lost that can be kept, and
nothing lost without being counted and named."""

import json
import os
import shutil
import stat
import time

import pytest

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history import read
from sagellm_lifetime.vllm import journal as journal_module
from sagellm_lifetime.vllm import recorder as recorder_module
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.journal import Journal, recover_journals
from sagellm_lifetime.vllm.recorder import Recorder


def row(i, **more):
    return {"request_id": f"r{i}", "actual_length": i + 1, "finish_reason": "stop", **more}


def read_history(folder):
    return read.read_history(folder).frame


def ids(folder):
    return read_history(folder)["request_id"].to_list()


def counts(recorder):
    return recorder.recorded, recorder.waiting, recorder.lost


@pytest.fixture
def told(caplog):
    """What was logged, warnings included."""
    caplog.set_level("WARNING", LOG.name)  # which the helper's scheduler has raised

    def texts():
        return [record.message for record in caplog.records]

    return texts


# -- no room -----------------------------------------------------------------------------------


class Full:
    """A disk that is full after so many bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        written = self.file.write(data[: self.room])
        self.room -= written
        if written < len(data):
            raise OSError(28, "No space left on device")
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)


def begun(folder, room):
    """A recorder with one row on a disk that has room for so many bytes, and the real file."""
    recorder = Recorder(folder, "w")
    recorder.add(row(0))
    recorder.flush()
    real = recorder._journal._file
    recorder._journal._file = Full(real, room)
    return recorder, real


def test_rows_wait_while_the_disk_is_full(tmp_path, told):
    recorder, real = begun(tmp_path, 30)
    for i in range(1, 4):
        recorder.add(row(i))
        recorder.flush()
    assert counts(recorder) == (1, 3, 0)
    assert len(told()) == 1
    assert "No space left" in told()[0]
    recorder._journal._file = real
    recorder.add(row(4))
    recorder.close()
    assert told()[1].endswith("again")
    assert counts(recorder) == (5, 0, 0)
    assert ids(tmp_path) == [f"r{i}" for i in range(5)]


def test_what_fits_is_written_at_once(tmp_path, monkeypatch):
    """Not all or nothing of what waits: the oldest go as far as there is room."""
    monkeypatch.setattr(recorder_module, "_AT_ONCE_BYTES", 150)
    recorder, real = begun(tmp_path, 400)
    for i in range(1, 20):
        recorder.add(row(i))
    recorder.flush()
    assert 1 < recorder.recorded < 20
    assert recorder.recorded + recorder.waiting == 20
    recorder._journal._file = real
    recorder.close()
    assert ids(tmp_path) == [f"r{i}" for i in range(20)]


def test_more_than_may_wait_is_dropped_the_newest_first(tmp_path, monkeypatch, told):
    monkeypatch.setattr(recorder_module, "_MOST_WAITING", 10)
    (tmp_path / "rec").write_text("")
    recorder = Recorder(tmp_path / "rec", "w")
    for i in range(25):
        recorder.add(row(i))
        recorder.flush()
    assert counts(recorder) == (0, 10, 15)
    assert len(told()) == 2
    assert "newer ones are dropped" in told()[1]
    (tmp_path / "rec").unlink()
    recorder.flush()
    recorder.add(row(99))
    recorder.close()
    assert counts(recorder) == (11, 0, 15)
    assert ids(tmp_path / "rec") == [*(f"r{i}" for i in range(10)), "r99"]


def test_content_waits_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "_MOST_WAITING_BYTES", 10_000)
    (tmp_path / "rec").write_text("")
    recorder = Recorder(tmp_path / "rec", "w", content=True)
    for i in range(10):
        recorder.add(row(i, prompt_token_ids=[7] * 1000))
    recorder.flush()
    assert counts(recorder) == (0, 3, 7)
    (tmp_path / "rec").unlink()
    recorder.close()
    assert ids(tmp_path / "rec") == ["r0", "r1", "r2"]


def test_what_never_found_room_is_counted_in_the_end(tmp_path, told):
    (tmp_path / "file").write_text("")
    recorder = Recorder(tmp_path / "file" / "rec", "w")
    for i in range(3):
        recorder.add(row(i))
        recorder.flush()
    recorder.close()
    assert counts(recorder) == (0, 0, 3)
    assert [text.rpartition(" ")[2] for text in told()] == ["room", "lost"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_cannot_be_taken_back_begins_a_new_journal(tmp_path):
    recorder = Recorder(tmp_path, "w")
    recorder.add(row(0))
    recorder.flush()
    with open("/dev/full", "wb", buffering=0) as full:
        kept, recorder._journal._file = recorder._journal._file, full
        recorder.add(row(1))
        recorder.flush()
        assert counts(recorder) == (1, 1, 0)
        assert recorder._journal is None
    kept.close()
    recorder.close()
    assert sorted(ids(tmp_path)) == ["r0", "r1"]


def test_a_folder_that_is_removed_is_made_again(tmp_path, told):
    recorder = Recorder(tmp_path / "rec", "w")
    recorder.add(row(0))
    recorder.flush()
    shutil.rmtree(tmp_path / "rec")
    recorder.add(row(1))
    recorder.close()
    assert "was removed, with 1 completions" in told()[0]
    assert ids(tmp_path / "rec") == ["r1"]


def test_a_journal_that_cannot_be_locked_leaves_no_file(tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(journal_module.fcntl, "flock", cannot)
    for _ in range(3):
        with pytest.raises(OSError, match="No locks"):
            Journal(tmp_path, "w")
    assert not list(tmp_path.iterdir())


# -- who may read it ---------------------------------------------------------------------------


def modes(folder):
    return {path.suffix or path.name: stat.S_IMODE(path.stat().st_mode)
            for path in folder.rglob("*")}  # fmt: skip


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_records_are_their_owners_only(tmp_path):
    folder = tmp_path / "new" / "rec"
    recorder = Recorder(folder, "w", content=True)
    recorder.add(row(0, prompt_token_ids=[1]))
    recorder.flush()
    assert modes(tmp_path) == {"new": 0o700, "rec": 0o700, ".journal": 0o600}
    with recorder._journal.path.open("ab") as file:
        file.write(b"torn")
    recorder.close()
    private = {".parquet": 0o600, ".damaged": 0o600}
    assert modes(tmp_path) == {"new": 0o700, "rec": 0o700, **private}


@pytest.mark.usefixtures("open_umask")
def test_a_folder_of_the_users_keeps_its_mode(tmp_path):
    (tmp_path / "own").mkdir(0o755)
    recorder = Recorder(tmp_path / "own", "w")
    recorder.add(row(0))
    recorder.close()
    assert modes(tmp_path) == {"own": 0o755, ".parquet": 0o600}


# -- what a completion may hold ----------------------------------------------------------------

AS_GIVEN = object()
ODD = {
    "a pair": ({"client_id": "\U0001f600"}, AS_GIVEN),
    "NUL in a text": ({"session_id": "a\0b"}, AS_GIVEN),
    "line ends in a text": ({"session_id": "a\n\r\u2028b"}, AS_GIVEN),
    "a text of 3 MB": ({"session_id": "é" * 1_500_000}, AS_GIVEN),
    "a whole float": ({"turn": 2.0}, AS_GIVEN),
    "a time before the origin": ({"arrival_time": -5.0}, AS_GIVEN),
    "a lone surrogate": ({"client_id": "a\udfffb"}, {"client_id": "a\ufffdb"}),
    "a hash of 65 bits": ({"prefix_hashes": [1, 2**64]}, {}),
    "fractions as hashes": ({"prefix_hashes": [1.5]}, {}),
    "a text as hashes": ({"prefix_hashes": "12"}, {}),
    "a fraction as turn": ({"turn": 2.5}, {}),
    "a truth value": ({"turn": True}, {}),
    "a huge number": ({"prompt_length": 10**30}, {}),
    "a negative number": ({"sample": -1}, {}),
    "NaN": ({"arrival_time": float("nan")}, {}),
    "infinity": ({"actual_time": float("inf")}, {}),
    "a list as text": ({"client_id": ["a"]}, {}),
    "a NaN among signals": ({"entropy": [1.0, float("nan")]}, {}),
    "a cap below the length": ({"max_length": 3}, {}),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_value_never_stops_the_record(case, tmp_path, told):
    """It is left out or replaced, counted and named; the row and its neighbours are there."""
    given, kept = ODD[case]
    recorder = Recorder(tmp_path, "w")
    for each in (row(8), {**row(9), **given}, row(10)):
        recorder.add(each)
    recorder.close()
    frame = read_history(tmp_path)
    assert frame["request_id"].to_list() == ["r8", "r9", "r10"]
    (column,) = given
    found = frame["request_id", *(given if column in frame.columns else ())].row(1, named=True)
    expected = given if kept is AS_GIVEN else kept
    assert found.get(column) == expected.get(column)
    changed = kept is not AS_GIVEN
    assert (recorder.recorded, recorder.lost, recorder.replaced) == (3, 0, int(changed))
    assert len(told()) == int(changed)
    assert not changed or f"{column}: " in told()[0]


def test_the_top_bit_of_a_hash_goes_as_in_a_request(tmp_path, told):
    recorder = Recorder(tmp_path, "w")
    recorder.add(row(0, prefix_hashes=[2**63 + 5, 2**63 - 1]))
    recorder.close()
    assert read_history(tmp_path)["prefix_hashes"].to_list() == [[5, 2**63 - 1]]
    assert not told()


def test_another_column_is_named(tmp_path, told):
    recorder = Recorder(tmp_path, "w")
    recorder.add(row(0, colour="a secret"))
    recorder.add(row(1, colour="a secret"))
    recorder.close()
    assert recorder.replaced == 2
    assert len(told()) == 1
    assert "secret" not in told()[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"actual_length": None},
        {"actual_length": -1},
        {"actual_length": 1.5},
        {"actual_length": 5, "finish_reason": "a secret"},
        ["a secret"],
    ],
)
def test_a_row_without_a_length_is_refused_alone(wrong, tmp_path, told):
    recorder = Recorder(tmp_path, "w")
    for each in (row(0), wrong, row(1)):
        recorder.add(each)
    recorder.close()
    assert (recorder.recorded, recorder.lost) == (2, 1)
    assert ids(tmp_path) == ["r0", "r1"]
    assert len(told()) == 1
    assert "secret" not in told()[0]


# -- what a crash leaves -----------------------------------------------------------------------

DAMAGE = [
    b"{broken}",
    b'{"actual_length": 7, "cli',
    b"\0\0\0\0\0\0",
    b"\xff\xfe",
    b"",
    b"[" * 50_000,
    b"[1]",
    b"null",
    b'{"actual_length": 5} {"actual_length": 6}',
    b'{"actual_length": "five"}',
    b'{"actual_length": 1' + b"0" * 5000 + b"}",
    b'{"actual_length": 7, "finish_reason": "hidden"}',
]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("damage", range(len(DAMAGE)))
def test_a_damaged_line_costs_itself_alone(damage, place, tmp_path, told):
    lines = [json.dumps(row(i)).encode() for i in range(2)]
    lines.insert(place, DAMAGE[damage])
    journal = tmp_path / "completions-x.journal"
    journal.write_bytes(b"\n".join(lines) + b"\n")
    assert list(recover_journals(tmp_path)) == [journal.with_suffix(".parquet")]
    assert ids(tmp_path) == ["r0", "r1"]
    assert len(told()) == 1
    assert f"1 of 3 lines damaged (line {place + 1}: " in told()[0]
    assert "hidden" not in told()[0]
    assert journal.with_suffix(".damaged").read_bytes() == DAMAGE[damage] + b"\n"
    assert not journal.exists()


def test_values_damaged_on_disk_are_named(tmp_path, told):
    """Also a surrogate in a journal of an older version, of which Polars makes a NUL."""
    journal = tmp_path / "completions-x.journal"
    odd = ({"client_id": "x\ud800"}, {"turn": 1.5}, {"turn": 2.5}, {"prefix_hashes": [2**64]})
    rows = [{**row(i), **cell} for i, cell in enumerate(odd)]
    journal.write_text("".join(json.dumps(each) + "\n" for each in rows))
    list(recover_journals(tmp_path))
    frame = read_history(tmp_path)
    assert frame["client_id"].to_list() == ["x\ufffd", None, None, None]
    assert set(frame.columns) == {*row(0), "client_id"}
    assert len(told()) == 1
    assert "1 × client_id: a lone surrogate" in told()[0]
    assert "2 × turn: not a whole number" in told()[0]
    assert "1 × prefix_hashes: over 64 bits" in told()[0]


def test_many_damaged_lines_are_counted_and_some_named(tmp_path, told):
    journal = tmp_path / "completions-x.journal"
    journal.write_text("x\n" * 100 + json.dumps(row(0)) + "\n" + '{"torn')
    list(recover_journals(tmp_path))
    assert "101 of 102 lines damaged (line 1: is not JSON; " in told()[0]
    assert told()[0].count("is not JSON") == 5
    assert len(journal.with_suffix(".damaged").read_bytes().splitlines()) == 101


def test_one_journal_that_cannot_be_turned_stops_no_other(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.journal").write_text(json.dumps(row(ord(name))) + "\n")
    (tmp_path / "b.parquet").mkdir()
    (tmp_path / "link.journal").symlink_to(tmp_path / "a.journal")
    os.mkfifo(tmp_path / "pipe.journal")
    with pytest.raises(HistoryError, match=r"b.parquet.*\(and 2 more\)"):
        list(recover_journals(tmp_path))
    (tmp_path / "b.parquet").rmdir()
    assert sorted(ids(tmp_path)) == ["r97", "r99"]
    assert (tmp_path / "b.journal").exists()


def test_what_another_process_takes_up_is_said_here(tmp_path, told):
    left = tmp_path / "completions-x.journal"
    left.write_text(json.dumps(row(1)) + "\ndamaged\n")
    recorder = Recorder(tmp_path, "w")
    ends = time.monotonic() + 60.0
    while (left.exists() or recorder._helper is not None) and time.monotonic() < ends:
        recorder.flush()
        time.sleep(0.02)
    assert len(told()) == 1
    assert "1 of 2 lines damaged (line 2: is not JSON)" in told()[0]
    recorder.close()
    assert len(told()) == 1
