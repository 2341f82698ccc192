"""What strangers' traffic does to predictions: names never met, common values, drift, floods.

    PYTHONPATH=src python benchmarks/strangers.py [--kinds survival lstm transformer] [--seeds 3]
        [--jobs 2] [--runs FILE] [--only PART ...] [--json FILE] [--page FILE] [--data DIR]
        [--quick]

Every line has a target, and says whether it is met; a figure is the worst of the seeds, unless its
name says otherwise. A seed is another stretch of the trace and another stranger. A predictor is
fitted on the rows before the stretch; then every request is predicted at its start and learned from
when eight others have come. Thresholds were chosen on the first 8,000 rows of the ServeGen chat
trace; what is here was not looked at meanwhile, but for alternating chat and reasoning.

The work is done in pieces (predictor, part, trace, seed). With ``--runs`` each finished piece is
one line of that file, and a run that was interrupted goes on where it stopped; ``--jobs`` makes
pieces at the same time. Networks learn online as in service, but in their coverage and in replays,
where only their tables do (a gradient step every four completions would take hours), and from fewer
rows: see ``OF_NETWORKS``.
``--quick`` takes small made-up workloads: it shows that the command works, and no more.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import polars as pl
import strangers_replay
from common import (
    DATA,
    TRACES,
    code,
    load,
    read_lines,
    run_all,
    say,
    single_thread,
    table,
    write_json,
)
from conditional_coverage import HIGHEST, LEAST_CASES, LOWEST, conditional_coverage

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.predictor.registry import has_network
from sagellm_lifetime.vllm.client_source import API_KEY, EXTRA, client_of
from sagellm_lifetime.vllm.request_adapter import RequestAdapter

DELAY = 8
"""Requests that come between one and its end."""
FORGED: Final = "others' names in the body, the client from the key"
OTHERS: Final = "others' names"
FLOODS = (
    *("one token", "100 tokens", "8,191 tokens", "cut at 8,192", "mixed lengths", "aborts"),
    *("a new name each", "four names", "twenty names in turn", "a thousand names", "no name"),
    *("a new session each", FORGED, OTHERS),
)
NAMES: Final = {
    "four names": 4,
    "twenty names in turn": 20,
    "a thousand names": 1000,
    "a new name each": 1 << 62,
}
"""Number of names of a stranger, by flood."""
LENGTHS: Final = {
    "one token": (1, "stop"),
    "8,191 tokens": (8191, "stop"),
    "cut at 8,192": (8192, "length"),
    "aborts": (1, "abort"),
}
"""Length and finish reason of a stranger's requests, by flood; 100 tokens where there are none."""
OUT_OF_REACH: Final = "floods under others' names"
"""Part of the lines that no predictor can meet; they are printed, and no target is missed."""
ARGUMENT: Final = (
    "No predictor can meet these targets. It sees pairs of a name and a length. With the roles of "
    "the owner and of\nthe stranger exchanged, the same pairs come, so it answers the same, and "
    "what is right for the owner in one case is\nwrong in the other. Only a client that cannot be "
    "forged helps (`--lifetime-client-from`; the lines\n*" + FORGED + "* above)."
)
EPOCHS = 2
"""Passes over the history in the fit of a network; 12 are usual."""
CAPS = (64, 256, 257, 1000, 1024, 4096)
Said = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One request: what it says, and how many tokens it takes."""

    said: Said
    length: int
    reason: str = "stop"


@dataclass(frozen=True)
class Line:
    """One figure beside its target."""

    part: str
    what: str
    figure: float
    target: str
    met: bool | None
    """``None`` for a figure beside others, without a target."""
    bound: float | None = None
    """What a predictor reaches that is told the moment of a change; ``None`` for none."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    fit: int
    rows: int
    phase: int
    ids: int
    seeds: int
    flooded: int
    """Rows scored under a flood; ten times as many are the stranger's."""


