"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagellm_lifetime.core import atomic
from sagellm_lifetime.core.atomic import (
    make_folder,
    remove_leftovers,
    replacing,
    temporary_folder,
    write_atomically,
)
from sagellm_lifetime.core.errors import CheckpointError, LifetimeError


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_threads_that_write_one_file_never_tear_it(tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    texts = [bytes([65 + k]) * (40_000 + k) for k in range(3)]
    write_atomically(target, texts[0])
    faults: list[object] = []
    done = threading.Event()

    def writer(text: bytes) -> None:
        try:
            for _ in range(60):
                write_atomically(target, text)
        except LifetimeError as error:
            faults.append(error)

    def reader() -> None:
        while not done.is_set():
            found = target.read_bytes()
            if found not in texts:
                faults.append(len(found))

    readers = [threading.Thread(target=reader) for _ in range(2)]
    writers = [threading.Thread(target=writer, args=[text]) for text in texts]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert faults == []
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    target = tmp_path / "out.json"
    for planted in (target, tmp_path / f".out.json.{os.getpid()}"):
        planted.symlink_to(victim)
    write_atomically(target, b"{}")
    assert victim.read_text() == "mine"
    assert not target.is_symlink()
    assert target.read_bytes() == b"{}"


def test_a_temporary_name_that_is_taken_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    names = iter(["00" * 6, "00" * 6, "11" * 6])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(names))
    (tmp_path / f".out.{'00' * 6}.tmp").symlink_to(victim)
    write_atomically(tmp_path / "out", b"new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "out").read_bytes() == b"new"


def test_modes(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new", b"")
    assert mode(tmp_path / "new") == 0o644
    (tmp_path / "kept").write_text("")
    (tmp_path / "kept").chmod(0o664)
    write_atomically(tmp_path / "kept", b"")
    assert mode(tmp_path / "kept") == 0o664
    for name in ("kept", "deep/er/secret"):
        write_atomically(tmp_path / name, b"", private=True)
        assert mode(tmp_path / name) == 0o600
    assert mode(tmp_path / "deep") == mode(tmp_path / "deep" / "er") == 0o700
    make_folder(tmp_path / "open" / "wide")
    assert mode(tmp_path / "open" / "wide") == 0o755
    make_folder(tmp_path / "open", private=True)
    assert mode(tmp_path / "open") == 0o755


def test_only_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(CheckpointError, match="not a regular file"):
            write_atomically(tmp_path / name, b"x", error=CheckpointError)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, MemoryError, OSError])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_nothing_is_left_by_an_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], where: str
) -> None:
    target = tmp_path / "out"
    write_atomically(target, b"old")

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(LifetimeError if failure is OSError else failure):
        write_atomically(target, b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["out"]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, OSError])
def test_no_folder_is_left_by_an_exception(tmp_path: Path, failure: type[BaseException]) -> None:
    def fill() -> None:
        with temporary_folder(tmp_path / "out") as folder:
            (folder / "part").write_text("half")
            raise failure

    with pytest.raises(failure):
        fill()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["replacing", "temporary_folder"])
def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_holds_is_not(
    tmp_path: Path, what: str
) -> None:
    target = tmp_path / "out"
    code = f"""
        from pathlib import Path
        from sagellm_lifetime.core.atomic import {what}
        with {what}(Path({str(target)!r})) as made:
            print("made", flush=True)
            input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        (left,) = os.listdir(tmp_path)
        remove_leftovers(target)
        write_atomically(target, b"another's")
        assert sorted(os.listdir(tmp_path)) == [left, "out"]
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    remove_leftovers(tmp_path / "ou")
    assert sorted(os.listdir(tmp_path)) == [left, "out"]
    write_atomically(target, b"mine")
    assert os.listdir(tmp_path) == ["out"]


def test_what_only_looks_like_a_leftover_stays(tmp_path: Path) -> None:
    names = [".out.lock", ".out.notes.tmp", ".out.0123456789ab", ".other.0123456789ab.tmp", "out"]
    for name in names:
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_where_there_are_no_locks_nothing_is_taken_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    left = tmp_path / ".out.0123456789ab.tmp"
    left.write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        write_atomically(tmp_path / "out", b"x")
        assert left.exists()
    write_atomically(tmp_path / "out", b"x")
    assert not left.exists()


def test_a_name_taken_for_a_leftover_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    real = atomic._lock

    def cleaned_first(descriptor: int) -> bool | None:
        if not taken:
            taken.extend(os.listdir(tmp_path))
            for name in taken:
                (tmp_path / name).unlink()
        return real(descriptor)

    monkeypatch.setattr(atomic, "_lock", cleaned_first)
    with replacing(tmp_path / "out") as file:
        assert taken
        assert os.listdir(tmp_path) != taken
        file.write(b"whole")
    assert (tmp_path / "out").read_bytes() == b"whole"


def test_names_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    target = tmp_path / ("ä" * 127)
    write_atomically(target, b"x")
    write_atomically(target, b"y")
    assert target.read_bytes() == b"y"
    with pytest.raises(LifetimeError, match="too long"):
        write_atomically(tmp_path / ("x" * 256), b"x")
