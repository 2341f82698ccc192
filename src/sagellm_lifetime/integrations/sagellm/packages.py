"""The published sageLLM packages: which are needed for what, found, and known to work."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from sagellm_lifetime.core.errors import LifetimeError, MissingExtraError, reason_of
from sagellm_lifetime.core.extras import is_installed

WITHOUT_TORCH: Final = (
    "pip install --no-deps isagellm-protocol isagellm-kv-cache isagellm-control-plane "
    "&& pip install pydantic httpx"
)
"""The packages without PyTorch, which isagellm-kv-cache asks for and does not import."""
WITH_CORE: Final = (
    "pip install torch fastapi pyyaml && pip install --no-deps isagellm-protocol "
    "isagellm-kv-cache isagellm-backend isagellm-core"
)
"""isagellm-core, which the extra leaves out, and what it imports."""


@dataclass(frozen=True)
class Package:
    """A published package.

    Attributes:
        distribution: its name for pip.
        module: its name for ``import``.
        tested: the version that the tests run against.
    """

    distribution: str
    module: str
    tested: str

    def found(self) -> str | None:
        """Return the installed version, or None if it is not installed."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    def is_known(self) -> bool:
        """Return True if the installed version is of the tested series, ``0.5.4`` of 0.5.4.15."""
        installed = self.found()
        return installed is not None and _series(installed) == _series(self.tested)


def _series(number: str) -> str:
    return ".".join(number.split(".")[:3])


PROTOCOL: Final = Package("isagellm-protocol", "sagellm_protocol", "0.5.4.16")
KV_CACHE: Final = Package("isagellm-kv-cache", "sagellm_kv_cache", "0.5.4.15")
CONTROL_PLANE: Final = Package("isagellm-control-plane", "sagellm_control", "0.5.4.14")
CORE: Final = Package("isagellm-core", "sagellm_core", "0.5.4.26")
PACKAGES: Final = (PROTOCOL, KV_CACHE, CONTROL_PLANE, CORE)


def require(package: Package, what: str) -> None:
    """Raise an error of one line unless a package can be imported.

    Args:
        package: that is needed.
        what: what needs it, the beginning of the message.

    Raises:
        MissingExtraError: it is not installed.
        LifetimeError: this Python cannot read the packages, which are bytecode of 3.11, or the
            package lacks one that it needs.
    """
    if package is CORE and not is_installed(package.module):
        raise LifetimeError(f"{what} needs {package.distribution}: {WITH_CORE}")
    if not is_installed(package.module):
        raise MissingExtraError(f"{what} ({package.distribution})", "sagellm")
    if sys.version_info[:2] != (3, 11):
        raise LifetimeError(
            f"{what}: {package.distribution} is bytecode for Python 3.11, this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}: use a Python 3.11"
        )
    fault = import_fault(package)
    if fault is not None:
        raise LifetimeError(f"{what}: {fault}")


def import_fault(package: Package) -> str | None:
    """Return why an installed package cannot be imported and what mends it, or None if it can."""
    try:
        import_module(package.module)
    except ImportError as error:  # installed with --no-deps, and something is left out
        line = WITH_CORE if package is CORE else WITHOUT_TORCH
        return f"{package.distribution} cannot be imported ({reason_of(error)}); {line}"
    return None
