"""Checkpoints: damage of every kind is one line, nothing is executed, the old one survives."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from contextlib import suppress

import numpy as np
import pytest

from sagellm_lifetime import (
    BackgroundLearner,
    CheckpointError,
    PredictionRequest,
    create_predictor,
    load_predictor,
)
from sagellm_lifetime.predictor import checkpoint_file as module
from sagellm_lifetime.predictor.checkpoint_file import (
    MANIFEST,
    MODEL,
    Checkpoint,
    export_checkpoint,
    read_checkpoint,
)

pytestmark = pytest.mark.usefixtures("new_weights_at_once")


def taught(name="survival", **options):
    predictor = create_predictor(name, **options)
    for i in range(20):
        predictor.predict(PredictionRequest(i, [], 0, 512, {"client_id": i % 3}))
        predictor.update(i, 100 + i, 1.0)
    return predictor


def answer(predictor) -> tuple:
    result = predictor.predict(PredictionRequest("q", [], 0, 512, {"client_id": 1}))
    return result.estimated_remaining_tokens, result.confidence


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model"
    taught().save(path)
    return path


def refused(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_predictor(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def rewrite(path, change, *, arrays=None):
    """Change the manifest (and the arrays), with every checksum made to fit."""
    from safetensors.numpy import load, save

    manifest = json.loads((path / MANIFEST).read_text())
    held = load((path / MODEL).read_bytes())
    if arrays is not None:
        arrays(held)
        data = save({k: np.ascontiguousarray(v) for k, v in held.items()})
        (path / MODEL).write_bytes(data)
        manifest["sha256"] = hashlib.sha256(data).hexdigest()
        manifest["arrays"] = {
            k: {"shape": list(v.shape), "dtype": str(v.dtype)} for k, v in held.items()
        }
    if change is not None:
        change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_round_trip_and_what_the_manifest_says(saved):
    manifest = json.loads((saved / MANIFEST).read_text())
    assert manifest["format"] == 4
    assert manifest["predictor"] == "survival"
    assert manifest["sha256"] == hashlib.sha256((saved / MODEL).read_bytes()).hexdigest()
    assert set(manifest) >= {"options", "features", "training_data", "metrics", "arrays"}
    predictor = taught()
    predictor.save(saved)
    assert answer(load_predictor(saved)) == answer(predictor)
    assert sorted(p.name for p in saved.iterdir()) == [MANIFEST, MODEL]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ["survival", "lstm"])
def test_exported_files_load_the_same(name, suffix, tmp_path):
    if suffix == ".pt":
        pytest.importorskip("torch")
    predictor = taught(name, **({"hidden_size": 8} if name == "lstm" else {}))
    path = tmp_path / f"model{suffix}"
    known = predictor.state()
    export_checkpoint(Checkpoint(name, dict(predictor.options), known), path)
    loaded = load_predictor(path)
    assert answer(loaded) == answer(predictor)
    for key, value in loaded.state().items():
        assert np.array_equal(value, known[key]), key


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, 0.99])
def test_truncated(saved, keep):
    data = (saved / MODEL).read_bytes()
    (saved / MODEL).write_bytes(data[: int(len(data) * keep) if keep < 1 else keep])
    assert "sha256" in refused(saved)


def test_every_flipped_bit_is_noticed(saved):
    data = bytearray((saved / MODEL).read_bytes())
    for at in np.random.default_rng(0).integers(0, len(data), 12):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(at % 8)
        (saved / MODEL).write_bytes(flipped)
        refused(saved)


def test_flipped_bits_of_an_export_never_crash(tmp_path):
    path = tmp_path / "model.safetensors"
    predictor = taught()
    export_checkpoint(Checkpoint("survival", {}, predictor.state()), path)
    data = path.read_bytes()
    for at in range(0, 400, 7):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        path.write_bytes(flipped)
        with suppress(CheckpointError):
            load_predictor(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_export_with_other_arrays_is_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    held = Checkpoint("survival", {}, taught().state())
    manifest = held.manifest
    object.__setattr__(held, "manifest", lambda digest: manifest("0" * 64))
    export_checkpoint(held, path)
    assert "sha256" in refused(path)


def test_missing_pieces(saved, tmp_path):
    assert "no such" in refused(tmp_path / "nothing")
    (saved / MANIFEST).unlink()
    assert MANIFEST in refused(saved)
    for name in ("a.bin", "b"):
        (tmp_path / name).write_bytes(b"x")
        refused(tmp_path / name)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 1}',
        b'{"format": 2}',
        b'{"format": 3}',
        b"{}",
    ],
    ids=range(11),
)
def test_manifests_that_are_none(saved, text):
    (saved / MANIFEST).write_bytes(text)
    refused(saved)


CHANGES = {
    "another format": lambda m: m.update(format=5),
    "no format": lambda m: m.pop("format"),
    "another schema": lambda m: m["features"].update(bins=7),
    "another checksum": lambda m: m.update(sha256="0" * 64),
    "no checksum": lambda m: m.pop("sha256"),
    "unknown predictor": lambda m: m.update(predictor="oracle"),
    "a predictor that is a list": lambda m: m.update(predictor=["survival"]),
    "another predictor": lambda m: m.update(predictor="linear"),
    "unknown option": lambda m: m["options"].update(depth=3),
    "impossible option": lambda m: m["options"].update(capacity=-1),
    "option of the wrong type": lambda m: m["options"].update(max_nodes="many"),
    "options that are a list": lambda m: m.update(options=[1]),
    "arrays that are a list": lambda m: m.update(arrays=[1]),
    "no arrays": lambda m: m.update(arrays={}),
    "a shape that is not there": lambda m: m["arrays"]["lessons"].update(shape=[10**9, 10**9]),
    "a type that is not there": lambda m: m["arrays"]["lessons"].update(dtype="float32"),
    "an array without a shape": lambda m: m["arrays"]["lessons"].pop("shape"),
    "an array that is text": lambda m: m["arrays"].update(lessons="x"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_manifests_that_lie(saved, what):
    rewrite(saved, CHANGES[what])
    refused(saved)


def test_a_checkpoint_of_an_earlier_version_says_so(saved, tmp_path):
    rewrite(saved, lambda m: m.update(format=1))
    told = "written by an earlier version of this package; train again"
    assert refused(saved) == f"{saved}: {told}"
    with pytest.raises(CheckpointError, match=told):
        BackgroundLearner(create_predictor("survival"), saved)
    path = tmp_path / "model.safetensors"
    held = Checkpoint("survival", {}, taught().state())
    manifest = held.manifest
    object.__setattr__(held, "manifest", lambda digest: manifest(digest) | {"format": 1})
    export_checkpoint(held, path)
    assert refused(path) == f"{path}: {told}"


def test_a_checkpoint_of_an_unknown_predictor_names_it(saved):
    rewrite(saved, lambda m: m.update(predictor="oracle"))
    assert refused(saved) == (
        f"{saved}: made by predictor 'oracle', which no installed package registers (entry points "
        "of the group sagellm_lifetime.models)"
    )


UNSAVABLE = {
    "half precision": (lambda p, patch: patch({"x": np.zeros(2, np.float16)}), "type float16"),
    "objects": (lambda p, patch: patch({"x": np.array([None])}), "type object"),
    "text": (lambda p, patch: patch({"x": np.array(["a"])}), "type <U1"),
    "another byte order": (lambda p, patch: patch({"x": np.zeros(2, ">f8")}), "type >f8"),
    "a name that is none": (lambda p, patch: patch({"\ud800": np.zeros(2)}), "no valid text"),
    "an option that is no JSON": (
        lambda p, patch: p.model.options.update(depth=np.int64(3)),
        "written as JSON (TypeError: Object of type int64",
    ),
    "a summary that is no JSON": (lambda p, patch: p.summary.update(rows={1}), "written as JSON"),
}


@pytest.mark.parametrize("what", UNSAVABLE)
def test_what_could_not_be_loaded_is_not_saved(saved, tmp_path, monkeypatch, what):
    change, told = UNSAVABLE[what]
    predictor = taught()
    change(predictor, lambda state: monkeypatch.setattr(predictor.model, "state", lambda: state))
    before = (saved / MANIFEST).read_bytes()
    for path in (saved, tmp_path / "new"):
        with pytest.raises(CheckpointError) as caught:
            predictor.save(path)
        assert told in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")
    assert (saved / MANIFEST).read_bytes() == before
    held = Checkpoint("survival", predictor.options, predictor.state(), predictor.summary)
    for suffix in (".safetensors", ".pt"):
        with pytest.raises(CheckpointError):
            export_checkpoint(held, tmp_path / f"model{suffix}")
    assert not list(tmp_path.glob("model.*"))


def drop(name):
    return lambda held: held.pop(name)


def put(name, value):
    return lambda held: held.update({name: value})


DAMAGES = {
    "lessons missing": drop("lessons"),
    "lessons empty": put("lessons", np.zeros(0, dtype=np.int64)),
    "calibration missing": drop("calibration.pit"),
    "calibration of another shape": put("calibration.pit", np.zeros((2, 3))),
    "calibration not finite": put("calibration.hits", np.full((11, 11), np.nan)),
    "tables of another width": put("predictor.tables.ended", np.zeros((1, 5), dtype=np.float32)),
    "keys missing": drop("predictor.tables.keys"),
    "half precision": put("lessons", np.zeros(1, dtype=np.float16)),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_arrays_that_do_not_fit(saved, what):
    rewrite(saved, None, arrays=DAMAGES[what])
    refused(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.update({"predictor.weights.head.bias": np.zeros(3, dtype=np.float32)}),
        lambda held: held.update(
            {k: v.astype(np.float64) for k, v in held.items() if "weights.lstm" in k}
        ),
        lambda held: held.pop("predictor.weights.lstm.weight_hh_l0"),
        lambda held: held.pop("predictor.weights.evidence.names.weight"),
        lambda held: held.update(
            {"predictor.weights.lstm.weight_hh_l0": np.zeros((32, 3), dtype=np.float32)}
        ),
    ],
    ids=["head", "double", "no recurrence", "no names", "recurrence"],
)
def test_weights_that_do_not_fit(tmp_path, change):
    pytest.importorskip("torch")
    path = tmp_path / "model"
    predictor = taught("lstm", hidden_size=8)
    assert predictor.model.weights is not None
    predictor.save(path)
    rewrite(path, None, arrays=change)
    refused(path)


def test_a_header_that_lies_about_its_size_allocates_nothing(saved, tmp_path):
    import tracemalloc

    huge = {"lessons": {"dtype": "F64", "shape": [1 << 40], "data_offsets": [0, 1 << 43]}}
    text = json.dumps(huge).encode()
    data = len(text).to_bytes(8, "little") + text
    (saved / MODEL).write_bytes(data)
    manifest = json.loads((saved / MANIFEST).read_text())
    manifest["sha256"] = hashlib.sha256(data).hexdigest()
    manifest["arrays"] = {"lessons": {"shape": [1 << 40], "dtype": "float64"}}
    (saved / MANIFEST).write_text(json.dumps(manifest))
    tracemalloc.start()
    refused(saved)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    # A length of the header beyond the file.
    (saved / MODEL).write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    rewrite_digest(saved)
    refused(saved)


def rewrite_digest(path):
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["sha256"] = hashlib.sha256((path / MODEL).read_bytes()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(manifest))


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_pickle_bombs_do_not_go_off(tmp_path):
    torch = pytest.importorskip("torch")
    Bomb.target = tmp_path / "boom"
    plain = pickle.dumps({"manifest": Bomb(), "arrays": {}})
    buffer = io.BytesIO()
    torch.save({"manifest": Bomb(), "arrays": {}}, buffer)
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w") as archive:
        archive.writestr("archive/data.pkl", plain)
        archive.writestr("archive/version", "3")
    for i, data in enumerate(
        (plain, buffer.getvalue(), inside.getvalue(), b"", b"PK\x03\x04", b"x")
    ):
        path = tmp_path / f"{i}.pt"
        path.write_bytes(data)
        refused(path)
    assert not Bomb.target.exists()


def test_pt_files_that_hold_something_else(tmp_path):
    torch = pytest.importorskip("torch")
    export = tmp_path / "good.pt"
    export_checkpoint(Checkpoint("survival", {}, taught().state()), export)
    data = export.read_bytes()
    huge = torch.zeros(1).expand(1 << 45)
    held = torch.load(io.BytesIO(data), weights_only=True)
    things = [
        torch.zeros(3),
        {"manifest": 7, "arrays": {}},
        {"manifest": held["manifest"], "arrays": {"lessons": 5}},
        {"manifest": held["manifest"], "arrays": {**held["arrays"], "lessons": huge}},
        {"manifest": held["manifest"], "arrays": [1]},
        {"weights": {}},
    ]
    for i, thing in enumerate(things):
        path = tmp_path / f"{i}.pt"
        torch.save(thing, path)
        refused(path)
    for keep in (10, len(data) // 2, len(data) - 30):
        export.write_bytes(data[:keep])
        refused(export)


def test_only_checkpoints_are_replaced(tmp_path):
    predictor = taught()
    for make in (
        lambda p: p.write_text("my thesis"),
        lambda p: (p.mkdir(), (p / "photo.jpg").write_text("x")),
    ):
        path = tmp_path / f"place{len(list(tmp_path.iterdir()))}"
        make(path)
        before = sorted(str(p) for p in tmp_path.rglob("*"))
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            predictor.save(path)
        assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    predictor.save(tmp_path / "empty")
    predictor.save(tmp_path / "not" / "yet" / "there")
    load_predictor(tmp_path / "not" / "yet" / "there")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"):
        taught().save(tmp_path / "file" / "model")


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("failing", ["rename", "fsync", "rmtree"])
def test_a_failing_write_leaves_the_old_checkpoint(tmp_path, monkeypatch, exchange, failing):
    path = tmp_path / "model"
    old = taught()
    old.save(path)
    wanted = answer(load_predictor(path))
    new = taught("linear")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if not exchange:
        monkeypatch.setattr(module, "_exchange", lambda a, b: False)
    real = os.rename
    calls = []

    def fail_second(*args):
        calls.append(args)
        if len(calls) == 2:
            fail()
        return real(*args)

    if failing == "rename":
        monkeypatch.setattr(os, "rename", fail_second)
    elif failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(module.shutil, "rmtree", lambda *a, **k: None)
    message = ""
    try:
        new.save(path)
    except CheckpointError as error:
        message = str(error)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["model"]
    if failing == "rmtree" or (failing == "rename" and exchange):
        assert load_predictor(path).name == "linear"
    else:
        assert "No space left" in message
        assert answer(load_predictor(path)) == wanted


@pytest.mark.parametrize("point", ["fsync 1", "fsync 2", "rmtree 1"])
def test_a_killed_write_leaves_a_checkpoint(tmp_path, point):
    """The process dies (``os._exit``) in the middle of writing over an old checkpoint."""
    path = tmp_path / "model"
    taught().save(path)
    what, nth = point.split()
    code = f"""
        import os, shutil
        from sagellm_lifetime import PredictionRequest, create_predictor
        owner = {{"fsync": os, "rmtree": shutil}}[{what!r}]
        left = [{nth}]

        def die(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)

        setattr(owner, {what!r}, die)
        create_predictor("linear").save({str(path)!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == 9
    loaded = load_predictor(path)
    assert loaded.name == ("linear" if what == "rmtree" else "survival")
    taught("linear").save(path)
    assert load_predictor(path).name == "linear"


def test_unknown_suffix(tmp_path):
    with pytest.raises(CheckpointError, match="export writes"):
        export_checkpoint(Checkpoint("survival", {}, {}), tmp_path / "model.bin")


def test_names_of_arrays_are_kept_and_nan_metrics_are_null(tmp_path):
    predictor = create_predictor("survival")
    predictor.save(tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / MANIFEST).read_text())
    assert manifest["metrics"]["mae"] is None
    assert set(manifest["arrays"]) == set(read_checkpoint(tmp_path / "m").arrays)
