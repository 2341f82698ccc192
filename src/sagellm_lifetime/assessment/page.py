"""The verdict as one HTML page, which needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Final

from sagellm_lifetime.assessment.charts import legend, line_chart
from sagellm_lifetime.assessment.replay_part import ReplayPart
from sagellm_lifetime.assessment.tables import LABELS, capacity_rows, load_rows
from sagellm_lifetime.assessment.verdict import Verdict
from sagellm_lifetime.assessment.words import advises, rate_words
from sagellm_lifetime.core.atomic import write_atomically

HEADINGS: Final = (
    "load",
    "mean s",
    "p50 s",
    "p99 s",
    "first token s",
    "longest wait s",
    "within",
    "queue",
)


def write_page(path: Path | str, verdict: Verdict, program: str = "sagellm-lifetime") -> Path:
    """Write the page, whole or not at all; return its path."""
    target = Path(path)
    write_atomically(target, page(verdict, program).encode())
    return target


def page(verdict: Verdict, program: str = "sagellm-lifetime") -> str:
    """Return the HTML of a verdict; ``program`` is the name of the commands in it."""
    answer, *rest = verdict.says()
    replay = verdict.replay
    body = [
        f"<h1>{escape(verdict.source)}: {verdict.rows:,} requests</h1>",
        f'<p class="answer">{escape(answer)}</p>',
    ]
    if replay is not None:
        count = len(verdict.says_of_loads())
        body += [f"<p>{escape(text)}</p>" for text in rest[:count]]
        rest = rest[count:]
        body += _replayed(replay, verdict.objective.share)
    body.append("<h2>The predictor</h2>")
    body += [f"<p>{escape(text)}</p>" for text in rest[:1]]
    body.append(_errors(verdict))
    if rest[1:]:
        body.append("<h2>How it was measured</h2>")
        body += [f'<p class="soft">{escape(text)}</p>' for text in rest[1:]]
    heading = "Switch it on, in shadow first" if advises(replay) else "What to switch on"
    body.append(f"<h2>{heading}</h2>")
    body.append(f"<pre>{escape(chr(10).join(verdict.commands(program)))}</pre>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>Verdict on {escape(verdict.source)}</title><style>{_style()}</style></head>\n"
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def _style() -> str:
    """Return the style sheet, for a light and a dark screen and for print."""
    return (files("sagellm_lifetime.assessment") / "page.css").read_text(encoding="utf-8")


def _replayed(replay: ReplayPart, share: float) -> list[str]:
    """Return the charts and tables of a replay."""
    names = [LABELS[name] for name in replay.loads[0].figures]
    body = []
    if len(replay.loads) > 1:
        for key, label, level, factor in (
            ("within", "share within the times of the objective, %", 100 * share, 100.0),
            ("mean_s", "mean latency, s", None, 1.0),
            ("ttft_s", "mean time to the first token, s", None, 1.0),
        ):
            lines = {}
            for name in replay.loads[0].figures:
                ranges = [(load.multiple, load.range(name, key)) for load in replay.loads]
                lines[LABELS[name]] = [
                    (at, factor * r.middle, factor * r.low, factor * r.high) for at, r in ranges
                ]
            own = "the log's load" if replay.rate is not None else rate_words(replay.unit)
            chart = line_chart(lines, x_label=f"multiple of {own}", y_label=label, level=level)
            body.append(
                f"<figure><figcaption>{escape(label.capitalize())}</figcaption>{chart}"
                f"{legend(names)}</figure>"
            )
    body.append("<h2>How much load is served within the objective</h2>")
    between = ["range over windows"] if replay.windows > 1 else []
    head = ["", "requests/s", *between, "multiple of the load 1 x"]
    body.append(_table(head, capacity_rows(replay)))
    body.append("<h2>Every load</h2>")
    body.append(_table(HEADINGS, load_rows(replay)))
    body.append(
        f"<small>Simulated seconds{', medians over the windows' if replay.windows > 1 else ''}; "
        "ramp and drain left out. Where the queue grows, all of it gets worse for as long as the "
        "load lasts.</small>"
    )
    return body


def _errors(verdict: Verdict) -> str:
    choice = verdict.predictor
    rows: list[list[str] | None] = [[choice.name, f"{choice.mae:,.1f}"]]
    rows += [[f"{name} (baseline)", f"{mae:,.1f}"] for name, mae in choice.baselines.items()]
    return _table(("on the test part", "mean absolute error, tokens"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str] | None]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = [
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
        if row is not None
    ]
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
