"""What the benchmarks share: one thread, tables, data that may be absent, progress."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from textwrap import fill
from typing import Any

import polars as pl

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRACES = (
    "azure_conv",
    "mooncake_conversation",
    "servegen_reasoning",
    "servegen_chat",
    "claude_code",
)
PROMPTS = ("vicuna7b_alpaca", "alpaca_eval", "sharegpt", "tool_calls")


def single_thread() -> None:
    """PyTorch on one thread; onnxruntime and LightGBM are told so where they are used."""
    import torch

    torch.set_num_threads(1)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells), 3) for i, name in enumerate(header)]

    def line(values: Sequence[str]) -> str:
        first, *rest = (
            v.ljust(w) if i == 0 else v.rjust(w)
            for i, (v, w) in enumerate(zip(values, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in cells)])


def _text(cell: Any) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return str(cell)


def percent(share: float | None) -> str | None:
    """A share as a percentage with one decimal."""
    return None if share is None else f"{100 * share:.1f}"


def load(folder: Path, name: str) -> pl.DataFrame | None:
    """A data set of the data folder, or ``None`` where it is absent (said on stderr)."""
    from sagellm_lifetime import read_history

    for part in ("traces", "prompts"):
        path = folder / part / f"{name}.parquet"
        if path.exists():
            return read_history(path).frame
    say(f"{name}: skipped, not in {folder}")
    return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Runs that are done, a line each; none where there is no such file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_all(
    work: Callable[..., dict[str, Any]],
    todo: Iterable[tuple[Any, ...]],
    options: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Each run in a process of its own (``--jobs``), and a line of ``--runs`` when it is done.

    So what was interrupted goes on where it stopped.
    """
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for job in as_completed([pool.submit(work, *each, options) for each in todo]):
            run = job.result()
            with options.runs.open("a") as file:
                file.write(json.dumps(run) + "\n")
            yield run


def code() -> str:
    """Day and commit, for the head of a page; to be read before a long run, not after it."""
    ask = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    here = Path(__file__).parent
    said = subprocess.run(ask, check=True, cwd=here, capture_output=True, text=True).stdout
    return f"{date.today()}, commit {said.strip()}"


def say(text: str) -> None:
    """One line of progress, on stderr, with the seconds since the start."""
    print(f"[{time.perf_counter() - _START:6.0f} s] {text}", file=sys.stderr, flush=True)


def write_page(path: Path | None, text: str) -> None:
    """Write a page of ``docs/lab`` where a path was given, its paragraphs wrapped anew."""
    if path is not None:
        parts = [
            part
            if part.startswith(("#", "|", "    "))
            else fill(part, 130, break_on_hyphens=False)  # a link stays whole
            for part in text.strip().split("\n\n")
        ]
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        say(f"written to {path}")


def write_json(path: Path | None, found: Any) -> None:
    """Write ``found`` where a path was given."""
    if path is not None:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


_START = time.perf_counter()
