"""Give every input door of the product thousands of inputs that nobody should send.

    PYTHONPATH=src:benchmarks python benchmarks/fuzz.py [--inputs 10000] [--only TARGET ...]
        [--output docs/lab/fuzz.md] [--json FILE]

What must hold: an input is taken, or refused in one bounded line; nothing else is raised, nothing
that was there before is lost, and what is taken serves. Input ``i`` of a target depends on the
target, the seed and ``i`` alone, so that any of them can be made again:

    PYTHONPATH=src:benchmarks python benchmarks/fuzz.py --only calls --first 4711 --inputs 1
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from datetime import date
from importlib import import_module
from pathlib import Path
from random import Random

from common import say, table, write_json

TARGETS = {
    "calls": "a predictor's methods",
    "stream": "streams of 21 lines given to `predict`",
    "histories": "history files and logs of others",
    "checkpoints": "checkpoints, damaged or lying",
    "routes": "HTTP requests, and the files behind them",
    "settings": "settings of a live engine",
    "journals": "records of a live engine",
}


@dataclass
class Found:
    """What came of the inputs of one target."""

    target: str
    words: dict[str, int] = field(default_factory=lambda: {"taken": 0, "refused": 0})
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0


def fuzz(target: str, inputs: int, *, first: int = 0, seed: int = 0) -> Found:
    """Return what came of the inputs ``first`` to ``first + inputs - 1`` of a target."""
    module = import_module(f"fuzzing.{target}")
    found, started = Found(target), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        shared = module.setup(Path(scratch))
        for number in range(first, first + inputs):
            try:
                word = module.attempt(shared, Random(f"{target} {seed} {number}"))
            except Exception:  # noqa: BLE001 - whatever is raised, it is what was looked for
                where = traceback.format_exc().strip().splitlines()
                found.violations.append(f"{target} {number}: {' '.join(where[-4:])}")
            else:
                found.words[word] += 1
        if hasattr(module, "close"):
            module.close(shared)
    found.seconds = time.process_time() - started
    return found


def page(results: list[Found], command: str) -> str:
    """Return the page of docs/lab/fuzz.md."""
    rows = [
        [
            TARGETS[each.target],
            f"{sum(each.words.values()) + len(each.violations):,}",
            f"{each.words['taken']:,}",
            f"{each.words['refused']:,}",
            f"{len(each.violations):,}",
        ]
        for each in results
    ]
    inputs = sum(sum(each.words.values()) + len(each.violations) for each in results)
    bad = sum(len(each.violations) for each in results)
    return (
        "# Inputs that nobody should send\n\n"
        f"{date.today()}. Of {inputs:,} inputs {bad:,} ended in anything but an answer or one "
        "clear line.\n\n"
        f"    {command}\n\n"
        + table(["inputs", "number", "taken", "refused in one line", "anything else"], rows)
        + "\n\nAn input is damaged bytes, a value of another kind or size, or a file that agrees\n"
        "with its own hashes and lies. What is taken has to serve, and a refused call may\n"
        "change nothing. The checks run the first inputs of each target\n"
        "(`tests/benchmarks/test_fuzz.py`).\n"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the targets and write what came of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--output", type=Path, help="the page to write")
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    results = []
    for target in options.only:
        found = fuzz(target, options.inputs, first=options.first, seed=options.seed)
        results.append(found)
        say(f"{target}: {found.words}, {len(found.violations)} others, {found.seconds:.0f} s")
        for violation in found.violations[:20]:
            say(f"  {violation[:600]}")
    command = f"PYTHONPATH=src:benchmarks python benchmarks/fuzz.py --inputs {options.inputs}"
    text = page(results, command)
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")
    write_json(options.json, [vars(each) for each in results])
    sys.exit(any(each.violations for each in results))


if __name__ == "__main__":
    main()
