"""Write ``docs/lab/before-after.md``: quality, decisions and latency before and after issue 18.

    python dev/before_after.py [--before c4bf5eb] [--output docs/lab/before-after.md]

Nothing is measured here: the figures are read from the pages of ``docs/lab`` and from their
predecessors in an older commit. What got worse by more than noise is named.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "c4bf5eb"
PREDICTORS = ("survival", "lstm", "transformer")
QUALITY = ("admission MAE", "steps MAE", "steps CRPS", "adm. cov. 90", "steps cov. 90")
CALLS = {
    "first prediction": r"(?i)^first prediction",
    "later step": r"(?i)^(a )?later step",
    "step with a new chunk": r"(?i)^(a )?step with a new chunk",
    "`predict_batch`, each": r"predict_batch",
    "array form, each": r"(?i)^array form",
    "`update`": r"^`update`",
}
"""Names of the timed calls, and the beginning of their rows in both pages."""
ERROR_NOISE, COVERAGE_NOISE, POINTS_NOISE, TIME_NOISE = 0.01, 1.0, 2.0, 0.10
"""Differences below these are not called worse: relative for errors and times, percentage points
for coverage (of the distance from 90) and for decisions."""

Table = list[dict[str, str]]
PAGE = """# Before and after the redesign

{date}. {answer}

    python dev/before_after.py

Nothing is measured here: both columns are read from pages that benchmarks have written
([accuracy](results.md), [replays](replay.md), [latency](latency.md); before: commit {before}). Each
cell: before → after.

## What got worse

Worse means: an error higher by more than {error:.0%}, coverage further from 90 % by more than
{coverage:g} point, a change of latency higher by more than {points:g} points, a call longer by more
than {time:.0%}.

{worse}

## Quality

Tokens, and per cent of the lengths inside the 90 % interval:

{quality}

## Decisions

`lifetime` against first come, first served with the watermark tuned for the setting:

{decisions}

## Latency

Median µs of processor time per call, one thread; the runs were on different days, on a machine that
other work shares:

