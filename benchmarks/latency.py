"""CPU time per call, one thread: our predictors beside the specification's own eager networks.

    PYTHONPATH=src python benchmarks/latency.py [--output PAGE] [--json FILE] [--quick]

Every predictor is trained on a small history with models, clients and sessions, so that a first
prediction reads as many completions of its session and its client as are ever kept. Calls are
timed one by one with the CPU clock of the process (0.3–0.5 µs of it is the clock itself), in
rounds that take turns between the predictors, so that a noisy minute hits all of them. Nothing is
left out: the garbage collector runs, and the p99 holds whatever it costs. CPU time is not free of
neighbours: where other processes fill the caches and the sibling threads, everything here,
references included, takes up to twice as long. The ratios hold.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import code, single_thread, table, write_json, write_page
from reference.specification import ReferenceLSTM, ReferenceTransformer

from sagellm_lifetime import PREDICTORS, PredictionRequest, create_predictor
from sagellm_lifetime.features.context import OF_CLIENT, OF_SESSION
from sagellm_lifetime.predictor.registry import has_network

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "latency.md"
PROMPT_TOKENS = 200
RUNNING = 256
STEPS = 15
"""Steps from the ages of :func:`running` without a new chunk."""
CAP = 4096
CHUNKS = ((48, 64), (64, 96), (96, 128), (128, 192))
"""Ages at which a chunk of generated tokens is complete, and the next such age."""
REFERENCE_OF = {"lstm": "reference-lstm", "transformer": "reference-transformer"}
TARGETS: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("first", "lstm"): (300.0, 900.0),
    ("first", "transformer"): (500.0, 1000.0),
    **{("later", name): (20.0, None) for name in PREDICTORS},
    **{("batch", name): (5.0, None) for name in PREDICTORS},
    **{("quantiles", name): (1.0, None) for name in PREDICTORS},
}
"""Median and p99 to reach, µs."""
TITLES = {
    "first": (
        f"first prediction of a sequence ({PROMPT_TOKENS} prompt tokens, the last {OF_SESSION} "
        f"completions of its session and {OF_CLIENT} of its client)"
    ),
    "later": "later step without new evidence, predict",
    "batch": f"predict_batch, {RUNNING} running, per sequence",
    "quantiles": f"quantiles(ids, ages, 0.5), {RUNNING} running, per sequence",
    "chunk": "step with a new chunk of generated tokens",
    "update": "update (networks: online=off)",
}


def history(rows: int = 480, seed: int = 0) -> pl.DataFrame:
    """A small history: 2 models, 4 clients, 24 sessions."""
    rng = np.random.default_rng(seed)
    session = rng.integers(0, 24, rows)
    typical = 60.0 * 1.2**session
    return pl.DataFrame(
        {
            "model": [f"model-{s % 2}" for s in session],
            "client_id": [f"client-{s % 4}" for s in session],
            "session_id": [f"session-{s}" for s in session],
            "arrival_time": np.arange(rows, dtype=np.float64) * 10.0,
            "turn": np.arange(rows) // 24,
            "prompt_length": rng.integers(20, 2000, rows),
            "max_length": np.full(rows, CAP),
            "actual_length": np.clip(typical * rng.lognormal(0.0, 0.4, rows), 1, CAP).astype(int),
            "actual_time": np.full(rows, 5.0),
        }
    )


def trained(name: str, frame: pl.DataFrame, epochs: int = 2) -> Any:
    """Our predictor ``name``, fitted on ``frame``."""
    options = {"online": "off", "epochs": epochs} if has_network(name) else {}
    return create_predictor(name, **options).fit(frame)


class Calls:
    """Requests as an engine would make them: the prompt, then the prompt and what came after."""

    def __init__(self, seed: int = 1) -> None:
        self._rng = np.random.default_rng(seed)
        self._made = 0

    def start(self) -> PredictionRequest:
        """A new sequence of a known session and client."""
        session = int(self._rng.integers(0, 24))
        self._made += 1
        said = {
            "model": f"model-{session % 2}",
            "client_id": f"client-{session % 4}",
            "session_id": f"session-{session}",
            "turn": 21,
            "prompt_length": PROMPT_TOKENS,
            "temperature": 0.7,
        }
        tokens = self._rng.integers(0, 150_000, PROMPT_TOKENS).tolist()
        return PredictionRequest(f"request-{self._made}", tokens, 0, CAP, said)

    def later(self, first: PredictionRequest, age: int) -> PredictionRequest:
        """The same sequence after ``age`` tokens."""
        generated = [(7919 * i) % 150_000 for i in range(age)]
        return PredictionRequest(
            first.sequence_id, [*first.token_ids, *generated], age, CAP, first.prompt_features
        )


Case = Callable[[Any, Calls, int], Iterator[float]]
"""Nanoseconds of each of about so many timed calls; leaves no running sequence behind."""


def first(predictor: Any, calls: Calls, count: int) -> Iterator[float]:
    """The first prediction of new sequences."""
    for _ in range(count):
        request = calls.start()
        yield timed(predictor.predict, request)
        forget(predictor, request)


def later(predictor: Any, calls: Calls, count: int) -> Iterator[float]:
    """Predictions between two chunks."""
    for _ in range(count // 20 + 1):
        start = calls.start()
        predictor.predict(start)
        predictor.predict(calls.later(start, 64))
        for age in range(65, 85):
            request = calls.later(start, age)
            yield timed(predictor.predict, request)
        forget(predictor, start)


def chunk(predictor: Any, calls: Calls, count: int) -> Iterator[float]:
    """Predictions at which a new chunk of generated tokens is read."""
    for _ in range(count // len(CHUNKS) + 1):
        start = calls.start()
        predictor.predict(start)
        predictor.predict(calls.later(start, CHUNKS[0][0]))
        for _, age in CHUNKS:
            request = calls.later(start, age)
            yield timed(predictor.predict, request)
        forget(predictor, start)


def batch(predictor: Any, calls: Calls, count: int) -> Iterator[float]:
    """Nanoseconds per sequence of ``predict_batch`` (one by one where there is none)."""
    many = getattr(predictor, "predict_batch", None)
    for _ in range(max(count // (STEPS * RUNNING), 1)):
        starts, ages = running(predictor, calls)
        # Made beforehand: an engine has its lists of tokens, it does not write them anew.
        steps = [
            [calls.later(each, int(age) + step) for each, age in zip(starts, ages, strict=True)]
            for step in range(1, STEPS + 1 if many else 3)
        ]
        for requests in steps:
            if many is None:
                yield timed(lambda r=requests: [predictor.predict(each) for each in r]) / RUNNING
            else:
                yield timed(many, requests) / RUNNING
        forget(predictor, *starts)


def quantiles(predictor: Any, calls: Calls, count: int) -> Iterator[float]:
    """Nanoseconds per sequence of the array form."""
    starts, ages = running(predictor, calls)
    ids = [each.sequence_id for each in starts]
    for step in range(max(count // 16, 5)):
        yield timed(predictor.quantiles, ids, ages + step % STEPS, 0.5) / RUNNING
    forget(predictor, *starts)


def update(predictor: Any, calls: Calls, count: int) -> Iterator[float]:
    """Completions; every 64 answers the calibration learns, which is in the p99."""
    for i in range(count):
        request = calls.start()
        predictor.predict(request)
        yield timed(predictor.update, request.sequence_id, 20 + i * 37 % 900, 4.0)


CASES: dict[str, Case] = {
    "first": first,
    "later": later,
    "batch": batch,
    "quantiles": quantiles,
    "chunk": chunk,
    "update": update,
}


def running(predictor: Any, calls: Calls) -> tuple[list[PredictionRequest], np.ndarray]:
    """``RUNNING`` sequences at ages of their own, from which no chunk ends for ``STEPS`` steps."""
    starts = [calls.start() for _ in range(RUNNING)]
    ages = np.resize(np.array([0, 65, 100, 130, 200, 400]), RUNNING)
    for each, age in zip(starts, ages, strict=True):
        predictor.predict(calls.later(each, int(age)))
    return starts, ages


def timed(call: Callable[..., Any], *arguments: Any) -> float:
    """CPU time of one call, ns."""
    start = time.process_time_ns()
    call(*arguments)
    return time.process_time_ns() - start


def forget(predictor: Any, *requests: PredictionRequest) -> None:
    """Drop the sequences, where the predictor keeps any."""
    discard = getattr(predictor, "discard", None)
    for request in requests if discard is not None else ():
        discard(request.sequence_id)


@dataclass(frozen=True)
class Timing:
    """Microseconds per call."""

    case: str
    name: str
    median: float
    p99: float
    calls: int

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` where there is none."""
        median, p99 = TARGETS.get((self.case, self.name), (None, None))
        if median is None:
            return None
        return self.median <= median and (p99 is None or self.p99 <= p99)


