"""Make the workload profiles that ship with the package from the public traces.

    python scripts/make_profiles.py --data FOLDER [--out FOLDER]

``FOLDER`` holds the traces in the project's history format (``azure_conv.parquet`` and so on).
Written are aggregated figures only: every histogram cell covers five rows or more, names of
clients are replaced by their rank, weights and the outer edges are rounded.
The traces themselves are never copied.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl

FEWEST = 5  # rows behind any published cell
PROMPT_CELLS = 16
OUTPUT_CELLS = 40
PARTS = 10_000  # weights are whole parts of this
CROWDED = 0.04  # share of the rows above which a cell is cut in two
TOP_CLIENTS = 20
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
SIZE_EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
GAP_EDGES = (0, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000)
DEFAULT_OUT = Path(__file__).parents[1] / "src/sagellm_lifetime/evaluation/profiles"


@dataclass(frozen=True)
class Source:
    """One trace and what is published about where it comes from."""

    name: str
    file: str
    what: str
    citation: str
    url: str
    licence: str
    groups_are: str  # all | client | kind | prefix
    starts_every_s: float | None = None


SERVEGEN = (
    "Y. Xiang et al., ServeGen: Workload Characterization and Generation of Large Language Model"
    " Serving in Production, arXiv:2505.09999"
)
SOURCES = (
    Source(
        "azure-conversation",
        "azure_conv.parquet",
        "chat service, 36 minutes",
        "P. Patel et al., Splitwise: Efficient Generative LLM Inference Using Phase Splitting,"
        " ISCA 2024 (Azure LLM inference trace 2023, conversation)",
        "https://github.com/Azure/AzurePublicDataset",
        "CC-BY-4.0",
        "all",
    ),
    Source(
        "mooncake-conversation",
        "mooncake_conversation.parquet",
        "long-context chat, 37 minutes; conversations show through shared prompt blocks",
        "R. Qin et al., Mooncake: Trading More Storage for Less Computation - A KVCache-centric"
        " Architecture for Serving LLM Chatbot, FAST 2025",
        "https://github.com/kvcache-ai/Mooncake",
        "Apache-2.0",
        "prefix",
    ),
    Source(
        "reasoning",
        "servegen_reasoning.parquet",
        "reasoning model, by client",
        SERVEGEN,
        "https://github.com/alibaba/ServeGen",
        "Apache-2.0",
        "client",
    ),
    Source(
        "chat",
        "servegen_chat.parquet",
        "mid-size chat model, by client, two days",
        SERVEGEN,
        "https://github.com/alibaba/ServeGen",
        "Apache-2.0",
        "client",
    ),
    Source(
        "coding-agent",
        "claude_code.parquet",
        "coding agent: sessions, turns and the kind of input (the client)",
        "C. Fox, kv-cache-tester: traces of Claude Code sessions",
        "https://github.com/callanjfox/kv-cache-tester",
        "Apache-2.0",
        "kind",
        starts_every_s=60.0,
    ),
)


def main() -> None:
    """Write one JSON file per trace."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the traces")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    for source in SOURCES:
        path = arguments.data / source.file
        if not path.exists():
            parser.error(f"{path} is missing: give the folder that holds it with --data")
        text = _dump(make(source, pl.read_parquet(path)))
        target = arguments.out / f"{source.name}.json"
        target.write_text(text, encoding="utf-8")
        print(f"{target.name}: {len(text) / 1024:.1f} KiB")


