"""Draw a history from a profile, in the history format: lengths, endings, names, columns."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.history import HISTORY_SCHEMA
from sagellm_lifetime.workloads import endings
from sagellm_lifetime.workloads.draws import Draws, conversations, independent
from sagellm_lifetime.workloads.store import Group, Profile, load


def generate(
    profile: str,
    n: int,
    *,
    seed: int = 0,
    rate_scale: float = 1.0,
    abort_share: float = 0.02,
    capped_share: float = 0.1,
) -> pl.DataFrame:
    """Return ``n`` finished requests of a profile, sorted by arrival; equal for equal seeds.

    Prompt and output lengths, clients, sessions and the rate of arrivals follow the figures of
    the trace behind the profile. ``max_length``, ``finish_reason`` and ``actual_time`` are
    invented, since no trace carries them: see :mod:`.endings`; with ``abort_share=0`` and
    ``capped_share=0`` the lengths are those of the trace.

    Args:
        profile: one of :data:`PROFILES`.
        n: number of requests.
        seed: seed of the random numbers.
        rate_scale: 2 lets the same requests arrive twice as fast.
        abort_share: share of the requests that is cancelled.
        capped_share: share of the requests that sets a ``max_length``.

    Raises:
        UnknownNameError: no profile has this name.
        RequestError: a negative ``n``, a rate of 0 or less, or a share outside 0 to 1.

    >>> history = generate("chat", 100, seed=1)
    >>> len(history), history["arrival_time"].is_sorted()
    (100, True)
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
    return history_frame(profile, n, columns | _names(chosen, drawn, names))


def describe(profile: str) -> dict[str, Any]:
    """Return citation, licence and figures of a profile, and what :func:`generate` invents.

    Everything in the profile's file but its histograms. Raise :class:`UnknownNameError` for an
    unknown profile.

    >>> sorted(describe("chat")["invented"])
    ['actual_time', 'finish_reason', 'max_length']
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


def _names(profile: Profile, drawn: Draws, rng: np.random.Generator) -> dict[str, Any]:
    """Return the columns that name the client and the session of each request."""
    columns: dict[str, Any] = {}
    if profile.groups_are in {"client", "kind"}:
        columns["client_id"] = _clients(profile.groups, drawn, rng)
    if profile.groups_are == "prefix":  # as in the trace, only the blocks show conversations
        columns["prefix_hashes"] = prefix_hashes(drawn)
    elif drawn.session is not None:
        columns["session_id"] = [f"s{index}" for index in drawn.session.tolist()]
        columns["turn"] = drawn.turn
    return columns


def _clients(groups: tuple[Group, ...], drawn: Draws, rng: np.random.Generator) -> pl.Series:
    """Return each request's client: its group, or one of the members of its group."""
    labels: list[str] = []
    first: list[int] = []
    for group in groups:
        first.append(len(labels))
        numbered = [f"{group.name}-{index:02d}" for index in range(1, group.members + 1)]
        labels += numbered if group.members > 1 else [group.name]
    members = np.asarray([group.members for group in groups])[drawn.group]
    member = np.floor(rng.random(len(members)) * members).astype(np.int64)
    return pl.Series(labels).gather(np.asarray(first)[drawn.group] + member)


BLOCK_TOKENS = 512


def prefix_hashes(drawn: Draws) -> pl.Series:
    """Return the ids of each request's prompt blocks of 512 tokens, as in Mooncake's trace.

    Block 0 (the system prompt) is shared by all requests, the full blocks by the turns of a
    conversation; the last block belongs to its turn only. Ids have no meaning except equality.
    """
    if drawn.session is None:
        raise ValueError("prefix blocks need conversations")
    blocks = -(-drawn.prompt // BLOCK_TOKENS)
    row = np.repeat(np.arange(len(blocks)), blocks)
    start = np.cumsum(blocks) - blocks
    position = np.arange(len(row)) - start[row]
    most = int(blocks.max(initial=1)) + 1
    ids = 1 + drawn.session[row] * most + position
    own = 1 + (int(drawn.session.max(initial=0)) + 1) * most + row
    ids = np.where((position == blocks[row] - 1) & (position > 0), own, ids)
    ids = np.where(position == 0, 0, ids)
    frame = pl.DataFrame({"row": row, "id": ids})
    lists = frame.group_by("row", maintain_order=True).agg("id").get_column("id")
    return lists.cast(pl.List(pl.Int64))


COLUMNS = (
    "request_id",
    "model",
    "client_id",
    "session_id",
    "turn",
    "arrival_time",
    "prompt_length",
    "max_length",
    "actual_length",
    "actual_time",
    "finish_reason",
)


def history_frame(name: str, n: int, columns: dict[str, Any]) -> pl.DataFrame:
    """Return ``n`` rows of the workload ``name`` in the history format.

    Columns that are not given are null; seconds are rounded to the microsecond.
    """
    given = {"request_id": [f"{name}-{row}" for row in range(n)], "model": [name] * n, **columns}
    wanted = [*COLUMNS, *(column for column in given if column not in COLUMNS)]
    frame = pl.DataFrame(
        {column: given.get(column, [None] * n) for column in wanted},
        schema={column: HISTORY_SCHEMA[column] for column in wanted},
    )
    return frame.with_columns(pl.col("arrival_time", "actual_time").round(6))