class Scores:
    """Errors and hits at admission, one by one."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self.hits: list[bool] = []

    @property
    def mae(self) -> float:
        """Mean error, tokens."""
        return float(np.mean(self.errors))

    @property
    def covered(self) -> float:
        """Share inside the 90 % interval."""
        return float(np.mean(self.hits))


def serve(predictor: Any, rows: Iterable[tuple[Row, bool]], *, learn: bool = True) -> Scores:
    """Predict and learn in turn; only the rows marked are scored."""
    scores, running = Scores(), deque[tuple[int, Row]]()
    for number, (row, counts) in enumerate(rows):
        cap = row.said.get("max_length")
        said = {key: value for key, value in row.said.items() if key != "max_length"}
        found = predictor.predict(PredictionRequest(number, [], 0, cap, said))
        if counts:
            low, high = found.distribution.interval(0.9)
            scores.errors.append(abs(found.estimated_remaining_tokens - row.length))
            scores.hits.append(bool(low <= row.length <= high))
        running.append((number, row))
        if len(running) > DELAY:
            _end(predictor, *running.popleft(), learn=learn)
    while running:
        _end(predictor, *running.popleft(), learn=learn)
    return scores


def _end(predictor: Any, number: int, row: Row, *, learn: bool) -> None:
    if learn:
        predictor.update(number, row.length, row.length * 0.02, finish_reason=row.reason)
    else:
        predictor.discard(number)


def scored(rows: Iterable[Row]) -> Iterator[tuple[Row, bool]]:
    """Rows that all count."""
    return ((row, True) for row in rows)


def rows_of(frame: pl.DataFrame) -> list[Row]:
    """Rows of a history, with the client and the prompt length they name."""
    names = [name for name in ("client_id", "prompt_length") if name in frame.columns]
    return [
        Row({name: row[name] for name in names if row[name] is not None}, row["actual_length"])
        for row in frame.sort("arrival_time").iter_rows(named=True)
    ]


def made(kind: str, *, seed: int = 0, online: bool = True) -> Any:
    """Return an unfitted predictor; a network with few passes, and its gradient steps or none."""
    options: dict[str, Any] = {}
    if has_network(kind):
        options = {"online": "inline" if online else "off", "epochs": EPOCHS}
    return create_predictor(kind, seed=seed, **options)


def fitted(kind: str, rows: list[Row]) -> Any:
    """A predictor that was fitted on rows, or has seen none."""
    predictor = made(kind)
    if rows:
        columns = sorted({name for row in rows for name in row.said})
        predictor.fit(
            pl.DataFrame(
                {
                    "arrival_time": np.arange(len(rows), dtype=np.float64),
                    "actual_length": [row.length for row in rows],
                    **{name: [row.said.get(name) for row in rows] for name in columns},
                },
                infer_schema_length=None,
            )
        )
    return predictor


def say_more(rows: list[Row], **more: Any) -> list[Row]:
    """The same rows, with more said about each; ``None`` withholds a piece."""
    found = []
    for i, row in enumerate(rows):
        said = {k: v(i) if callable(v) else v for k, v in {**row.said, **more}.items()}
        found.append(Row({k: v for k, v in said.items() if v is not None}, row.length))
    return found


def names(kind: str, trace: str, rows: list[Row], sizes: Sizes, seed: int) -> Iterator[Line]:
    """One more thing said than in training, and one less."""
    start = seed * sizes.rows
    old, new = rows[start : start + sizes.fit], rows[start + sizes.fit :][: sizes.rows]
    known = fitted(kind, old)
    base = serve(known.clone(), scored(new), learn=False).mae
    more: dict[str, tuple[float, Said]] = {
        "a constant cap": (1.03, {"max_length": 100_000}),
        "a model's name": (1.03, {"model": "m"}),
    }
    if not any("client_id" in row.said for row in rows):
        more["a client never met"] = (1.03, {"client_id": "new"})
        thousand = {"client_id": lambda i: f"c{i // 3}"}
        online = serve(known.clone(), scored(new)).mae
        sparse = serve(known.clone(), scored(say_more(new, **thousand))).mae
        yield below("names", f"{trace}: three requests a client, online", sparse / online, 1.05)
    for what, (target, said) in more.items():
        found = serve(known.clone(), scored(say_more(new, **said)), learn=False).mae
        yield below("names", f"{trace}: {what}", found / base, target)
    found = serve(fitted(kind, say_more(old, model="m")), scored(new), learn=False).mae
    yield below("names", f"{trace}: a model's name withheld", found / base, 1.03)


def common(kind: str, sizes: Sizes, seed: int) -> Iterator[Line]:
    """Undeclared caps and habits, on made-up lengths.

    Five times as many are scored as elsewhere: of 400, a right 90 % interval holds 87 to 93 %.
    """
    rng = np.random.default_rng(seed)
    scored_rows = 5 * sizes.rows
    count = min(sizes.fit, 3000) - sizes.rows // 2 + scored_rows
    free = rng.lognormal(6.0, 1.0, count).astype(int) + 1
    cases: list[tuple[str, np.ndarray]] = [
        *((f"a cap of {cap:,} that nobody declared", np.minimum(free, cap)) for cap in CAPS),
        ("30 % of all at 700", np.where(rng.random(count) < 0.3, 700, free)),
        ("always 1,024", np.full(count, 1024)),
    ]
    for what, lengths in cases:
        rows = [Row({"prompt_length": int(rng.integers(10, 999))}, int(n)) for n in lengths]
        known, new = rows[:-scored_rows], rows[-scored_rows:]
        found = serve(fitted(kind, known), scored(new), learn=False)
        yield above("common values", what, found.covered, 0.88)


def drift(
    kind: str, what: str, old: list[Row], new: list[Row], sizes: Sizes, seed: int
) -> Iterator[Line]:
    """A workload that changes at once.

    The bound is a predictor that is told the moment of the change, and knows nothing before it.
    """
    start = seed * sizes.rows
    before = old[start : start + sizes.fit]
    known, after = new[start:][: sizes.fit // 2], new[start + sizes.fit // 2 :][: 2 * sizes.rows]
    trained = serve(fitted(kind, known), scored(after))
    window = min(200, sizes.rows // 2)
    target = 1.1 * rolling(trained.errors, window)

    def moments(scores: Scores) -> list[float]:
        # From there on, but for one window in twenty: windows have noise.
        mae, cover = rolling(scores.errors, window), rolling(scores.hits, window)
        held = (mae <= target, cover >= 0.85, (cover >= 0.85) & (cover <= 0.95))
        return [
            first([np.mean(each[i:]) >= 0.95 for i in range(len(each) - window)]) for each in held
        ]

    ours = moments(serve(fitted(kind, before), scored(after)))
    told = moments(serve(fitted(kind, []), scored(after)))
    for name, most, figure, bound in zip(
        ("MAE is as a trained one's + 10 %", "coverage is 85 % or more", "coverage is 85-95 %"),
        (500, 300, 300),
        ours,
        told,
        strict=True,
    ):
        line = below("drift", f"{what}: completions until {name}", figure, most)
        yield replace(line, bound=bound)


def shown(figure: float) -> str:
    """Return a figure for people; infinity is a moment that never came."""
    if not np.isfinite(figure):
        return "never"
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def first(found: list[Any]) -> float:
    """Return the index of the first that holds, infinity where none does."""
    return float(next((i for i, holds in enumerate(found) if holds), np.inf))


def rolling(values: Iterable[float], window: int) -> np.ndarray:
    """Means over so many values; the first ends with value number ``window``."""
    sums = np.cumsum(np.r_[0.0, np.array(list(values), dtype=float)])
    return (sums[window:] - sums[:-window]) / window


def phases(
    kind: str, what: str, day: list[Row], night: list[Row], sizes: Sizes, seed: int
) -> Iterator[Line]:
    """Two workloads in turn, under one name; their own tables are the bound, 1."""
    start = seed * sizes.rows
    mixed = fitted(kind, [])
    alone = [fitted(kind, []) for _ in range(2)]
    worst = 0.0
    skip = min(100, sizes.phase // 4)
    for phase in range(6):
        part = (day, night)[phase % 2][start + phase // 2 * sizes.phase :][: sizes.phase]
        rows = say_more(part, client_id="c")
        ours = serve(mixed, scored(rows)).errors[skip:]
        theirs = serve(alone[phase % 2], scored(rows)).errors[skip:]
        if phase >= 2:
            worst = max(worst, float(np.mean(ours) / np.mean(theirs)))
    line = below("drift", f"{what} in phases: worst phase to its own table", worst, 1.15)
    yield replace(line, bound=1.0)


def drifts(
    kind: str, a: str, b: str, found: dict[str, list[Row]], sizes: Sizes, seed: int
) -> Iterator[Line]:
    """One pair of workloads: a change to each from the other, and both in turn."""
    named = "client_id" in found[a][0].said
    for before, after in ((a, b), (b, a)):
        old, new = found[before], found[after]
        what = f"{before} to {after}"
        same = under_names_of(old, new) if named else new
        yield from drift(kind, what, old, same, sizes, seed)
        # The clients' names, or where there are none, that of the model.
        other = say_more(old, model="before"), say_more(new, model="after")
        if named:
            other = (
                old,
                [
                    Row({**row.said, "client_id": f"new {row.said['client_id']}"}, row.length)
                    for row in new
                ],
            )
        yield from drift(kind, f"{what}, new names", *other, sizes, seed)
    yield from phases(kind, f"{a} and {b}", found[a], found[b], sizes, seed)


def flood(kind: str, trace: str, rows: list[Row], sizes: Sizes, seed: int) -> Iterator[Line]:
    """One stranger at ten times the rate of all others, and at the same."""
    start = seed * sizes.rows
    old, new = rows[start : start + sizes.fit], rows[start + sizes.fit :][: sizes.rows]
    known = fitted(kind, old)
    base = serve(known.clone(), scored(new))
    for what in FLOODS:
        for times, target in ((10, 1.05), (1, 1.02)):
            found = serve(known.clone(), among(new, what, times, seed))
            name = f"{trace}: {what}, {times} x"
            lines = [below("floods", f"{name}, MAE of the others", found.mae / base.mae, target)]
            if times == 10:
                lines.append(above("floods", f"{name}, coverage", found.covered, 0.86))
            if what == OTHERS:
                lines = [replace(line, part=OUT_OF_REACH, met=None) for line in lines]
            yield from lines


def among(rows: list[Row], what: str, times: int, seed: int) -> Iterator[tuple[Row, bool]]:
    """The rows, and a stranger's requests before each."""
    rng = np.random.default_rng(seed)
    names = sorted({row.said["client_id"] for row in rows})
    made = 0
    for row in rows:
        for _ in range(times):
            made += 1
            said: Said = {**rows[int(rng.integers(len(rows)))].said, "client_id": "stranger"}
            length, reason = LENGTHS.get(what, (100, "stop"))
            if what == "mixed lengths":
                length = (1, 8191)[made // 50 % 2]
            elif what in NAMES:
                said["client_id"] = f"stranger {made % NAMES[what]}"
            elif what == "no name":
                del said["client_id"]
            elif what == "a new session each":
                said["session_id"] = f"session {made}"
            elif what in (OTHERS, FORGED):
                said["client_id"] = names[int(rng.integers(len(names)))]
                said = from_key(said) if what == FORGED else said
            yield Row(said, length, reason), False
        yield row, True


def from_key(said: Said) -> Said:
    """Return a stranger's features as a server with ``--lifetime-client-from api-key`` has them.

    The names that the body gives go through the engine's own request adapter.
    """
    key = client_of([(b"authorization", b"Bearer the stranger's")], API_KEY)
    assert key is not None
    extra = {"client_id": said["client_id"], EXTRA: key.encode()}
    request = SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args=extra),
        lora_request=None,
        session_id=None,
        block_hashes=[],
    )
    who = RequestAdapter("m", 1 << 20, 16, trusts_body=False).who(request)
    return {**said, "client_id": who["client_id"]}


