"""The error of these tools."""

from __future__ import annotations

from sagellm_lifetime.core.errors import LifetimeError


class ModelError(LifetimeError, ValueError):
    """Raised where a model cannot be fetched, is not what it should be, or cannot be laid out."""
