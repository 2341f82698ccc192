"""CPU seconds of the command ``assess`` on logs of 20,000 rows, with and without ``--quick``.

    PYTHONPATH=src python benchmarks/assess_time.py --runs runs.jsonl

Each is a process of its own, the whole command from its start to its end, imports included. CPU
seconds of all its threads count, so that other work on the machine hardly matters; on an idle
machine with two cores a command takes no longer than that.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import DATA, code, load, read_lines, say, table, write_page

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "assess-time.md"
ROWS = 20_000
PROFILES = ("chat", "reasoning")
TRACES = ("servegen_reasoning",)
MODES = {"full": (300, ()), "quick": (60, ("--quick",))}
"""Limits in seconds, and options."""
ENGINE = ("--gpu", "a100", "--model-size", "7b")


def made(name: str, rows: int, data: Path, target: Path) -> bool:
    """Write a log; return False where its trace is absent."""
    from sagellm_lifetime.workloads import generate

    frame = generate(name, rows, seed=7) if name in PROFILES else load(data, name)
    if frame is not None:
        frame.head(rows).write_parquet(target)
    return frame is not None


def timed(log: Path, options: tuple[str, ...]) -> dict[str, Any]:
    """Return the CPU seconds of one command, and what it replayed."""
    command = [sys.executable, "-m", "sagellm_lifetime", "assess", str(log), *ENGINE, *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--json", "-"], check=True, capture_output=True, text=True, env=os.environ
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))
    replay = json.loads(done.stdout)["replay"]
    return {
        "cpu_s": seconds,
        "runs": replay["runs"],
        "windows": replay["windows"],
        "requests": replay["requests"],
    }


def page(runs: list[dict[str, Any]], made_by: str) -> str:
    """The page of ``docs/lab``."""
    worst = {
        mode: max((run["cpu_s"] for run in runs if run["mode"] == mode), default=0.0)
        for mode in MODES
    }
    within = " and ".join(
        f"{worst[mode]:.0f} CPU seconds {'with `--quick`' if options else 'in full'} "
        f"({'within' if worst[mode] <= limit else 'ABOVE'} the limit of {limit})"
        for mode, (limit, options) in MODES.items()
    )
    rows = [
        [run["log"], run["mode"], f"{run['cpu_s']:.0f}", run["windows"], run["requests"],
         run["runs"]]
        for run in runs
    ]  # fmt: skip
    header = ("log", "mode", "CPU seconds", "windows", "requests of one", "replays")
    return (
        "# Assess: how long it takes\n\n"
        f"**At most {within} on logs of {ROWS:,} rows.**\n\n"
        f"Made {made_by}, by\n\n"
        f"    PYTHONPATH=src python benchmarks/assess_time.py {shlex.join(sys.argv[1:])}\n\n"
        "The whole command from its start to its end on `--gpu a100 --model-size 7b`, predictors "
        "as they are chosen by default; `chat` and `reasoning` are built-in workloads, the others "
        "the first rows of a public trace. CPU seconds of all threads: on an idle machine with "
        "two cores it takes no longer. Most of it goes to vLLM's scheduler, a tenth of a "
        "millisecond a step, so long answers at low load take longest.\n\n" + table(header, rows)
    )


def main(args: list[str] | None = None) -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--only", nargs="*", default=[*PROFILES, *TRACES])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args(args)
    made_by = code()
    runs = read_lines(options.runs)
    if any(run["code"] != made_by for run in runs):
        raise SystemExit(f"{options.runs}: of another commit: name another file")
    there = {(run["log"], run["mode"]) for run in runs}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            log = Path(folder) / f"{name}.parquet"
            if not made(name, options.rows, options.data, log):
                continue
            for mode, (_, more) in MODES.items():
                if (name, mode) in there:
                    continue
                found = {"log": name, "mode": mode, "code": made_by, **timed(log, more)}
                with options.runs.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                say(f"{name}, {mode}: {found['cpu_s']:.0f} CPU seconds")
    write_page(options.output, page(read_lines(options.runs), made_by))


if __name__ == "__main__":
    main()