def once(kind: str, sizes: Sizes, seed: int) -> Iterator[Line]:
    """Ids that come once, while fifty honest clients are idle."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(3.0, 7.0, 50)

    def honest(count: int) -> list[Row]:
        who = rng.integers(50, size=count)
        lengths = np.exp(centre[who] + 0.3 * rng.standard_normal(count)).astype(int) + 1
        return [
            Row({"client_id": f"c{c}", "prompt_length": int(rng.integers(10, 2000))}, int(n))
            for c, n in zip(who, lengths, strict=True)
        ]

    known, asked = honest(sizes.fit), honest(sizes.rows)
    before = fitted(kind, known)
    base = serve(before, scored(asked), learn=False)
    for piece in ("client_id", "session_id", "model"):
        predictor = before.clone()
        serve(predictor, strangers(piece, 100, rng))
        start = time.process_time()
        serve(predictor, strangers(piece, sizes.ids // 10, rng))
        early = (time.process_time() - start) / (sizes.ids // 10)
        start = time.process_time()
        serve(predictor, strangers(piece, sizes.ids - sizes.ids // 10, rng))
        late = (time.process_time() - start) / (sizes.ids - sizes.ids // 10)
        found = serve(predictor, scored(asked), learn=False)
        name = f"{sizes.ids:,} of {piece}"
        yield below("ids that come once", f"{name}, MAE of the honest", found.mae / base.mae, 1.10)
        yield above("ids that come once", f"{name}, coverage", found.covered, 0.86)
        yield below("ids that come once", f"{name}, time a call at the end", late / early, 1.5)


def strangers(piece: str, count: int, rng: np.random.Generator) -> Iterator[tuple[Row, bool]]:
    """Requests under an id that never comes again."""
    for _ in range(count):
        said = {"client_id": "stranger", "prompt_length": int(rng.integers(10, 2000))}
        said[piece] = f"{piece} {rng.integers(2**60)}"
        yield Row(said, 100), False


def below(part: str, what: str, figure: float, target: float) -> Line:
    """A figure that should be no more than its target."""
    return Line(part, what, round(figure, 3), f"<= {target:g}", figure <= target)


def above(part: str, what: str, figure: float, target: float) -> Line:
    """A figure that should be no less than its target."""
    return Line(part, what, round(figure, 3), f">= {target:g}", figure >= target)


def made_up(seed: int, count: int, centre: float) -> list[Row]:
    """Eight clients, each with lengths of its own."""
    rng = np.random.default_rng(seed)
    who = rng.integers(8, size=count)
    lengths = rng.lognormal(centre + 0.1 * who, 0.6).astype(int) + 1
    return [
        Row({"client_id": f"c{c}", "prompt_length": int(rng.integers(10, 2000))}, int(n))
        for c, n in zip(who, lengths, strict=True)
    ]


@lru_cache(maxsize=2)
def workloads(data: Path | None) -> dict[str, list[Row]]:
    """Traces by name; made-up ones without a folder."""
    if data is None:
        count = QUICK.fit + (QUICK.seeds + 2) * 2 * QUICK.rows
        chat, thought = made_up(0, count, 4.0), made_up(1, count, 7.0)
        return {"nameless": say_more(chat, client_id=None), "chat": chat, "reasoning": thought}
    found = {}
    for name in ("azure_conv", "mooncake_conversation", "servegen_chat", "servegen_reasoning"):
        frame = load(data, name)
        if frame is not None:
            # What the thresholds were chosen on is left out.
            found[name] = rows_of(frame)[8000 if name == "servegen_chat" else 0 :]
    return found


PARTS = (
    *("names", "common values", "drift", "floods", "ids that come once"),
    *("coverage by group", "replay of clients half of whom were never met"),
    OUT_OF_REACH,
)
Piece = tuple[str, str, str, int]
"""Predictor, part, trace or pair of traces (empty for made-up rows), and seed."""


def pieces(kind: str, found: dict[str, list[Row]], options: argparse.Namespace) -> list[Piece]:
    """What is to be done for one predictor."""
    named = [name for name, rows in found.items() if any("client_id" in r.said for r in rows)]
    seeds = range(1 if options.quick else options.seeds)
    told = [name for name in found if name not in named or "chat" in name]
    pairs = [("azure_conv", "mooncake_conversation")] if "azure_conv" in found else []
    if len(named) == 2:
        pairs.append((named[0], named[1]))
    work: list[Piece] = [(kind, "names", name, seed) for name in told for seed in seeds]
    work += [(kind, "common values", "", seed) for seed in seeds]
    work += [(kind, "drift", f"{a} {b}", seed) for a, b in pairs for seed in seeds]
    work += [(kind, "floods", name, seed) for name in named for seed in seeds]
    work += [(kind, "ids that come once", "", seed) for seed in seeds]
    work += [(kind, PARTS[5], name, seed) for name in histories(options) for seed in seeds]
    if not options.quick and strangers_replay.has_vllm():
        work += [(kind, PARTS[6], strangers_replay.TRACE, seed) for seed in seeds]
    return [piece for piece in work if piece[1] in options.only]


def histories(options: argparse.Namespace) -> list[str]:
    """The traces whose coverage is looked at by group."""
    if options.quick:
        return ["chat"]
    return [name for name in TRACES if (options.data / "traces" / f"{name}.parquet").exists()]


def work(
    kind: str, part: str, trace: str, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Do one piece; it may run in a process of its own."""
    single_thread()
    start = time.process_time()
    sizes = sizes_of(kind, options)
    lines = list(lines_of(kind, part, trace, seed, sizes, options))
    spent = time.process_time() - start
    say(f"{kind}: {part}, {trace or 'made-up rows'}, seed {seed}: {spent:.0f} s of CPU")
    return {
        "kind": kind,
        "part": part,
        "trace": trace,
        "seed": seed,
        "sizes": asdict(sizes),
        "cpu_s": round(spent, 1),
        "lines": [asdict(line) for line in lines],
    }