def measure(case: str, predictors: dict[str, Any], count: int, rounds: int = 8) -> list[Timing]:
    """One case for all predictors that can do it, taking turns."""
    able = {
        name: each
        for name, each in predictors.items()
        if case != "quantiles" or hasattr(each, "quantiles")
    }
    found: dict[str, list[float]] = {name: [] for name in able}
    for at in range(rounds + 1):
        for name, predictor in able.items():
            nanoseconds = list(CASES[case](predictor, Calls(seed=at), max(count // rounds, 4)))
            if at:  # the first round warms up
                found[name] += nanoseconds
    return [
        Timing(case, name, float(np.median(ns)) / 1e3, float(np.quantile(ns, 0.99)) / 1e3, len(ns))
        for name, ns in found.items()
    ]


IMPORT = """
import sys, time
start = time.perf_counter()
{statement}
print(time.perf_counter() - start, "torch" in sys.modules)
"""
IMPORTS = {
    "import sagellm_lifetime": "import sagellm_lifetime",
    "… and create_predictor('survival')": (
        "import sagellm_lifetime; sagellm_lifetime.create_predictor('survival')"
    ),
    "… and create_predictor('lstm')": (
        "import sagellm_lifetime; sagellm_lifetime.create_predictor('lstm')"
    ),
}


def imports(titles: list[str], times: int) -> list[dict[str, Any]]:
    """Wall seconds of importing, in processes of their own, and whether PyTorch came with it."""
    found = []
    for title in titles:
        code = IMPORT.format(statement=IMPORTS[title])
        outputs = [
            subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            ).stdout.split()
            for _ in range(times)
        ]
        seconds = sorted(float(wall) for wall, _ in outputs)
        found.append(
            {
                "what": title,
                "median_s": seconds[len(seconds) // 2],
                "max_s": seconds[-1],
                "torch": any(loaded == "True" for _, loaded in outputs),
            }
        )
    return found


def report(timings: list[Timing]) -> str:
    """One table per case."""
    parts = []
    by = {(t.case, t.name): t for t in timings}
    for case, title in TITLES.items():
        rows = []
        for t in timings:
            if t.case != case:
                continue
            ratios = []
            for reference in REFERENCE_OF.values():
                other = by.get((case, reference))
                same = REFERENCE_OF.get(t.name, reference) == reference
                ratios.append(f"{other.median / t.median:.1f}×" if other and same else None)
            goal = TARGETS.get((case, t.name), (None, None))
            wanted = " / ".join(f"{g:g}" for g in goal if g is not None) or None
            rows.append([t.name, f"{t.median:.1f}", f"{t.p99:.1f}", *ratios, wanted, t.met])
        if rows:
            head = ["µs per call", "median", "p99", "LSTM ref. ÷", "Transf. ref. ÷"]
            parts.append(f"{title}\n\n" + table([*head, "to reach", "reached"], rows))
    return "\n\n".join(parts)


PAGE = """# Latency

{made}. A first prediction takes {survival} µs with a table (`survival`) and {networks} µs with a
network (medians, one thread). A later step without new evidence takes {later} µs, or {array} µs
for each of {running} sequences in the array form. The specification's own networks, in eager
PyTorch, take {references} µs for a first prediction.

    PYTHONPATH=src python benchmarks/latency.py

CPU time of one call in µs, median / p99:

{table}

Each figure is of {calls} calls or more ({batches} for the batches), garbage collection included.
*First*: features and context included, {prompt} prompt tokens. *Chunk*: a step at which new
generated tokens are read. *Batch* and *array form*: {running} running sequences, time for each.
*Update*: networks with `online="off"`; its p99 is the calibration, which learns once every 32
answers. {goals}

{imports}
"""
_SHORT = {
    "first": "first prediction",
    "later": "later step, `predict`",
    "chunk": "step with a new chunk",
    "batch": "`predict_batch`, each",
    "quantiles": "array form `quantiles`, each",
    "update": "`update`",
}
_WHO = {"reference-lstm": "specification's LSTM", "reference-transformer": "its Transformer"}


def page(timings: list[Timing], found: list[dict[str, Any]], made: str) -> str:
    """Return the page of ``docs/lab``; ``timings`` are of all cases."""
    by = {(t.case, t.name): t for t in timings}
    names = list(dict.fromkeys(t.name for t in timings))

    def span(case: str, some: Iterable[str]) -> str:
        low, *_, high = sorted([by[case, name].median for name in some] * 2)
        ends = [f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in (low, high)]
        return "–".join(dict.fromkeys(ends))

    rows = [
        [title, *(_cell(by.get((case, name))) for name in names)] for case, title in _SHORT.items()
    ]
    missed = [f"{_SHORT[t.case]} of {t.name}" for t in timings if t.met is False]
    short = [t.calls for t in timings if t.case in ("batch", "quantiles")]
    return PAGE.format(
        made=made,
        survival=span("first", ["survival"]),
        networks=span("first", [name for name in PREDICTORS if has_network(name)]),
        later=span("later", PREDICTORS),
        array=span("quantiles", PREDICTORS),
        references=span("first", REFERENCE_OF.values()),
        running=RUNNING,
        table=table(["µs per call", *(_WHO.get(name, name) for name in names)], rows),
        calls=min(t.calls for t in timings if t.case not in ("batch", "quantiles")),
        batches=min(short),
        prompt=PROMPT_TOKENS,
        goals=f"Over its limit: {'; '.join(missed)}." if missed else "All limits are kept.",
        imports=imports_table(found),
    )


def _cell(timing: Timing | None) -> str | None:
    if timing is None:
        return None
    values = (timing.median, timing.p99)
    return " / ".join(f"{value:.1f}" if value < 100 else f"{value:.0f}" for value in values)


def imports_table(found: list[dict[str, Any]]) -> str:
    """Return the wall times of importing as a table."""
    return table(
        ["wall time", "median s", "max s", "loads PyTorch"],
        [[f["what"], f"{f['median_s']:.3f}", f"{f['max_s']:.3f}", f["torch"]] for f in found],
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--output", type=Path, help="the page to write; with --quick none by default"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="few calls: for tests, not for use")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args(arguments)
    made = code()
    output = options.output or (None if options.quick else DEFAULT_OUTPUT)
    single_thread()
    if options.quick:
        globals()["RUNNING"] = 24
    frame = history(120 if options.quick else 480)
    predictors = {name: trained(name, frame, 1 if options.quick else 2) for name in PREDICTORS}
    predictors |= {each.name: each() for each in (ReferenceLSTM, ReferenceTransformer)}
    timings: list[Timing] = []
    for case in options.only:
        timings += measure(
            case, predictors, 16 if options.quick else 2400, 1 if options.quick else 8
        )
    found = imports(list(IMPORTS)[:1], 1) if options.quick else imports(list(IMPORTS), 7)
    print(report(timings), end="\n\n")
    print(imports_table(found))
    if set(options.only) == set(CASES):  # a page with some of its rows missing would mislead
        write_page(output, page(timings, found, made))
    write_json(
        options.json,
        {"imports": found, "timings": [vars(t) | {"met": t.met} for t in timings]},
    )


if __name__ == "__main__":
    main()
