"""Workloads that ship with the package: histories drawn from published statistics.

The five profiles of :data:`PROFILES` are made from public traces (``scripts/make_profiles.py``);
only figures are stored, each over five rows or more, with their citation. :func:`regular`
and :func:`specification` are invented workloads of known difficulty.
"""

from sagellm_lifetime.workloads.generate import describe, generate
from sagellm_lifetime.workloads.store import PROFILES
from sagellm_lifetime.workloads.synthetic import regular, specification

__all__ = ["PROFILES", "describe", "generate", "regular", "specification"]
