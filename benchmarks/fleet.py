"""What a fleet costs and gains: entries, merges, parts of a history against one fit.

    PYTHONPATH=src python benchmarks/fleet.py [--rows 60000] [--output docs/lab/fleet.md]

The histories are drawn from the built-in ``chat`` profile. A merge and an entry are measured by the
number of groups that a state has; a fit in parts is compared with one fit of the same rows, on rows
of neither; and a replica that starts with what others know with one that starts from nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import polars as pl
from common import code, say, single_thread, table, write_page

from sagellm_lifetime import create_predictor, merge_predictors
from sagellm_lifetime.features.rows import HistoryRequests
from sagellm_lifetime.history import History, read_history
from sagellm_lifetime.predictor.fleet.entries import entry_of, predictor_of_entry
from sagellm_lifetime.predictor.lineage import LINEAGE
from sagellm_lifetime.predictor.sharded import Plan, finish, fit_part, outline
from sagellm_lifetime.workloads import generate

PROFILE = "chat"
PREDICTORS = ("baseline", "orca", "linear", "survival")
PARTS = (2, 8)
TOTAL = 100_000_000
PART_ROWS = 200_000
CORES = 64
CLIENTS = 2000
LENGTHS = (20, 60, 150, 400, 1000)


def drawn(rows, seed):
    return read_history(generate(PROFILE, rows, seed=seed)).frame


def survival(predictor, frame):
    """Return survival probabilities of the requests of a frame, shape ``(N, len(LENGTHS))``."""
    requests = HistoryRequests(frame)
    found = []
    for row in range(len(frame)):
        request = requests.request(row)
        distribution = predictor.predict(request).distribution
        predictor.discard(request.sequence_id)
        found.append([distribution.survival(n) for n in LENGTHS])
    return np.array(found)


def error(predictor, frame):
    """Return the mean absolute error of first predictions, tokens; nothing is learned."""
    requests, gaps = HistoryRequests(frame), []
    for row, length in enumerate(frame["actual_length"].to_list()):
        request = requests.request(row)
        gaps.append(abs(predictor.predict(request).estimated_remaining_tokens - length))
        predictor.discard(request.sequence_id)
    return float(np.mean(gaps))


def in_parts(name, frame, count):
    """Return a predictor fitted in parts, seconds per part, of the merge, and the entry's bytes."""
    like = create_predictor(name, seed=0)
    shards = [frame[i::count] for i in range(count)]
    plan = Plan.of([outline(shard) for shard in shards])
    started = time.process_time()
    parts = [fit_part(shard, like, plan) for shard in shards]
    fitted = time.process_time()
    merged = finish(like, parts, plan)
    ended = time.process_time()
    sizes = [len(part.entry) for part in parts]
    return merged, (fitted - started) / count, ended - fitted, float(np.mean(sizes))


def against_one_fit(frame, later):
    rows, cost = [], {}
    for name in PREDICTORS:
        alone = create_predictor(name, seed=0).fit(History(frame))
        expected, mae = survival(alone, later), error(alone, later)
        for count in PARTS:
            merged, part_s, merge_s, size = in_parts(name, frame, count)
            gap = np.abs(survival(merged, later) - expected)
            change = error(merged, later) / mae - 1.0
            rows.append(
                [
                    *(f"`{name}`", str(count), f"{gap.mean():.4f}"),
                    *(f"{np.quantile(gap, 0.99):.3f}", f"{change:+.1%}"),
                ]
            )
            cost[name, count] = part_s, merge_s, size
            say(f"{name}, {count} parts: {part_s:.1f} s a part, {merge_s:.1f} s for the rest")
    return rows, cost


def merges(frame):
    """Return rows on the cost of an entry and of a merge, by the number of groups."""
    names = np.random.default_rng(0).zipf(1.3, len(frame)) % CLIENTS
    frame = frame.with_columns(pl.Series("client_id", [f"c{name}" for name in names]))
    rows = []
    for share in (0.02, 0.2, 1.0):
        predictor = create_predictor("survival", seed=0)
        predictor.fit_part(frame.head(int(len(frame) * share)))
        started = time.process_time()
        entry = entry_of(predictor, "entry")
        written = time.process_time()
        others = [predictor_of_entry(entry, "entry", predictor)]
        read = time.process_time()
        others += [predictor_of_entry(entry, "entry", predictor) for _ in range(6)]
        for number, other in enumerate(others):
            # Copies of one entry are not merged, so each gets a lineage of its own.
            other.summary = {**other.summary, LINEAGE: {f"replica {number}": other.lessons}}
        ready = time.process_time()
        merge_predictors([predictor, *others])
        merged = time.process_time()
        nodes = len(predictor.model.tables._nodes)
        times = (written - started, read - written, merged - ready)
        rows.append(
            [
                f"{nodes:,}",
                f"{len(entry) / 1e6:.2f}",
                *(f"{1e3 * seconds:.0f}" for seconds in times),
            ]
        )
        say(f"{nodes:,} groups: {len(entry) / 1e6:.2f} MB")
    return rows


