"""What strangers' traffic does to predictions: names never met, common values, drift, floods.

    PYTHONPATH=src python benchmarks/strangers.py [--quick] [--predictor survival] [--json FILE]
        [--page FILE] [--data DIR] [--seeds 3] [--only drift]

Every line has a target, and says whether it is met; a figure is the worst of the seeds, unless its
name says otherwise. A seed is another stretch of the trace and another stranger. A predictor is
fitted on the rows before the stretch; then every request is predicted at its start and learned from
when eight others have come. Thresholds were chosen on the first 8,000 rows of the ServeGen chat
trace; what is here was not looked at meanwhile, but for alternating chat and reasoning. ``--quick``
takes small made-up workloads: it shows that the command works, and no more.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import DATA, code, load, say, single_thread, table, write_json

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.predictor.registry import has_network

DELAY = 8
"""Requests that come between one and its end."""
FLOODS = (
    *("one token", "100 tokens", "8,191 tokens", "cut at 8,192", "mixed lengths", "aborts"),
    *("a new name each", "twenty names in turn", "no name", "a new session each", "others' names"),
)
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
    met: bool
    bound: float | None = None
    """What a predictor reaches that is told the moment of a change; ``None`` for none."""


@dataclass
class Sizes:
    """How much is measured."""

    fit: int
    rows: int
    phase: int
    ids: int
    seeds: int


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


def fitted(kind: str, rows: list[Row]) -> Any:
    """A predictor that was fitted on rows, or has seen none."""
    options: dict[str, Any] = {"online": "off", "epochs": 2} if has_network(kind) else {}
    predictor = create_predictor(kind, **options)
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
    """Undeclared caps and habits, on made-up lengths."""
    rng = np.random.default_rng(seed)
    count = min(sizes.fit, 3000) + sizes.rows // 2
    free = rng.lognormal(6.0, 1.0, count).astype(int) + 1
    cases: list[tuple[str, np.ndarray]] = [
        *((f"a cap of {cap:,} that nobody declared", np.minimum(free, cap)) for cap in CAPS),
        ("30 % of all at 700", np.where(rng.random(count) < 0.3, 700, free)),
        ("always 1,024", np.full(count, 1024)),
    ]
    for what, lengths in cases:
        rows = [Row({"prompt_length": int(rng.integers(10, 999))}, int(n)) for n in lengths]
        found = serve(
            fitted(kind, rows[: -sizes.rows // 2]), scored(rows[-sizes.rows // 2 :]), learn=False
        )
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
            yield below("floods", f"{name}, MAE of the others", found.mae / base.mae, target)
            if times == 10:
                yield above("floods", f"{name}, coverage", found.covered, 0.86)


def among(rows: list[Row], what: str, times: int, seed: int) -> Iterator[tuple[Row, bool]]:
    """The rows, and a stranger's requests before each."""
    rng = np.random.default_rng(seed)
    names = sorted({row.said["client_id"] for row in rows})
    made = 0
    for row in rows:
        for _ in range(times):
            made += 1
            said: Said = {**rows[int(rng.integers(len(rows)))].said, "client_id": "stranger"}
            length, reason = 100, "stop"
            if what == "one token":
                length = 1
            elif what == "8,191 tokens":
                length = 8191
            elif what == "cut at 8,192":
                length, reason = 8192, "length"
            elif what == "mixed lengths":
                length = (1, 8191)[made // 50 % 2]
            elif what == "aborts":
                length, reason = 1, "abort"
            elif what == "a new name each":
                said["client_id"] = f"stranger {made}"
            elif what == "twenty names in turn":
                said["client_id"] = f"stranger {made % 20}"
            elif what == "no name":
                del said["client_id"]
            elif what == "a new session each":
                said["session_id"] = f"session {made}"
            elif what == "others' names":
                said["client_id"] = names[int(rng.integers(len(names)))]
            yield Row(said, length, reason), False
        yield row, True


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


def worst_of(runs: list[list[Line]]) -> list[Line]:
    """Of the same lines by several seeds, the worst of each."""
    return [
        (max if lines[0].target.startswith("<") else min)(lines, key=lambda line: line.figure)
        for lines in zip(*runs, strict=True)
    ]


def made_up(seed: int, count: int, centre: float) -> list[Row]:
    """Eight clients, each with lengths of its own."""
    rng = np.random.default_rng(seed)
    who = rng.integers(8, size=count)
    lengths = rng.lognormal(centre + 0.1 * who, 0.6).astype(int) + 1
    return [
        Row({"client_id": f"c{c}", "prompt_length": int(rng.integers(10, 2000))}, int(n))
        for c, n in zip(who, lengths, strict=True)
    ]


def workloads(data: Path | None, sizes: Sizes) -> dict[str, list[Row]]:
    """Traces by name; made-up ones without a folder."""
    if data is None:
        count = sizes.fit + (sizes.seeds + 2) * 2 * sizes.rows
        chat, thought = made_up(0, count, 4.0), made_up(1, count, 7.0)
        return {"nameless": say_more(chat, client_id=None), "chat": chat, "reasoning": thought}
    found = {}
    for name in ("azure_conv", "mooncake_conversation", "servegen_chat", "servegen_reasoning"):
        frame = load(data, name)
        if frame is not None:
            # What the thresholds were chosen on is left out.
            found[name] = rows_of(frame)[8000 if name == "servegen_chat" else 0 :]
    return found


PARTS = ("names", "common values", "drift", "floods", "ids that come once")


def measured(
    kind: str, found: dict[str, list[Row]], sizes: Sizes, only: str | None = None
) -> list[Line]:
    """Every line, or those of one part."""
    lines: list[Line] = []

    def add(part: str, run: Callable[[int], Iterator[Line]]) -> None:
        if only is not None and not part.startswith(only):
            return
        say(part)
        lines.extend(worst_of([list(run(seed)) for seed in range(sizes.seeds)]))

    named = {k: v for k, v in found.items() if any("client_id" in row.said for row in v)}
    for trace, rows in found.items():
        if trace not in named or "chat" in trace:
            add(f"names, {trace}", lambda s, t=trace, r=rows: names(kind, t, r, sizes, s))
    add("common values", lambda s: common(kind, sizes, s))
    pairs = [("azure_conv", "mooncake_conversation")] if "azure_conv" in found else []
    if len(named) == 2:
        pairs.append((next(iter(named)), next(reversed(named))))
    for a, b in pairs:
        add(f"drift, {a} and {b}", lambda s, a=a, b=b: drifts(kind, a, b, found, sizes, s))
    for trace, rows in named.items():
        add(f"floods, {trace}", lambda s, t=trace, r=rows: flood(kind, t, r, sizes, s))
    add("ids that come once", lambda s: once(kind, sizes, s))
    return lines


def under_names_of(old: list[Row], new: list[Row]) -> list[Row]:
    """Rows whose clients bear the names of others."""
    theirs = sorted({row.said["client_id"] for row in old})
    ours = sorted({row.said["client_id"] for row in new})
    name = {client: theirs[i % len(theirs)] for i, client in enumerate(ours)}
    return [Row({**row.said, "client_id": name[row.said["client_id"]]}, row.length) for row in new]


def page(kind: str, lines: list[Line], head: str, sizes: Sizes) -> str:
    """The page of the laboratory."""
    parts = list(dict.fromkeys(line.part for line in lines))
    missed = [line for line in lines if not line.met]
    met = {part: [line.met for line in lines if line.part == part] for part in parts}
    told = "; ".join(f"{part} {sum(each)} of {len(each)}" for part, each in met.items())
    blocks = [
        "# Strangers' traffic, line by line",
        f"{head}. `{kind}` meets {len(lines) - len(missed)} of {len(lines)} targets: {told}.\n"
        "What a stranger does under one name of his own hardly reaches the others; what he does "
        "under theirs does, and no\npredictor can tell the two apart: "
        "[what a stranger can do](../explanation/strangers.md).",
        f"    PYTHONPATH=src python benchmarks/strangers.py --seeds {sizes.seeds} --page FILE",
        f"Fitted on {sizes.fit:,} rows, {sizes.rows:,} scored, each figure the worst of "
        f"{sizes.seeds} stretches and seeds. MAE as a ratio to that\nwithout the "
        "stranger, coverage of the 90 % interval. Thresholds were chosen on the first 8,000 rows "
        "of ServeGen chat, left out here.",
    ]
    for part in parts:
        here = [line for line in lines if line.part == part]
        rows = [[line.what, shown(line.figure), line.target, line.met] for line in here]
        header = ["what", "figure", "target", "met"]
        blocks.append(f"## {part[0].upper()}{part[1:]}")
        if any(line.bound is not None for line in here):
            blocks.append(
                "Told: a predictor that is told the moment of the change and begins anew there; in "
                "phases, each workload's own table.\nA target that it misses, too, is out of "
                "reach of forgetting, however soon the change is noticed."
            )
            header.append("told")
            for row, line in zip(rows, here, strict=True):
                row.append(None if line.bound is None else shown(line.bound))
        blocks.append(table(header, rows))
    return "\n\n".join(blocks) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictor", default="survival")
    parser.add_argument("--quick", action="store_true", help="made-up workloads, for tests")
    parser.add_argument("--json", type=Path, help="also write the lines to this file")
    parser.add_argument("--page", type=Path, help="also write the page to this file")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, help="one part instead of all")
    options = parser.parse_args(arguments)
    if has_network(options.predictor):
        single_thread()
    sizes = Sizes(4000, 800, 500, 30_000, options.seeds)
    if options.quick:
        sizes = Sizes(800, 100, 100, 300, 1)
    head = code()
    found = workloads(None if options.quick else options.data, sizes)
    lines = measured(options.predictor, found, sizes, options.only)
    text = page(options.predictor, lines, head, sizes)
    print(text)
    write_json(options.json, [asdict(line) for line in lines])
    if options.page is not None:
        options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
