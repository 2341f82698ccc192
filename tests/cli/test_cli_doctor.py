"""``doctor`` tells what is installed, what is absent and what is broken."""

import json
import sys

import pytest

from sagellm_lifetime.cli import doctor as module
from sagellm_lifetime.cli.main import run
from sagellm_lifetime.predictor import registry


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """A folder on the path, like one that pip has installed a package into."""

    def install(text):
        info = tmp_path / "other_models-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-models\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{text}\n")

    monkeypatch.syspath_prepend(tmp_path)
    registry._registered.cache_clear()
    yield install
    registry._registered.cache_clear()


@pytest.fixture
def no_vllm(monkeypatch):
    monkeypatch.setattr(module, "is_installed", lambda name: name != "vllm")


@pytest.mark.usefixtures("no_vllm")
def test_a_healthy_installation(capsys):
    assert run(["doctor", "--json", "-"], "lifetime") == 0
    found = json.loads(capsys.readouterr().out)
    states = {each["what"]: each["state"] for each in found["findings"]}
    assert states["sagellm-lifetime"] == states["predictors"] == "ok"
    assert states["vLLM"] == "absent"
    assert found["broken"] == []


@pytest.mark.usefixtures("no_vllm")
def test_a_model_of_another_package_that_cannot_be_loaded(entries, capsys):
    entries("mine = nowhere_to_be_found:Model")
    assert run(["doctor"], "lifetime") == 1
    out = capsys.readouterr().out
    assert "broken  model mine: " in out
    assert "nowhere_to_be_found" in out
    assert out.endswith("Broken: model mine.\n")


@pytest.mark.usefixtures("no_vllm")
def test_a_model_whose_import_ends_the_program_does_not_end_the_doctor(entries, tmp_path, capsys):
    (tmp_path / "ends_the_program.py").write_text("import sys; sys.exit('bye')")
    entries("mine = ends_the_program:Model")
    assert run(["doctor"], "lifetime") == 1
    out = capsys.readouterr().out
    assert "broken  model mine: predictor 'mine' of other-models 1.0 cannot be loaded" in out
    assert "(SystemExit: bye)" in out
    assert out.endswith("Broken: model mine.\n")


@pytest.mark.usefixtures("no_vllm")
def test_an_extra_that_is_absent_says_how_to_get_it(monkeypatch, capsys):
    version_of = module._version_of
    monkeypatch.setattr(
        module, "_version_of", lambda *names: None if "torch" in names else version_of(*names)
    )
    assert run(["doctor"], "lifetime") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "[train]" in line]
    assert len(lines) == 1
    assert lines[0].startswith("absent  extra [train]: no torch")
    assert "pip install 'isagellm-lifetime[train]'" in lines[0]


def test_a_vllm_that_cannot_be_imported_is_a_finding(monkeypatch):
    monkeypatch.setattr(module, "is_installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "sagellm_lifetime.vllm.compat.interface", None)
    (found,) = module._vllm()
    assert found.state == "broken"
    assert "cannot be imported (ModuleNotFoundError: " in found.detail


@pytest.mark.usefixtures("vllm")
def test_vllm_is_looked_at(monkeypatch):
    from sagellm_lifetime.vllm.compat import interface

    assert {each.state for each in module.diagnose() if each.what == "vLLM"} == {"ok"}
    monkeypatch.setattr(interface, "changes", lambda: ["no Scheduler.schedule"])
    (found,) = [each for each in module.diagnose() if each.what == "vLLM"]
    assert found.state == "broken"
    assert "no Scheduler.schedule" in found.detail