def lines_of(
    kind: str, part: str, trace: str, seed: int, sizes: Sizes, options: argparse.Namespace
) -> Iterator[Line]:
    """The lines of one piece."""
    if part == PARTS[5]:
        yield from by_group(kind, trace, seed, options)
        return
    if part == PARTS[6]:
        yield from replays(kind, seed, options)
        return
    found = workloads(None if options.quick else options.data)
    if part == "names":
        yield from names(kind, trace, found[trace], sizes, seed)
    elif part == "common values":
        yield from common(kind, sizes, seed)
    elif part == "floods":
        rows = found[trace]
        yield from flood(kind, trace, rows, replace(sizes, rows=sizes.flooded), seed)
    elif part == "ids that come once":
        yield from once(kind, sizes, seed)
    else:
        yield from drifts(kind, *trace.split(), found, sizes, seed)


def by_group(kind: str, trace: str, seed: int, options: argparse.Namespace) -> Iterator[Line]:
    """Lowest and highest coverage of a group of at least 300 requests."""
    frame = made_up_history() if options.quick else load(options.data, trace)
    assert frame is not None  # pieces() has looked
    predictor = made(kind, seed=seed, online=False)
    found = conditional_coverage(predictor, frame, seed, 30 if options.quick else LEAST_CASES)
    for name, low, high, _ in found:
        yield above(PARTS[5], f"{trace}: {name}, lowest", low, LOWEST)
        yield below(PARTS[5], f"{trace}: {name}, highest", high, HIGHEST)


