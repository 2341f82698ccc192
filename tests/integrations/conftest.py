"""Tests that need sageLLM's packages skip, saying so, where they are absent."""

import logging
import sys

import pytest

from sagellm_lifetime.integrations.sagellm.packages import CONTROL_PLANE, CORE, KV_CACHE

HOW = "pip install --no-deps"


def needs(package):
    """Skip unless a package of sageLLM can be imported."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip(f"{package.distribution} is bytecode for Python 3.11")
    return pytest.importorskip(
        package.module,
        reason=f"needs {package.distribution}: {HOW} {package.distribution}",
        exc_type=ImportError,
    )


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def kv_cache():
    return needs(KV_CACHE)


@pytest.fixture(scope="session")
def control_plane():
    return needs(CONTROL_PLANE)


@pytest.fixture(scope="session")
def core():
    return needs(CORE)
