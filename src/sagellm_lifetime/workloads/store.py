"""Read the JSON files of the profiles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.workloads.histograms import Joint, Spread

HISTOGRAMS = frozenset({"cells", "prompt", "output"})
PROFILES: tuple[str, ...] = (
    "azure-conversation",
    "mooncake-conversation",
    "reasoning",
    "chat",
    "coding-agent",
)


@dataclass(frozen=True)
class Group:
    """Requests of one client, of one kind of input, or of the whole service.

    Attributes:
        name: the client or the kind.
        share: share of the requests.
        members: clients that share this histogram, each with the same share of the requests.
        joint: histogram of prompt and output lengths.
    """

    name: str
    share: float
    members: int
    joint: Joint


@dataclass(frozen=True)
class Sessions:
    """How the turns of one conversation depend on each other.

    ``persistent`` is the correlation of two outputs however far apart, ``recent`` what
    neighbouring turns have on top of it, times ``decay`` per turn (all on normal scores).
    """

    sizes: Spread
    gaps: Spread
    persistent: float
    recent: float
    decay: float
    prompt_persistent: float
    transitions: dict[str, dict[str, float]] | None
    starts_every_s: float | None


@dataclass(frozen=True)
class Profile:
    """One workload as its file describes it; ``facts`` is the file without its histograms."""

    name: str
    facts: dict[str, Any]
    groups: tuple[Group, ...]
    groups_are: str
    repeat: float
    gap_mean_s: float | None
    gap_cv: float | None
    sessions: Sessions | None


@cache
def load(name: str) -> Profile:
    """Return the profile of this name, read once. Raise :class:`UnknownNameError` for others."""
    if name not in PROFILES:
        raise UnknownNameError("profile", name, list(PROFILES))
    folder = resources.files("sagellm_lifetime.workloads")
    raw: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    prompt_edges = np.asarray(raw["prompt_edges"], dtype=np.int64)
    output_edges = np.asarray(raw["output_edges"], dtype=np.int64)
    groups = tuple(
        Group(
            name=group["name"],
            share=group["share"],
            members=group["members"],
            joint=Joint.from_cells(
                prompt_edges, output_edges, group["cells"], group["prompt"], group["output"]
            ),
        )
        for group in raw["groups"]
    )
    arrivals = raw["arrivals"]
    return Profile(
        name=name,
        facts=_facts(raw),
        groups=groups,
        groups_are=raw["groups_are"],
        repeat=raw["group_repeat"],
        gap_mean_s=arrivals["gap_mean_s"],
        gap_cv=arrivals["gap_cv"],
        sessions=_sessions(raw["sessions"]) if raw["sessions"] else None,
    )


def _sessions(raw: dict[str, Any]) -> Sessions:
    return Sessions(
        sizes=Spread(raw["size_edges"], raw["size_weights"]),
        gaps=Spread(raw["gap_edges_s"], raw["gap_weights"]),
        persistent=raw["output_correlation"]["persistent"],
        recent=raw["output_correlation"]["recent"],
        decay=raw["output_correlation"]["decay"],
        prompt_persistent=raw["prompt_correlation"],
        transitions=raw["transitions"],
        starts_every_s=raw["starts_every_s"],
    )


def _facts(raw: dict[str, Any]) -> dict[str, Any]:
    left_out = {"groups", "sessions", "prompt_edges", "output_edges"}
    facts = {key: value for key, value in raw.items() if key not in left_out}
    facts["groups"] = [
        {key: value for key, value in group.items() if key not in HISTOGRAMS}
        for group in raw["groups"]
    ]
    facts["sessions"] = raw["sessions"]
    return facts