def replays(kind: str, seed: int, options: argparse.Namespace) -> Iterator[Line]:
    """Decisions for clients never met, as ratios to the tuned watermark's figures."""
    frame = load(options.data, strangers_replay.TRACE)
    assert frame is not None
    found = strangers_replay.replayed(made(kind, seed=seed, online=False), frame, seed)
    for _, name, target in strangers_replay.COMPARED:
        ours, known = found[name]
        yield below(PARTS[6], f"{name}, to the tuned watermark's, {MEDIAN}", ours, target)
        what = f"{name} with known lengths, {MEDIAN}"
        yield Line(PARTS[6], what, round(known, 3), "–", None)


def made_up_history() -> pl.DataFrame:
    """A small history, for ``--quick``."""
    rows = made_up(2, 600, 4.0)
    return pl.DataFrame(
        {
            "arrival_time": np.arange(len(rows), dtype=np.float64),
            "actual_length": [row.length for row in rows],
            "client_id": [row.said["client_id"] for row in rows],
        }
    )


MEDIAN = "median of the seeds"


def merged(runs: list[dict[str, Any]]) -> list[Line]:
    """Of the same lines by several seeds, one each: the worst, or the median where it says so."""
    groups: dict[tuple[str, str], list[list[Line]]] = {}
    for run in sorted(runs, key=lambda run: (PARTS.index(run["part"]), run["seed"])):
        lines = [Line(**line) for line in run["lines"]]
        groups.setdefault((run["part"], run["trace"]), []).append(lines)
    found = []
    for same in groups.values():
        by_name: dict[str, list[Line]] = {}
        for line in (line for lines in same for line in lines):
            by_name.setdefault(line.what, []).append(line)
        found += [one_of(lines) for lines in by_name.values()]
    return found


