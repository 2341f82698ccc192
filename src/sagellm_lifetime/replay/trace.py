"""A history as a list of requests to replay: arrival, prompt, and hidden length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import (
    HistoryError,
    HistoryHeaderError,
    HistoryRowError,
    RequestError,
)
from sagellm_lifetime.core.hidden_states import COLUMNS, READ_AT
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.history.prequential import Clock, finish_reasons
from sagellm_lifetime.replay.arrivals import arrivals
from sagellm_lifetime.replay.hash_blocks import USUAL, hash_blocks


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """Request of a trace.

    Attributes:
        id: unique within the trace; the id that the scheduler gets.
        arrival: seconds from the start of the replay.
        prompt_length: prompt tokens, 1 or more.
        output_length: tokens it will generate, 1 or more; hidden from the scheduler.
        max_length: the user's cap on generated tokens, ``None`` where unset.
        finish_reason: reason of its end; ``abort``, ``error`` and a ``length`` without a cap are
            cut off from outside after ``output_length`` tokens, as by a client or a gateway.
        prefix_hashes: ids of the prompt's shared blocks as in the history.
        blocks: the same ids numbered from 0 within the trace.
        block_tokens: prompt tokens per id; the last block may be partial.
        row: row of the history frame.
        given: the prompt's token ids if the history has them.
        recorded: its ``request_id`` and ``arrival_time`` if the history has them.
        hidden: readings of the model's hidden state by the age at which they were made, if the
            history has them; hidden_source: what was read.
    """

    id: str
    arrival: float
    prompt_length: int
    output_length: int
    max_length: int | None = None
    model: str | None = None
    client_id: str | None = None
    session_id: str | None = None
    turn: int | None = None
    finish_reason: str = "stop"
    prefix_hashes: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    block_tokens: int = USUAL
    row: int = 0
    given: tuple[int, ...] | None = None
    recorded: tuple[tuple[str, Any], ...] = ()
    hidden: Mapping[int, Sequence[float]] | None = None
    hidden_source: str | None = None

    @property
    def filler(self) -> int:
        """Return a token id of this request alone, for generated and unshared prompt tokens."""
        return -2 - self.row

    @property
    def prompt_token_ids(self) -> list[int]:
        """Return the prompt tokens, built at each access: a long trace has 90 million of them.

        Equal block ids give equal tokens, so the engine's prefix cache finds them; all other tokens
        are unique to this request, so that the cache finds nothing by accident.
        """
        if self.given is not None:
            return list(self.given)
        n, size = self.prompt_length, self.block_tokens
        if not self.blocks:
            return [self.filler] * n
        shared = [
            token
            for block in self.blocks[: -(-n // size)]
            for token in range(block * size, (block + 1) * size)
        ]
        return shared[:n] + [self.filler] * (n - len(shared))

    @property
    def called(self) -> str:
        """Return a description by which a user finds the request in the history."""
        parts = [f"{name} {value!r}" for name, value in self.recorded]
        parts += [f"prompt_length {self.prompt_length}", f"actual_length {self.output_length}"]
        return f"the request with {', '.join(parts)}"

    @property
    def total(self) -> int:
        """Return the final number of tokens, prompt included."""
        return self.prompt_length + self.output_length


def make_trace(
    frame: pl.DataFrame,
    *,
    seed: int = 0,
    clock: Clock = "auto",
    hash_block_size: int | None = None,
) -> list[TraceRequest]:
    """Return the requests of a history, sorted by arrival, the first at 0 s.

    If the history has no arrival times, or they restart with every session, they are drawn: see
    :mod:`.arrivals`. Rows without a generated token (aborted in the queue) are left out, as the
    scheduler never served them.

    Args:
        frame: rows as :func:`~sagellm_lifetime.history.read_history` returns them.
        seed: of the drawn arrivals.
        clock: origin of the arrival times, see
            :func:`~sagellm_lifetime.history.prequential.relative_times`.
        hash_block_size: prompt tokens per id of ``prefix_hashes``; ``None`` to infer it from the
            prompt lengths, see :mod:`.hash_blocks`.

    Raises:
        HistoryError: if there is nothing to replay, no prompt length, or the tokens per id of
            ``prefix_hashes`` cannot be inferred.
    """
    if frame.is_empty():
        raise HistoryError("the trace is empty: give a history with at least one finished request")
    if "prompt_length" not in frame.columns and "prompt_token_ids" not in frame.columns:
        raise HistoryHeaderError("a replay needs the column 'prompt_length'")
    frame = frame.with_row_index("_row").filter(pl.col("actual_length") > 0)
    if frame.is_empty():
        raise HistoryError("the trace is empty: no request generated a token")
    given = _column(frame, "prompt_token_ids")
    prompts = _prompts(frame, given)
    hash_size = hash_blocks(frame, hash_block_size)
    block_tokens = USUAL if hash_size is None else hash_size.tokens
    hashes = [tuple(ids or ()) for ids in _column(frame, "prefix_hashes")]
    numbered: dict[int, int] = {}
    columns = {
        name: _column(frame, name)
        for name in ("max_length", "model", "client_id", "session_id", "turn", "hidden_source")
    }
    readings = [_column(frame, name) for name in COLUMNS]
    recorded = {name: _column(frame, name) for name in ("request_id", "arrival_time")}
    reasons = finish_reasons(frame)
    lengths = frame["actual_length"].to_list()
    when = arrivals(frame, seed=seed, clock=clock)
    requests = []
    for i, row in enumerate(frame["_row"].to_list()):
        tokens = given[i]
        requests.append(
            TraceRequest(
                id=f"r{row}",
                arrival=float(when[i]),
                prompt_length=prompts[i],
                output_length=lengths[i],
                finish_reason=reasons[i],
                prefix_hashes=hashes[i],
                blocks=tuple(
                    numbered.setdefault(block_id, len(numbered)) for block_id in hashes[i]
                ),
                block_tokens=block_tokens,
                row=row,
                given=tuple(tokens) if tokens and len(tokens) == prompts[i] else None,
                recorded=tuple(
                    (name, values[i]) for name, values in recorded.items() if values[i] is not None
                ),
                hidden={
                    age: column[i]
                    for age, column in zip(READ_AT, readings, strict=True)
                    if column[i]
                }
                or None,
                **{name: values[i] for name, values in columns.items()},
            )
        )
    requests.sort(key=lambda request: (request.arrival, request.row))
    return requests


def at_rate(trace: Sequence[TraceRequest], rate: float) -> list[TraceRequest]:
    """Return the requests with arrivals scaled to ``rate`` a second on average.

    Raises:
        RequestError: if the rate is not above 0.
    """
    if not rate > 0:
        raise RequestError(f"the load must be above 0 requests a second, not {rate:g}")
    span = trace[-1].arrival - trace[0].arrival
    first = trace[0].arrival
    if span <= 0:
        return [replace(request, arrival=k / rate) for k, request in enumerate(trace)]
    scale = (len(trace) - 1) / rate / span
    return [replace(request, arrival=(request.arrival - first) * scale) for request in trace]


def at_once(trace: Sequence[TraceRequest]) -> list[TraceRequest]:
    """Return the requests in the same order, all arriving at 0 s."""
    return [replace(request, arrival=0.0) for request in trace]


def rate_of(trace: Sequence[TraceRequest]) -> float:
    """Return the requests a second of a trace; infinite if all arrive at once."""
    span = trace[-1].arrival - trace[0].arrival
    return (len(trace) - 1) / span if span > 0 else float("inf")


def sample(frame: pl.DataFrame, rows: int | None, *, seed: int = 0) -> pl.DataFrame:
    """Return ``rows`` neighbouring rows of a history from a start drawn with the seed.

    Neighbours and not a random draw, so that bursts, sessions and shared prefixes are kept.
    """
    if rows is None or rows >= len(frame):
        return frame
    start = int(np.random.default_rng(seed).integers(len(frame) - rows + 1))
    return frame[start : start + rows]


def _column(frame: pl.DataFrame, name: str) -> list:  # type: ignore[type-arg]  # of any column
    return frame[name].to_list() if name in frame.columns else [None] * len(frame)


def _prompts(frame: pl.DataFrame, given: Sequence[Sequence[int] | None]) -> list[int]:
    lengths = _column(frame, "prompt_length")
    prompts = [
        len(tokens) if length is None and tokens is not None else length
        for length, tokens in zip(lengths, given, strict=True)
    ]
    missing = sum(length is None for length in prompts)
    if missing:
        raise HistoryRowError(
            f"no prompt_length in {missing:,} of {counted(len(prompts), 'row')}: a replay needs it "
            "in every row"
        )
    return [max(int(length), 1) for length in prompts]