def starts(frame, later):
    """Return the errors of a replica's first answers: from nothing, and with what a fleet knows."""
    fleet = merge_predictors([_learned(frame[i::3]) for i in range(3)])
    new = create_predictor("survival", seed=0)
    return error(new, later), error(fleet, later)


def _learned(frame):
    predictor = create_predictor("survival", seed=0)
    predictor.fit_part(frame)
    return predictor


def page(args, found):
    compared, cost, merged, (nothing, known) = found
    part_s, _, size = cost["survival", PARTS[-1]]
    per_row = part_s / (args.rows / PARTS[-1])
    parts = TOTAL // PART_ROWS
    # A merge of eight entries, per entry, at the largest number of groups.
    each_s = (float(merged[-1][3]) + float(merged[-1][4]) / 8) / 1e3
    cores_h = TOTAL * per_row / 3600
    lengths, ours = ", ".join(map(str, LENGTHS)), compared[-1]
    return f"""# Replicas and parts of a history

{code()}. `survival` fitted in {PARTS[-1]} parts and merged differs from one fit by
{ours[2]} in a survival probability, on average, and its error by {ours[4]}. A replica that starts
with what three others know errs by {known:.0f} tokens in its first answers instead of
{nothing:.0f}. What a replica writes has {merged[-1][1]} MB at {merged[-1][0]} groups, and a merge
of eight takes {float(merged[-1][4]) / 1e3:.1f} s, in the learning process.

    PYTHONPATH=src python benchmarks/fleet.py

One thread, {args.rows:,} rows of the built-in workload `{PROFILE}`; processor seconds. What is
merged and how: [several replicas](../how-to/several-replicas.md).

## A fit in parts against one fit

Survival probabilities at {lengths} tokens of {args.later:,} later requests: the mean
and the 99 % quantile of the absolute differences, and the change in the mean absolute error of the
median. Counts are equal but for fair shares, which each part begins anew; windows (`baseline`) and
fading sums (`orca`, `linear`) are of the newest rows in one fit, and of each part's newest in
parts.

{table(["predictor", "parts", "mean difference", "99 %", "error"], compared)}

## Cost of an exchange

By the groups (nodes) of a `survival` state, with many clients. An entry is what a replica writes; a
merge is of eight states, hazards computed anew. All of it runs in the learning process, at low
priority, in at most 5 % of the time.

{table(["groups", "entry, MB", "write, ms", "read and check, ms", "merge of 8, ms"], merged)}

## A new replica

Mean absolute error of first answers of `survival`, nothing learned meanwhile: {nothing:.0f} tokens
from nothing, {known:.0f} with what three replicas have learned.

## 100 million rows, on paper

Not run. `survival`, measured above: {1e6 * per_row:.0f} µs of a core for each row, so
{cores_h:.1f} core hours in {parts:,} tasks of {PART_ROWS:,} rows ({PART_ROWS * per_row:.0f} s
each), {cores_h / CORES * 60:.0f} minutes on {CORES} cores, and reading twice: once for the
outlines, once for the fit. The results are {parts:,} entries of {size / 1e6:.1f} MB here (at most
{float(merged[-1][1]):.0f} MB with many clients), merged sixteen at a time where `train` runs:
{parts * each_s / 60:.0f} minutes at {merged[-1][0]} groups. The calibration replays 6,000 rows, as
in one fit. Counts are float32, exact up to 16.7 million in one bin of one group.
"""


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--later", type=int, default=500)
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args(argv)
    single_thread()
    frame, later = drawn(args.rows, 1), drawn(args.later, 2)
    compared, cost = against_one_fit(frame, later)
    found = compared, cost, merges(frame), starts(frame, later)
    text = page(args, found)
    print(text)
    write_page(args.output, text)


if __name__ == "__main__":
    main()