def one_of(lines: list[Line]) -> Line:
    """The worst of a line by several seeds, or its median where its name says so."""
    if MEDIAN not in lines[0].what:
        return (max if lines[0].target.startswith("<") else min)(lines, key=lambda ln: ln.figure)
    figure = round(float(np.median([line.figure for line in lines])), 3)
    if lines[0].met is None:
        return replace(lines[0], figure=figure)
    return below(lines[0].part, lines[0].what, figure, float(lines[0].target.split()[1]))


def under_names_of(old: list[Row], new: list[Row]) -> list[Row]:
    """Rows whose clients bear the names of others."""
    theirs = sorted({row.said["client_id"] for row in old})
    ours = sorted({row.said["client_id"] for row in new})
    name = {client: theirs[i % len(theirs)] for i, client in enumerate(ours)}
    return [Row({**row.said, "client_id": name[row.said["client_id"]]}, row.length) for row in new]


SIZES = Sizes(fit=4000, rows=800, phase=500, ids=30_000, seeds=3, flooded=800)
OF_NETWORKS = replace(SIZES, ids=3000, flooded=200)
QUICK = Sizes(fit=800, rows=100, phase=100, ids=300, seeds=1, flooded=100)


def sizes_of(kind: str, options: argparse.Namespace) -> Sizes:
    """How much is measured of a predictor."""
    if options.quick:
        return QUICK
    return replace(OF_NETWORKS if has_network(kind) else SIZES, seeds=options.seeds)