{latency}
"""


def page_at(commit: str, *paths: str) -> str:
    """Return the first of ``paths`` that exists at a commit; the working tree's for ''."""
    for path in paths:
        if not commit:
            return (ROOT / path).read_text(encoding="utf-8")
        shown = subprocess.run(
            ["git", "show", f"{commit}:{path}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if shown.returncode == 0:
            return shown.stdout
    raise SystemExit(f"none of {', '.join(paths)} at {commit}")


def tables(text: str) -> Iterator[tuple[str, Table]]:
    """Yield the tables of a page with the heading above each, without ``*`` and code marks."""
    heading, rows = "", []
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("|"):
            rows.append([cell.strip(" *") for cell in line.strip("|").split("|")])
        elif rows:
            header, _, *body = rows
            yield heading, [dict(zip(header, row, strict=True)) for row in body]
            rows = []


def number(cell: str | None) -> float | None:
    """Return the first number of a cell; None if there is none."""
    found = re.search(r"[-+]?\d[\d,]*\.?\d*", cell or "")
    return float(found[0].replace(",", "")) if found else None


def arrow(before: float | None, after: float | None, form: str) -> str:
    """Return both numbers of a cell."""
    return " → ".join("–" if value is None else format(value, form) for value in (before, after))


def drawn(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quality(before: str, after: str, worse: list[str]) -> str:
    """Return the table of errors and coverage, and add what got worse."""

    def scores(text: str) -> dict[tuple[str, str, str], dict[str, float | None]]:
        return {
            (heading, row["predictor"], row["mode"]): {name: number(row[name]) for name in QUALITY}
            for heading, rows in tables(text)
            if rows and set(QUALITY) <= set(rows[0])
            for row in rows
            if row["predictor"] in PREDICTORS
        }

    old, new, rows = scores(before), scores(after), []
    for key in new:
        if key not in old:
            continue
        rows.append([", ".join(key), *(arrow(old[key][c], new[key][c], ",.1f") for c in QUALITY)])
        for name in QUALITY:
            was, now = old[key][name], new[key][name]
            if was is None or now is None:
                continue
            is_worse = (
                abs(now - 90) > abs(was - 90) + COVERAGE_NOISE
                if "cov." in name
                else now > was * (1 + ERROR_NOISE)
            )
            if is_worse:
                worse.append(f"{name} of {', '.join(key)} ({arrow(was, now, ',.1f')})")
    return drawn(["data, predictor, mode", *QUALITY], rows)


def decisions(before: str, after: str, worse: list[str]) -> str:
    """Return the table of mean and p99 against the watermark, and add what got worse."""

    def changes(text: str) -> dict[str, tuple[float | None, float | None]]:
        found = next(rows for heading, rows in tables(text) if "tuned watermark" in heading)
        return {row["setting"]: (number(row["mean"]), number(row["p99"])) for row in found}

    def plain(setting: str) -> str:
        return setting.partition(" (")[0]

    old = {plain(name): values for name, values in changes(before).items()}
    rows = []
    for setting, now in changes(after).items():
        was = old.get(plain(setting), (None, None))
        cells = [arrow(one, other, "+.1f") for one, other in zip(was, now, strict=True)]
        rows.append([setting, *cells])
        for name, one, other, cell in zip(("mean", "p99"), was, now, cells, strict=True):
            if one is not None and other is not None and other > one + POINTS_NOISE:
                worse.append(f"{name} on {setting} ({cell} %)")
    return drawn(["setting", "mean latency, %", "p99, %"], rows)


def latency(before: str, after: str, worse: list[str]) -> str:
    """Return the table of times per call, and add what got worse."""

    def times(text: str) -> dict[tuple[str, str], float | None]:
        found = next(
            rows for _, rows in tables(text) if rows and {"survival", "lstm"} <= set(rows[0])
        )
        label = next(iter(found[0]))
        return {
            (call, name): number(row.get(name))
            for call, pattern in CALLS.items()
            for row in found
            if re.search(pattern, row[label])
            for name in PREDICTORS
        }

    def import_seconds(text: str) -> float | None:
        in_table = re.search(r"^\| import sagellm_lifetime +\| +([\d.]+)", text, re.M)
        in_words = re.search(r"`import sagellm_lifetime` takes ([\d.]+) s", text)
        found = in_table or in_words
        return float(found[1]) if found else None

    old, new, rows = times(before), times(after), []
    for call in CALLS:
        pairs = [(old.get((call, name)), new.get((call, name))) for name in PREDICTORS]
        cells = [arrow(*pair, ",.1f") for pair in pairs]
        rows.append([call, *cells])
        for name, (was, now), cell in zip(PREDICTORS, pairs, cells, strict=True):
            if was is not None and now is not None and now > was * (1 + TIME_NOISE):
                worse.append(f"{call} of `{name}` ({cell} µs)")
    was, now = import_seconds(before), import_seconds(after)
    rows.append(["`import sagellm_lifetime`, s", arrow(was, now, ".2f"), "", ""])
    if was is not None and now is not None and now > was * (1 + TIME_NOISE):
        worse.append(f"`import sagellm_lifetime` ({arrow(was, now, '.2f')} s)")
    return drawn(["call", *PREDICTORS], rows)


def section(before: str) -> str:
    """Return the section on latency of a README, or the whole page of today."""
    found = re.search(r"<!-- latency -->(.*?)<!-- /latency -->", before, re.S)
    return found[1] if found else before


def main() -> None:
    """Read both sets of pages and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "lab" / "before-after.md", metavar="PAGE"
    )
    options = parser.parse_args()
    commit = options.before
    found: dict[str, list[str]] = {"Quality": [], "Decisions": [], "Latency": []}
    parts = {
        "quality": quality(
            page_at(commit, "docs/lab/results.md", "docs/results.md"),
            page_at("", "docs/lab/results.md"),
            found["Quality"],
        ),
        "decisions": decisions(
            page_at(commit, "docs/lab/replay.md", "docs/replay.md"),
            page_at("", "docs/lab/replay.md"),
            found["Decisions"],
        ),
        "latency": latency(
            section(page_at(commit, "docs/lab/latency.md", "README.md")),
            page_at("", "docs/lab/latency.md"),
            found["Latency"],
        ),
    }
    counts = {name: len(re.findall("→", parts[name.lower()])) for name in found}
    answer = ", ".join(
        f"{len(items)} of {counts[name]} figures of {name.lower()}" for name, items in found.items()
    )
    listed = [f"- **{name}**: {'; '.join(items) or 'nothing'}." for name, items in found.items()]
    text = PAGE.format(
        date=date.today(),
        answer=f"Between two commits, {answer} got worse by more than noise, named below.",
        worse="\n".join(listed),
        before=commit,
        error=ERROR_NOISE,
        coverage=COVERAGE_NOISE,
        points=POINTS_NOISE,
        time=TIME_NOISE,
        **parts,
    )
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