def make(source: Source, trace: pl.DataFrame) -> dict[str, Any]:
    """The figures of one trace."""
    trace = _with_session(source, trace)
    prompt, output = trace["prompt_length"].to_numpy(), trace["actual_length"].to_numpy()
    prompt_edges, output_edges = _edges(prompt, PROMPT_CELLS), _edges(output, OUTPUT_CELLS)
    trace = trace.with_columns(
        p=np.searchsorted(prompt_edges, prompt, side="right") - 1,
        o=np.searchsorted(output_edges, output, side="right") - 1,
        group=_groups(source, trace),
    )
    groups = []
    for name in trace["group"].unique().sort().to_list():
        mine = trace.filter(pl.col("group") == name)
        groups.append(
            {
                "name": name,
                "share": round(mine.height / trace.height, 5),
                "members": mine["client_id"].n_unique() if name == "rest" else 1,
                "output_median": round(float(np.median(mine["actual_length"]))),
                "prompt": _rounded(_runs(mine["p"].to_list()), mine.height),
                "output": _rounded(_runs(mine["o"].to_list()), mine.height),
                "cells": _rounded(_cells(mine["p"].to_list(), mine["o"].to_list()), mine.height),
            }
        )
    return {
        "format": 1,
        "name": source.name,
        "what": source.what,
        "citation": source.citation,
        "url": source.url,
        "licence": source.licence,
        "made_from_rows": trace.height,
        "summary": {
            "prompt_length": _summary(prompt),
            "actual_length": _summary(output),
            "rank_correlation": round(float(np.corrcoef(_ranks(prompt), _ranks(output))[0, 1]), 3),
        },
        "arrivals": _arrivals(source, trace),
        "groups_are": source.groups_are,
        "group_repeat": _repeat(source, trace),
        "sessions": _sessions(source, trace),
        "prompt_edges": prompt_edges,
        "output_edges": output_edges,
        "groups": groups,
    }


def _with_session(source: Source, trace: pl.DataFrame) -> pl.DataFrame:
    if "client_id" not in trace.columns:
        trace = trace.with_columns(client_id=pl.lit("all"))
    if source.groups_are == "prefix":  # block 0 is everyone's; the next one names a conversation
        trace = trace.with_columns(session=pl.col("prefix_hashes").list.get(1)).with_row_index()
        return trace.sort("session", "arrival_time", "index").drop("index")
    if source.groups_are == "kind":
        return trace.with_columns(session=pl.col("session_id")).sort("session", "turn")
    return trace.sort("arrival_time")


def _groups(source: Source, trace: pl.DataFrame) -> pl.Series:
    if source.groups_are in {"all", "prefix"}:
        return pl.Series(["all"] * trace.height)
    counts = trace["client_id"].value_counts(sort=True)
    if source.groups_are == "kind":
        kept = set(counts.filter(pl.col("count") >= FEWEST)["client_id"].to_list())
        first = counts["client_id"][0]
        names = {kind: kind if kind in kept else first for kind in counts["client_id"]}
    else:
        names = {
            client: f"c{rank:02d}" if rank <= TOP_CLIENTS else "rest"
            for rank, client in enumerate(counts["client_id"].to_list(), start=1)
        }
    return trace["client_id"].replace_strict(names, return_dtype=pl.String)


def _edges(lengths: np.ndarray, cells: int) -> list[int]:
    """Log-spaced whole numbers, cut again where a cell holds too much; the ends rounded outwards.

    Real lengths cluster (around 4096 prompt tokens, at one-word answers): a cell with more than
    ``CROWDED`` of the rows is halved at its median until none is left, or until it holds one
    length only. No edge is the length of a rare row: those lie in the log-spaced cells.
    """
    low, high = _round_down(int(lengths.min())), _round_up(int(lengths.max()) + 1)
    edges = {int(float(f"{edge:.3g}")) for edge in np.geomspace(low, high, cells + 1)}
    todo = list(pairwise(sorted(edges)))
    while todo:
        start, end = todo.pop()
        inside = lengths[(lengths >= start) & (lengths < end)]
        if end - start > 1 and len(inside) > CROWDED * len(lengths):
            middle = int(np.clip(np.median(inside), start + 1, end - 1))
            edges.add(middle)
            todo += [(start, middle), (middle, end)]
    return sorted(edges)


def _round_down(value: int) -> int:
    unit = 10 ** (len(str(value)) - 1)
    return value // unit * unit