def page(lines: dict[str, list[Line]], runs: list[dict[str, Any]], head: str, command: str) -> str:
    """The page of the laboratory; of each line the figure of every predictor."""
    kinds = list(lines)
    told = []
    for kind in kinds:
        asked = [line for line in lines[kind] if line.met is not None]
        missed = [line for line in asked if not line.met]
        count: dict[str, list[bool | None]] = {}
        for line in asked:
            count.setdefault(line.part, []).append(line.met)
        parts = "; ".join(
            f"{part} {sum(map(bool, met))} of {len(met)}" for part, met in count.items()
        )
        told.append(f"`{kind}` meets {len(asked) - len(missed)} of {len(asked)} targets: {parts}.")
    spent = {kind: sum(run["cpu_s"] for run in runs if run["kind"] == kind) for kind in kinds}
    blocks = [
        "# Strangers' traffic, line by line",
        f"{head}. " + "\n".join(told) + "\n"
        "What a stranger does under one name of his own hardly reaches the others; what he does "
        "under theirs does, and no\npredictor can tell the two apart: "
        "[what a stranger can do](../explanation/strangers.md).",
        f"    {command}",
        "Minutes of CPU: "
        + ", ".join(f"{kind} {seconds / 60:.0f}" for kind, seconds in spent.items())
        + ". "
        + " ".join(_size_text(kind, runs) for kind in kinds)
        + f" Each figure is the worst of {len({run['seed'] for run in runs})} stretches and seeds"
        ", unless it says otherwise.\nMAE as a ratio to that without the stranger, "
        "coverage of the 90 % interval. Thresholds were chosen on the first 8,000 rows of ServeGen "
        "chat,\nleft out here but in the coverage by group, where 70 % of a trace are learned and "
        f"groups with fewer than {LEAST_CASES} requests left out.",
    ]
    for part in PARTS:
        names = list(
            dict.fromkeys(
                (line.what, line.target)
                for kind in kinds
                for line in lines[kind]
                if line.part == part
            )
        )
        if not names:
            continue
        rows = [
            [what, *(_figure(lines[kind], part, what) for kind in kinds), target]
            for what, target in names
        ]
        header = ["what", *kinds, "target"]
        blocks.append(f"## {part[0].upper()}{part[1:]}")
        if part == OUT_OF_REACH:
            blocks.append(ARGUMENT)
        bounds = {line.what: line.bound for line in lines[kinds[0]] if line.part == part}
        if any(bound is not None for bound in bounds.values()):
            blocks.append(
                "Told: a predictor that is told the moment of the change and begins anew there; in "
                "phases, each workload's own table.\nA target that it misses, too, is out of "
                "reach of forgetting, however soon the change is noticed."
            )
            header.append("told")
            for row in rows:
                bound = bounds.get(row[0])
                row.append(None if bound is None else shown(bound))
        blocks.append(table(header, rows))
    blocks += ["## Not met", _missed(lines)]
    return "\n\n".join(blocks) + "\n"


