"""A torchvision built for another PyTorch counts as absent, a good one is left alone."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

from sagellm_lifetime.vllm.compat import torch_companions as builds


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Makes packages that "are installed": name -> (version, source)."""
    before = {key: module for key, module in sys.modules.items() if _is_companion(key)}
    for key in before:
        del sys.modules[key]

    def install(**packages):
        for name, (_, source) in packages.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(source)
            (tmp_path / name / "part.py").write_text("")

        def version(name):
            if name not in packages:
                raise importlib.metadata.PackageNotFoundError(name)
            return packages[name][0]

        monkeypatch.setattr(builds.importlib.metadata, "version", version)

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for key in [key for key in sys.modules if _is_companion(key)]:
        del sys.modules[key]
    sys.modules.update(before)  # what this process has hidden stays hidden


def _is_companion(module):
    return module.partition(".")[0] in builds.COMPANIONS


BROKEN = "from . import part\nraise RuntimeError('operator torchvision::nms does not exist')"


def test_a_broken_one_counts_as_absent(installed):
    installed(torch=("2.13.0+cpu", ""), torchvision=("0.28.0", BROKEN))
    assert builds.hide_broken_builds() == ["torchvision"]
    assert importlib.util.find_spec("torchvision") is None
    assert "torchvision.part" not in sys.modules
    with pytest.raises(ImportError):
        importlib.import_module("torchvision")
    assert builds.hide_broken_builds() == []


def test_one_that_works_stays(installed):
    installed(torch=("2.13.0+cpu", ""), torchvision=("0.28.0", ""))
    assert builds.hide_broken_builds() == []
    assert importlib.util.find_spec("torchvision") is not None


@pytest.mark.parametrize(("torch", "vision"), [("2.13.0", "0.28.0"), ("2.13.0+cpu", "0.28.0+cpu")])
def test_builds_that_agree_are_not_even_tried(installed, torch, vision):
    installed(torch=(torch, ""), torchvision=(vision, BROKEN))
    assert builds.hide_broken_builds() == []
    assert "torchvision" not in sys.modules


BUILD = """
from sagellm_lifetime.replay.engine import EngineSettings, build_scheduler
build_scheduler(EngineSettings(blocks=10), 128)
"""


def test_on_a_fresh_machine_vllm_looks_at_a_model_without_what_is_hidden(vllm, tmp_path):
    # vLLM does so in a process of its own, once a machine: what it found is in its cache.
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        env=os.environ | {"VLLM_CACHE_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("modelinfos/*"))
