"""Draw a history from a profile, in the history format."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.workloads import endings
from sagellm_lifetime.workloads.draws import Draws, conversations, independent
from sagellm_lifetime.workloads.frame import history
from sagellm_lifetime.workloads.prefixes import prefix_hashes
from sagellm_lifetime.workloads.store import Group, load


def generate(
    profile: str,
    n: int,
    *,
    seed: int = 0,
    rate_scale: float = 1.0,
    abort_share: float = 0.02,
    capped_share: float = 0.1,
) -> pl.DataFrame:
    """``n`` finished requests of a profile, sorted by arrival; the same for the same seed.

    Prompt and output lengths, clients, sessions and the rate of arrivals follow the figures of
    the trace behind the profile. ``max_length``, ``finish_reason`` and ``actual_time`` are
    invented, since no trace carries them: see :mod:`.endings`; with ``abort_share=0`` and
    ``capped_share=0`` the lengths are those of the trace. ``rate_scale=2`` lets the same requests
    arrive twice as fast.
    """
    chosen = load(profile)
    if n < 0:
        raise RequestError(f"n must be 0 or more, not {n}")
    if not rate_scale > 0:
        raise RequestError(f"rate_scale must be above 0, not {rate_scale}")
    work, ends, names = (
        np.random.default_rng(child)
        for child in np.random.SeedSequence([zlib.crc32(profile.encode()), seed]).spawn(3)
    )
    if chosen.sessions is None:
        drawn = independent(chosen, work, n)
    else:
        drawn = conversations(chosen, chosen.sessions, work, n)
    ended = endings.end(
        ends, drawn.prompt, drawn.output, abort_share=abort_share, capped_share=capped_share
    )
    columns: dict[str, Any] = {
        "arrival_time": drawn.arrival / rate_scale,
        "prompt_length": drawn.prompt,
        "max_length": pl.Series(ended.cap).replace(0, None),
        "actual_length": ended.length,
        "actual_time": ended.seconds,
        "finish_reason": ended.reason,
    }
    if chosen.groups_are in {"client", "kind"}:
        columns["client_id"] = _clients(chosen.groups, drawn, names)
    if chosen.groups_are == "prefix":  # as in the trace, conversations show through blocks only
        columns["prefix_hashes"] = prefix_hashes(drawn)
    elif drawn.session is not None:
        columns["session_id"] = [f"s{index}" for index in drawn.session.tolist()]
        columns["turn"] = drawn.turn
    return history(profile, n, columns)


def describe(profile: str) -> dict[str, Any]:
    """Citation, licence and figures of a profile, and what :func:`generate` adds to them.

    The histograms stay in the file; every other figure of it is here.
    """
    facts = copy.deepcopy(load(profile).facts)
    facts["invented"] = {
        "finish_reason": "abort_share of the requests are cancelled at a uniformly drawn token",
        "max_length": f"capped_share of the requests set one of {list(endings.CAPS)}",
        "actual_time": (
            f"({endings.QUEUE_S} s + prompt / {endings.PREFILL_TOKENS_PER_S:g} tokens/s"
            f" + {endings.SECONDS_PER_TOKEN} s per generated token),"
            f" log-normal noise of {endings.TIME_SPREAD:.0%}"
        ),
    }
    return facts


def _clients(groups: tuple[Group, ...], drawn: Draws, rng: np.random.Generator) -> pl.Series:
    """The name of each request's group, or of one of its members where it has several."""
    labels: list[str] = []
    first: list[int] = []
    for group in groups:
        first.append(len(labels))
        numbered = [f"{group.name}-{index:02d}" for index in range(1, group.members + 1)]
        labels += numbered if group.members > 1 else [group.name]
    members = np.asarray([group.members for group in groups])[drawn.group]
    member = np.floor(rng.random(len(members)) * members).astype(np.int64)
    return pl.Series(labels).gather(np.asarray(first)[drawn.group] + member)
