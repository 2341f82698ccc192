"""``doctor`` says what of sageLLM is found, works, or is silently not registered."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from sagellm_lifetime import LifetimeError
from sagellm_lifetime.integrations.sagellm import diagnosis, packages
from sagellm_lifetime.integrations.sagellm.packages import CORE, KV_CACHE, Package, require


def found():
    return {check.what: check for check in diagnosis.diagnose()}


def test_nothing_installed(monkeypatch):
    monkeypatch.setattr(diagnosis, "is_installed", lambda module: False)
    monkeypatch.setattr(Package, "found", lambda self: None)
    checks = found()
    assert {check.state for check in checks.values()} == {"absent"}
    assert "pip install --no-deps isagellm-protocol" in checks["isagellm-kv-cache"].detail
    assert checks["sageLLM scheduler"].detail == "needs isagellm-core"


def test_what_is_installed_works(kv_cache, control_plane):
    checks = found()
    for what in ("eviction", "KV predictor", "KV pool", "control plane", "IR pass"):
        assert checks[f"sageLLM {what}"].state == "ok", checks[f"sageLLM {what}"]
    assert "install(manager, sequences)" in checks["sageLLM eviction"].detail
    assert "alone is LRUEviction" in checks["sageLLM eviction"].detail


def test_another_version_is_said(kv_cache, monkeypatch):
    monkeypatch.setattr(Package, "found", lambda self: "9.9.9")
    detail = found()["isagellm-kv-cache"].detail
    assert detail.startswith("9.9.9 is not known to work; pip install 'isagellm-kv-cache==0.5.4")


def test_a_package_that_breaks_is_a_finding(kv_cache, monkeypatch):
    from sagellm_kv_cache.eviction import EvictionManager

    monkeypatch.setattr(EvictionManager, "select_victims", lambda *arguments: [])
    check = found()["sageLLM eviction"]
    assert (check.state, check.detail) == ("broken", "the installed strategy is not asked")


@pytest.mark.usefixtures("core")
def test_a_plug_in_that_is_silently_not_registered_is_said(monkeypatch):
    monkeypatch.setattr(diagnosis, "entry_points", lambda group: [])
    check = found()["sageLLM scheduler"]
    assert check.state == "broken"
    assert "silently not registered: no entry point" in check.detail
    assert "pip install --force-reinstall" in check.detail
    gone = EntryPoint("lifetime", "nowhere_at_all:Plugin", "sagellm.schedulers")
    monkeypatch.setattr(diagnosis, "entry_points", lambda group: [gone])
    detail = found()["sageLLM scheduler"].detail
    assert (
        "silently not registered: ModuleNotFoundError: No module named 'nowhere_at_all'" in detail
    )


@pytest.mark.usefixtures("core")
def test_ours_is_registered():
    check = found()["sageLLM scheduler"]
    if "no entry point" in check.detail:
        pytest.skip("the installed package is older than its entry point: pip install -e .")
    assert check.state == "ok"
    assert check.detail.startswith("registered")


@pytest.mark.parametrize(
    ("package", "what", "missing", "line"),
    [
        (CORE, "sageLLM scheduler", "torch", "pip install torch fastapi"),
        (KV_CACHE, "sageLLM eviction", "sagellm_protocol", "--no-deps isagellm-protocol"),
    ],
)
def test_a_package_without_its_dependencies_is_said(monkeypatch, package, what, missing, line):
    def fails(name):
        raise ModuleNotFoundError(f"No module named {missing!r}")

    monkeypatch.setattr(diagnosis, "is_installed", lambda module: module == package.module)
    monkeypatch.setattr(packages, "is_installed", lambda module: module == package.module)
    monkeypatch.setattr(packages, "import_module", fails)
    check = found()[what]
    assert check.state == "broken"
    assert f"{package.distribution} cannot be imported" in check.detail
    assert line in check.detail
    if sys.version_info[:2] == (3, 11):
        with pytest.raises(LifetimeError, match=f"evicting: {package.distribution} cannot be"):
            require(package, "evicting")


def test_the_core_is_not_in_the_extra_and_its_own_line_says_so(monkeypatch):
    monkeypatch.setattr(packages, "is_installed", lambda module: False)
    with pytest.raises(LifetimeError, match=r"ordering needs isagellm-core: .*isagellm-core$"):
        require(CORE, "ordering")


def test_another_python_is_one_line(monkeypatch):
    monkeypatch.setattr(packages, "is_installed", lambda module: True)
    monkeypatch.setattr(packages.sys, "version_info", (3, 12, 1))
    with pytest.raises(LifetimeError, match=r"bytecode for Python 3\.11, this is 3\.12"):
        require(KV_CACHE, "evicting")