def _size_text(kind: str, runs: list[dict[str, Any]]) -> str:
    """How much was measured of a predictor."""
    sizes = next(run["sizes"] for run in runs if run["kind"] == kind)
    epochs = f", {EPOCHS} passes" if has_network(kind) else ""
    return (
        f"`{kind}`: fitted on {sizes['fit']:,} rows{epochs}, {sizes['rows']:,} scored, "
        f"{sizes['flooded']:,} under floods, {sizes['ids']:,} ids."
    )


def _figure(lines: list[Line], part: str, what: str) -> str:
    """A figure, marked where it misses its target."""
    for line in lines:
        if (line.part, line.what) == (part, what):
            return shown(line.figure) + (" ✗" if line.met is False else "")
    return "–"


def _missed(lines: dict[str, list[Line]]) -> str:
    """The lines that miss their targets, by predictor."""
    rows = [
        [f"{kind}: {line.part}: {line.what}", shown(line.figure), line.target]
        for kind, found in lines.items()
        for line in found
        if line.met is False
    ]
    return table(["what", "figure", "target"], rows) if rows else "Every target is met."


def finished(todo: list[Piece], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each piece when it is done, and a line of ``--runs``."""
    if options.jobs > 1:
        yield from run_all(work, todo, options)
        return
    for piece in todo:
        run = work(*piece, options)
        if options.runs is not None:
            with options.runs.open("a") as file:
                file.write(json.dumps(run) + "\n")
        yield run


def key(run: dict[str, Any]) -> Piece:
    """Which piece a finished one is."""
    return run["kind"], run["part"], run["trace"], run["seed"]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["survival"], help="predictors by name")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="pieces at a time; needs --runs")
    parser.add_argument("--runs", type=Path, help="finished pieces, to go on from")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("--quick", action="store_true", help="made-up workloads, for tests")
    parser.add_argument("--json", type=Path, help="also write the lines to this file")
    parser.add_argument("--page", type=Path, help="also write the page to this file")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args(arguments)
    if options.jobs > 1 and options.runs is None:
        parser.error("--jobs needs --runs FILE")
    head = code()
    found = workloads(None if options.quick else options.data)
    todo = [piece for kind in options.kinds for piece in pieces(kind, found, options)]
    known = [] if options.runs is None else read_lines(options.runs)
    sizes = {kind: asdict(sizes_of(kind, options)) for kind in options.kinds}
    if any(run["sizes"] != sizes.get(run["kind"], run["sizes"]) for run in known):
        parser.error(f"{options.runs} holds pieces of another size")
    done = {key(run): run for run in known}
    for run in finished([piece for piece in todo if piece not in done], options):
        done[key(run)] = run
    runs = [done[piece] for piece in todo]
    lines = {
        kind: merged([run for run in runs if run["kind"] == kind])
        for kind in options.kinds
        if any(run["kind"] == kind for run in runs)
    }
    command = (
        "PYTHONPATH=src python benchmarks/strangers.py "
        f"--kinds {' '.join(options.kinds)} --seeds {options.seeds} --page FILE"
    )
    if set(options.only) != set(PARTS):
        command += f" --only {shlex.join(options.only)}"
    text = page(lines, runs, head, command)
    print(text)
    write_json(
        options.json,
        [{"kind": kind, **asdict(line)} for kind, found in lines.items() for line in found],
    )
    if options.page is not None:
        options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
