"""Checkpoints as files: writers that are killed or compete, modes, and sizes that lie."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

import sagellm_lifetime.predictor.checkpoint_file as module
from sagellm_lifetime import CheckpointError, PredictionRequest, create_predictor, load_predictor
from sagellm_lifetime.predictor.checkpoint_file import (
    MANIFEST,
    MODEL,
    Checkpoint,
    export_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from sagellm_lifetime.predictor.checkpoint_lock import claim


def known(completions: int = 0) -> Checkpoint:
    predictor = create_predictor("orca")
    for i in range(completions):
        predictor.predict(PredictionRequest(i, [], 0, None, {"model": f"m{i % 3}"}))
        predictor.update(i, i + 1, 1.0)
    return Checkpoint("orca", {}, predictor.state())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_interrupted_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], nth: int
) -> None:
    write_checkpoint(known(), tmp_path / "model")
    calls = []
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            fsync(descriptor)  # a thread that an earlier test has left
            return
        calls.append(1)
        if len(calls) == nth:
            raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(failure):
        write_checkpoint(known(9), tmp_path / "model")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["model"]
    load_predictor(tmp_path / "model")


@pytest.mark.parametrize("point", ["fsync 1", "fsync 2", "rename 1", "rmtree 1"])
@pytest.mark.parametrize("next_one", ["save", "claim"])
def test_what_a_killed_save_left_is_removed_by_the_next(
    tmp_path: Path, point: str, next_one: str
) -> None:
    path = tmp_path / "model"
    write_checkpoint(known(), path)
    what, nth = point.split()
    code = f"""
        import os, shutil, signal
        from sagellm_lifetime import create_predictor
        owner = shutil if {what!r} == "rmtree" else os
        left = [{nth}]

        def die(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, {what!r}, die)
        create_predictor("orca").save({str(path)!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    if next_one == "save":
        write_checkpoint(known(), path)
    else:
        os.close(claim(path, 0.0))
    assert {*os.listdir(tmp_path)} - {".model.lock"} == {"model"}
    load_predictor(path)


def test_a_checkpoint_moved_aside_by_a_killed_writer_is_put_back(tmp_path: Path) -> None:
    """Where two directories cannot be exchanged there is a moment without one."""
    path = tmp_path / "model"
    write_checkpoint(known(7), path)
    aside = tmp_path / f".model.old.{'0' * 16}"
    aside.mkdir()
    path.rename(aside / "model")
    os.close(claim(path, 0.0))
    assert load_predictor(path).get_metrics()["lessons"] == 7
    assert not aside.exists()


def save_often(path: Path, times: int) -> int:
    """Save again and again in a process of its own, started by ``go``; return its id."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            for _ in range(times):
                write_checkpoint(known(4), path)
        except BaseException:  # noqa: BLE001 - told by the exit code
            code = 3
        os._exit(code)
    return pid


@pytest.mark.parametrize("exchange", [True, False])
def test_writers_and_readers_of_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    path = tmp_path / "model"
    if not exchange:
        monkeypatch.setattr(module, "_exchange", lambda *_: False)
    write_checkpoint(known(4), path)
    writers = [save_often(path, 25) for _ in range(3 if exchange else 1)]
    faults = []
    reads = 0
    while writers:
        try:
            read_checkpoint(path)
            reads += 1
        except CheckpointError as error:
            absent = ("no such checkpoint", "was replaced or removed while it was read")
            if exchange or not str(error).endswith(absent):
                faults.append(str(error))
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            writers.remove(pid)
            assert os.waitstatus_to_exitcode(status) == 0
    assert not faults
    assert reads > 5
    assert os.listdir(tmp_path) == ["model"]


def test_several_writers_of_a_new_checkpoint_all_succeed(tmp_path: Path) -> None:
    for k in range(8):
        path = tmp_path / f"model{k}"
        for pid in [save_often(path, 1) for _ in range(3)]:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        load_predictor(path)
    assert len(os.listdir(tmp_path)) == 8


def test_an_export_read_while_it_is_written_is_one_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    held = [known(3), known(300)]
    export_checkpoint(held[0], path)
    faults: list[str] = []
    done = threading.Event()

    def write(one: Checkpoint) -> None:
        for _ in range(40):
            export_checkpoint(one, path)

    def read() -> None:
        while not done.is_set():
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                faults.append(str(error))

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=[one]) for one in held]
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert faults == []


def test_modes(tmp_path: Path) -> None:
    path = tmp_path / "model"
    umask = os.umask(0o022)
    try:
        write_checkpoint(known(), path)
        assert [mode(path), mode(path / MODEL), mode(path / MANIFEST)] == [0o700, 0o600, 0o600]
        path.chmod(0o750)
        (path / MODEL).chmod(0o640)
        write_checkpoint(known(), path)
        assert [mode(path), mode(path / MODEL), mode(path / MANIFEST)] == [0o750, 0o640, 0o600]
        export_checkpoint(known(), tmp_path / "model.safetensors")
        assert mode(tmp_path / "model.safetensors") == 0o644
    finally:
        os.umask(umask)


def test_a_link_to_a_checkpoint_stays_one(tmp_path: Path) -> None:
    write_checkpoint(known(), tmp_path / "v1")
    (tmp_path / "newest").symlink_to("v1")
    write_checkpoint(known(5), tmp_path / "newest")
    assert (tmp_path / "newest").is_symlink()
    assert load_predictor(tmp_path / "v1").get_metrics()["lessons"] == 5
    assert sorted(os.listdir(tmp_path)) == ["newest", "v1"]


def exported_pt(tmp_path: Path) -> dict[str, bytes]:
    pytest.importorskip("torch")
    path = tmp_path / "good.pt"
    export_checkpoint(known(), path)
    load_predictor(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, entries: dict[str, bytes], compression: int) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_a_pt_that_inflates_beyond_every_predictor_is_not_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = exported_pt(tmp_path)
    monkeypatch.setattr(module, "_MAX_BYTES", 1 << 20)
    small = write_zip(tmp_path / "small.pt", entries, zipfile.ZIP_DEFLATED)
    read_checkpoint(small)
    name = next(name for name in entries if name.endswith("data/0"))
    many = {**entries, **{f"{name}{i}": bytes(1 << 19) for i in range(2)}}
    for i, large in enumerate([{**entries, name: bytes(1 << 21)}, many]):
        bomb = write_zip(tmp_path / f"{i}.pt", large, zipfile.ZIP_DEFLATED)
        assert bomb.stat().st_size < 1 << 18
        monkeypatch.setattr("zipfile.ZipFile.read", None)
        with pytest.raises(CheckpointError, match="inflated it is larger"):
            read_checkpoint(bomb)
        monkeypatch.undo()
        monkeypatch.setattr(module, "_MAX_BYTES", 1 << 20)


def test_a_pt_whose_directory_lies_about_sizes(tmp_path: Path) -> None:
    entries = exported_pt(tmp_path)
    path = write_zip(tmp_path / "lie.pt", entries, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    for size in (0, 1, (1 << 32) - 2):
        data[at + 24 : at + 28] = size.to_bytes(4, "little")
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_a_pt_that_names_more_than_tensors(tmp_path: Path) -> None:
    entries = exported_pt(tmp_path)
    name = next(name for name in entries if name.endswith(".pkl"))
    for i, content in enumerate(
        [
            b"cbuiltins\nbytearray\n(I1000000000\ntR.",
            b"\x80\x04\x8c\x08builtins\x8c\x09bytearray\x93(I1000000000\ntR.",
            b"(I1000000000\nibuiltins\nbytearray\n.",
        ]
    ):
        path = write_zip(tmp_path / f"{i}.pt", {**entries, name: content}, zipfile.ZIP_STORED)
        with pytest.raises(CheckpointError, match="not only tensors"):
            read_checkpoint(path)


def test_a_manifest_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    write_checkpoint(known(), path)
    good = (path / MANIFEST).read_bytes()
    (path / MANIFEST).write_bytes(good + b" " * module._MAX_MANIFEST)
    with pytest.raises(CheckpointError, match="more than any predictor needs"):
        read_checkpoint(path)
    deep: Any = {}
    for _ in range(200):
        deep = {"deeper": deep}
    (path / MANIFEST).write_text(json.dumps({**json.loads(good), "training_data": deep}))
    with pytest.raises(CheckpointError, match="nested"):
        read_checkpoint(path)
    (path / MANIFEST).write_bytes(good)
    # What could not be read again is not written.
    summary = {"columns": ["x" * (module._MAX_MANIFEST + 1)]}
    with pytest.raises(CheckpointError, match="could not be loaded"):
        write_checkpoint(Checkpoint("orca", {}, known().arrays, summary), path)
    load_predictor(path)


def test_an_export_has_a_manifest_of_text_and_a_header_of_a_size(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    export_checkpoint(known(), path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    manifests: list[Any] = [None, 7, "\ud800", " " * (module._MAX_MANIFEST + 1), "{}"]
    for manifest in manifests:
        header["__metadata__"]["manifest"] = manifest
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
    path.write_bytes((1 << 40).to_bytes(8, "little") + data[8:])
    with pytest.raises(CheckpointError, match="header is longer"):
        read_checkpoint(path)


def test_arrays_of_a_pt_that_are_no_arrays_of_ours(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "good.pt"
    export_checkpoint(known(), path)
    held = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
    one = torch.zeros(1)
    for i, arrays in enumerate(
        [{1: one, "a": one}, {"\ud800": one}, {"a": one.to(torch.complex64)}, {"a": one.bfloat16()}]
    ):
        odd = tmp_path / f"{i}.pt"
        torch.save({"manifest": held["manifest"], "arrays": arrays}, odd)
        with pytest.raises(CheckpointError):
            read_checkpoint(odd)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_leaves_nothing(tmp_path: Path, which: int) -> None:
    history = tmp_path / "h.csv"
    history.write_text("actual_length\n" + "5\n" * 50)
    code = """
        import os, signal, sys, time
        for each in (signal.SIGTERM, signal.SIGHUP):  # nohup leaves a signal ignored
            signal.signal(each, signal.SIG_DFL)
        from sagellm_lifetime.cli.main import main
        def slow(_): print("saving", file=sys.stderr, flush=True); time.sleep(60)
        os.fsync = slow
        main()
    """
    arguments = ["train", "--predictor-type", "orca", "--data-path", str(history)]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments, "--output-path", "out/orca"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    ) as command:
        assert command.stderr is not None
        # What was understood of the log comes first.
        assert any(line == b"saving\n" for line in command.stderr)
        assert len(os.listdir(tmp_path / "out")) == 1
        started = time.monotonic()
        command.send_signal(which)
        assert command.stderr.read() == b"terminated\n"
        assert command.wait() == 143
        assert time.monotonic() - started < 30
    assert os.listdir(tmp_path / "out") == []