def _round_up(value: int) -> int:
    unit = 10 ** max(len(str(value)) - 2, 0)
    return -(-value // unit) * unit


def _cells(prompt: Sequence[int], output: Sequence[int]) -> list[list[int]]:
    """Rectangles of five rows or more: sparse neighbours merged, along the prompt first."""
    columns: dict[int, dict[int, int]] = {}
    for o, p in zip(output, prompt, strict=True):
        column = columns.setdefault(o, {})
        column[p] = column.get(p, 0) + 1
    done: list[list[int]] = []
    sparse: list[int] | None = None  # fewer than five rows so far, still growing
    for o in sorted(columns):
        here = len(done)
        for p in sorted(columns[o]):
            cell = [p, p, o, o, columns[o][p]]
            sparse = cell if sparse is None else _merge(sparse, cell)
            if sparse[4] >= FEWEST:
                done.append(sparse)
                sparse = None
        if sparse is not None and len(done) > here:  # the column's last few join its last cell
            done[-1] = _merge(done[-1], sparse)
            sparse = None
    if sparse is not None and done:
        done[-1] = _merge(done[-1], sparse)
    return done


def _runs(cells: Sequence[int]) -> list[list[int]]:
    """The same along one axis: ``[from, to, rows]``."""
    return [[low, high, count] for _, _, low, high, count in _cells([0] * len(cells), cells)]


def _rounded(cells: list[list[int]], rows: int) -> list[list[int]]:
    """Counts as whole parts of :data:`PARTS`, so that differences of sums name no row either."""
    return [[*cell[:-1], max(round(cell[-1] * PARTS / rows), 1)] for cell in cells]


def _merge(one: list[int], two: list[int]) -> list[int]:
    return [
        min(one[0], two[0]),
        max(one[1], two[1]),
        min(one[2], two[2]),
        max(one[3], two[3]),
        one[4] + two[4],
    ]


def _spread(values: np.ndarray, edges: Sequence[float]) -> tuple[list[float], list[float]]:
    """A histogram over these edges, its sparse cells merged upwards."""
    counts = np.histogram(values, bins=np.asarray([*edges, np.inf]))[0]
    if counts[-1]:
        raise ValueError(f"values above the last edge {edges[-1]}")
    kept_edges: list[float] = [edges[0]]
    kept: list[int] = []
    sparse = 0
    for upper, count in zip(edges[1:], counts[:-1].tolist(), strict=True):
        sparse += count
        if sparse >= FEWEST:
            kept.append(sparse)
            kept_edges.append(upper)
            sparse = 0
    if sparse:
        kept[-1] += sparse
        kept_edges[-1] = edges[int(np.flatnonzero(counts)[-1]) + 1]
    return kept_edges, [round(count / len(values), 5) for count in kept]


def _summary(lengths: np.ndarray) -> dict[str, float]:
    values = {f"q{q * 100:g}": round(float(np.quantile(lengths, q))) for q in QUANTILES}
    return {"mean": round(float(lengths.mean()), 1), **values}


def _ranks(values: np.ndarray) -> np.ndarray:
    return pl.Series(values).rank("average").to_numpy()


def _scores(values: np.ndarray) -> np.ndarray:
    """Normal scores: ranks (ties broken at random) laid onto the normal distribution."""
    inverse = NormalDist().inv_cdf
    ranks = pl.Series(values).rank("random", seed=0).to_list()
    return np.asarray([inverse(rank / (len(ranks) + 1)) for rank in ranks])


def _arrivals(source: Source, trace: pl.DataFrame) -> dict[str, Any]:
    if source.groups_are == "kind":  # the trace's clock starts anew with every session
        return {"gap_mean_s": None, "gap_cv": None}
    gaps = np.diff(np.sort(trace["arrival_time"].to_numpy()))
    return {
        "gap_mean_s": round(float(gaps.mean()), 4),
        "gap_cv": round(float(gaps.std() / gaps.mean()), 3),
    }


def _repeat(source: Source, trace: pl.DataFrame) -> float:
    """How much likelier than by chance the next request is the same client's."""
    if source.groups_are != "client":
        return 0.0
    clients = trace["client_id"]
    same = float(np.mean(clients[1:].to_numpy() == clients[:-1].to_numpy()))
    chance = float(((clients.value_counts()["count"] / len(clients)) ** 2).sum())
    return round(max((same - chance) / (1.0 - chance), 0.0), 3)


def _sessions(source: Source, trace: pl.DataFrame) -> dict[str, Any] | None:
    if "session" not in trace.columns:
        return None
    sizes = trace.group_by("session").len()["len"].to_numpy()
    gaps = trace.select(pl.col("arrival_time").diff().over("session")).to_series().drop_nulls()
    size_edges, size_weights = _spread(sizes, SIZE_EDGES)
    gap_edges, gap_weights = _spread(gaps.to_numpy(), GAP_EDGES)
    return {
        "sessions": len(sizes),
        "size_mean": round(float(sizes.mean()), 2),
        "size_edges": size_edges,
        "size_weights": size_weights,
        "gap_edges_s": gap_edges,
        "gap_weights": gap_weights,
        "output_correlation": _output_correlation(trace),
        "prompt_correlation": _between(trace, "prompt_length"),
        "transitions": _transitions(trace) if source.groups_are == "kind" else None,
        "starts_every_s": source.starts_every_s,  # invented where it is not null
    }


def _output_correlation(trace: pl.DataFrame) -> dict[str, Any]:
    """Correlation of a session's log-scale outputs by distance, and the curve through it."""
    scored = trace.with_columns(z=pl.Series(_scores(trace["actual_length"].to_numpy())))
    lags = [1, 2, 3, 4, 5, 6, 8, 10]
    by_lag = {}
    for lag in lags:
        pairs = scored.with_columns(before=pl.col("z").shift(lag).over("session"))
        pairs = pairs.drop_nulls("before")
        if pairs.height >= 100:
            by_lag[lag] = round(float(np.corrcoef(pairs["z"], pairs["before"])[0, 1]), 3)
    far = [value for lag, value in by_lag.items() if lag >= 5]
    persistent = float(np.mean(far))
    near = [value - persistent for lag, value in by_lag.items() if lag <= 4]
    decay = float(np.clip((near[2] + near[3]) / (near[0] + near[1]), 0.0, 1.0)) ** 0.5
    recent = near[0] / decay if decay > 0 else 0.0
    if near[0] < 0.05:  # no more alike than any two turns of the session
        recent, decay = 0.0, 0.0
    return {
        "persistent": round(persistent, 3),
        "recent": round(recent, 3),
        "decay": round(decay, 3),
        "measured_by_lag": {str(lag): value for lag, value in by_lag.items()},
    }


def _between(trace: pl.DataFrame, column: str) -> float:
    """Share of the variance of the normal scores that lies between sessions."""
    scored = trace.select("session", z=pl.Series(_scores(trace[column].to_numpy())))
    spread = scored.group_by("session").agg(pl.len().alias("n"), pl.var("z").fill_null(0.0))
    inside = float((spread["z"] * (spread["n"] - 1)).sum()) / float((spread["n"] - 1).sum())
    return round(1.0 - inside / float(scored["z"].to_numpy().var()), 3)


def _transitions(trace: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Probability of the next kind of input, by the last one; pairs seen fewer than five times
    are dropped."""
    pairs = trace.select(
        before=pl.col("group").shift().over("session").fill_null("start"), after="group"
    )
    counts = pairs.group_by("before", "after").len().filter(pl.col("len") >= FEWEST)
    table: dict[str, dict[str, float]] = {}
    for before, after, count in counts.sort("before", "after").iter_rows():
        table.setdefault(before, {})[after] = count
    return {
        before: {kind: round(n / sum(row.values()), 4) for kind, n in row.items()}
        for before, row in table.items()
    }


def _dump(profile: dict[str, Any]) -> str:
    """JSON with one line per fact and one per group, so that a change can be read."""

    def block(pairs: Iterable[tuple[str, Any]]) -> str:
        return ",\n".join(f" {json.dumps(key)}: {_plain(value)}" for key, value in pairs)

    head = block((key, value) for key, value in profile.items() if key != "groups")
    groups = ",\n".join(f"  {_plain(group)}" for group in profile["groups"])
    return f'{{\n{head},\n "groups": [\n{groups}\n ]\n}}\n'


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


if __name__ == "__main__":
    main()
