"""Windows of a log: neighbouring requests that are replayed, at any multiple of the log's rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.evaluation.dataset import Dataset
from sagellm_lifetime.replay.cost import StepCost
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.hash_blocks import hash_blocks
from sagellm_lifetime.replay.trace import TraceRequest, at_rate, make_trace, rate_of

MOST: Final = 1000
FEWEST: Final = 100
FEWEST_FITTING: Final = 20
HOURS: Final = 24
"""Parts of a log in which its peak is sought."""
GROWTH: Final = 2.0
"""Largest factor by which a window is longer, in requests, at a multiple of its rate."""
_SECONDS_A_TOKEN: Final = 7e-6
_SECONDS_A_PROMPT_TOKEN: Final = 0.6e-6
_SECONDS_A_STEP: Final = 100e-6
"""CPU time of a replay, measured on four traces; only the size of windows follows from it."""


@dataclass(frozen=True, eq=False)
class Window:
    """Neighbouring requests of a log.

    Attributes:
        trace: requests in the order of arrival; the later ones come at higher loads only.
        size: requests at the log's own rate.
        rate: requests a second that one engine core gets at the load 1; bursts within the window
            are kept, stretched.
    """

    trace: list[TraceRequest]
    size: int
    rate: float

    def at(self, multiple: float) -> list[TraceRequest]:
        """Return the requests at ``multiple`` times the rate.

        At a higher load more requests are replayed, up to :data:`GROWTH` times as many, so that the
        steady part does not get as much shorter.
        """
        count = min(round(self.size * min(max(multiple, 1.0), GROWTH)), len(self.trace))
        return at_rate(self.trace[:count], self.rate * multiple)


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a log.

    Attributes:
        windows: spread evenly over its test part.
        rate: requests a second of the test part; None where the log has no arrival times.
        peak: rate of the busiest of :data:`HOURS` equal parts of the log, as a multiple of its
            mean; None where the log has no arrival times.
        left_out: requests that do not fit into the engine, and so are not replayed.
        of: requests of the test part.
        cores: engine cores that share the load evenly; one of them is replayed.
    """

    windows: list[Window]
    rate: float | None
    peak: float | None
    left_out: int
    of: int
    cores: int = 1


def draw_windows(
    data: Dataset,
    engine: EngineSettings,
    cost: StepCost,
    *,
    count: int,
    cpu_s: float,
    seed: int = 0,
    cores: int = 1,
) -> Windows:
    """Return windows spread evenly over a log.

    Args:
        data: the rows to replay.
        engine: requests that do not fit into it are left out.
        cost: model of the seconds of a step.
        count: number of windows, fewer where the log is short.
        cpu_s: CPU seconds that a run may take, roughly; the size of a window follows.
        seed: of arrivals that are drawn.
        cores: engine cores that share the load evenly.

    Raises:
        HistoryError: there is nothing to replay.
    """
    known = data.has_all_arrivals and data.clock == "wall"
    size = hash_blocks(data.rows)
    rows = data.rows.sort("arrival_time", maintain_order=True) if known else data.rows
    trace = make_trace(
        rows, seed=seed, clock=data.clock, hash_block_size=None if size is None else size.tokens
    )
    room = (engine.blocks - 1) * engine.block_size
    fitting = [request for request in trace if request.total <= room]
    left_out = len(trace) - len(fitting)
    if 2 * left_out > len(trace):
        raise HistoryError(
            f"{left_out:,} of {len(trace):,} requests do not fit into a KV cache of {room:,} "
            "tokens: assess a larger engine (--kv-tokens, --gpu)"
        )
    if len(fitting) < FEWEST_FITTING:
        raise HistoryError(f"{len(fitting)} requests are too few to replay: {FEWEST_FITTING}")
    if not rate_of(fitting) < float("inf"):
        raise HistoryError("all requests arrive at one moment: there is no load to replay")
    rate = rate_of(fitting) if known else None
    at = rate_of(fitting) / cores
    length = _size(fitting, cost, at, cpu_s)
    count = max(min(count, len(fitting) // length), 1)
    starts = [round(start) for start in np.linspace(0, len(fitting) - length, count)]
    stop = round(length * GROWTH)
    windows = [Window(fitting[start : start + stop], length, at) for start in starts]
    return Windows(windows, rate, _peak(rows) if known else None, left_out, len(trace), cores)


def shares_prompts(rows: pl.DataFrame) -> bool:
    """Return True if the log tells shared prompt prefixes, so that prefix caching is replayed."""
    return any(
        name in rows.columns and rows[name].null_count() < len(rows)
        for name in ("prefix_hashes", "prompt_token_ids")
    )


def _peak(rows: pl.DataFrame) -> float:
    """Return the rate of the busiest of :data:`HOURS` equal parts, as a multiple of the mean."""
    counts, _ = np.histogram(rows["arrival_time"].cast(pl.Float64).to_numpy(), HOURS)
    return float(counts.max() / counts.mean())


def _size(trace: list[TraceRequest], cost: StepCost, rate: float, cpu_s: float) -> int:
    """Return the requests of a window so that a run takes about ``cpu_s``."""
    output = float(np.mean([request.output_length for request in trace]))
    prompt = float(np.mean([request.prompt_length for request in trace]))
    steps = min(output, 1 / (rate * max(cost.base, 1e-4)))
    each = _SECONDS_A_TOKEN * output + _SECONDS_A_PROMPT_TOKEN * prompt + _SECONDS_A_STEP * steps
    return min(max(int(cpu_s / each), FEWEST), MOST, len(trace))
