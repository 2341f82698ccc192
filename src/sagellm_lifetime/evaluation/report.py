"""Write a report: tables in ``report.md``, numbers in ``report.json``, and plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sagellm_lifetime.core.atomic import replacing, write_atomically
from sagellm_lifetime.core.extras import require_plots
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.evaluation.protocol import Evaluation
from sagellm_lifetime.evaluation.scoring import Score
from sagellm_lifetime.evaluation.verdict import verdict

_COLUMNS: Final[tuple[tuple[str, str, Callable[[float], str]], ...]] = (
    ("mae", "MAE, tokens", lambda v: f"{v:,.1f}"),
    ("within_10pct", "within 10 %", lambda v: f"{v:.1%}"),
    ("within_10_tokens", "within 10 tokens", lambda v: f"{v:.1%}"),
    ("kendall_tau", "Kendall τ", lambda v: f"{v:.3f}"),
    ("c_index", "C-index", lambda v: f"{v:.3f}"),
    ("crps", "CRPS, tokens", lambda v: f"{v:,.1f}"),
    ("coverage_80", "80 % covers", lambda v: f"{v:.1%}"),
    ("coverage_90", "90 % covers", lambda v: f"{v:.1%}"),
    ("confidence_ece", "confidence ECE", lambda v: f"{v:.3f}"),
    ("skill", "skill", lambda v: f"{v:.2f}"),
)
_PLOTS: Final = (
    (
        "error_by_age",
        "Error by age",
        "Mean absolute error over the sequences still alive at each age.",
    ),
    (
        "survival",
        "Survival",
        "Mean predicted survival against what happened (Kaplan–Meier). A sound predictor lies on "
        "the black line.",
    ),
    (
        "coverage_by_age",
        "Coverage of the intervals",
        "Share of sequences inside the 80 % and 90 % intervals; the dotted lines are the promise.",
    ),
    (
        "reliability",
        "Reliability of the confidence",
        "Over all steps: how often the total was within 10 % where this confidence was stated. "
        "The area of a point is the share of the predictions.",
    ),
    (
        "predicted_actual",
        "Predicted against actual",
        "Total lengths at admission, of the sequences whose end was seen. The dashed lines are "
        "± 10 %.",
    ),
)
PAGE: Final = "report.md"
_RECORDS: Final = "report.json"
FILES: Final = (PAGE, _RECORDS, *(f"{name}.png" for name, _, _ in _PLOTS))
"""Names of the files in the folder of a report."""


def write_report(
    folder: Path | str,
    evaluations: Sequence[Evaluation],
    *,
    title: str = "Lifetime predictors",
    is_test: bool = True,
) -> Path:
    """Write ``report.md``, ``report.json`` and the plots; return the path of ``report.md``.

    Args:
        evaluations: one per predictor, made with the same frame, seed and rivals; the rivals are
            taken from the first.
        title: of the page.
        is_test: False where the predictor was trained on the scored rows: no verdict is written.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from sagellm_lifetime.evaluation import plots

    if not evaluations:
        raise ValueError("a report needs at least one evaluation")
    require_plots()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, _, _ in _PLOTS:
        figure = getattr(plots, name)(evaluations)
        with replacing(target / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=130)
    records = [evaluation.to_dict() for evaluation in evaluations]
    write_atomically(target / _RECORDS, f"{json.dumps(records, indent=2)}\n".encode())
    page = target / PAGE
    write_atomically(page, markdown(evaluations, title=title, is_test=is_test).encode())
    return page


def markdown(evaluations: Sequence[Evaluation], *, title: str, is_test: bool = True) -> str:
    """Return the text of ``report.md``; arguments as of :func:`write_report`."""
    first = evaluations[0]
    lines = [f"# {title}", "", _how(first), ""]
    ahead = verdict(evaluations) if is_test else None
    if not is_test:
        lines += ["**Trained on these rows: no test on unseen ones, and no verdict.**", ""]
    elif ahead is not None:
        lines += [f"**Over all steps:** {ahead.says()} (± is a 95 % interval.)", ""]
    scores = all_scores(evaluations)
    for group, heading in _groups(first):
        table = score_table({n: s[group] for n, s in scores.items() if group in s}, first)
        lines += [f"## {heading}", "", *table, ""]
    for name, heading, caption in _PLOTS:
        lines += [f"## {heading}", "", caption, "", f"![{heading}]({name}.png)", ""]
    return "\n".join(lines)


def all_scores(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Score]]:
    """Return scores by name: the predictors in their order, then the rivals."""
    scores = {e.name: e.scores[e.name] for e in evaluations}
    rivals = {n: s for n, s in evaluations[0].scores.items() if n not in scores}
    return scores | rivals


def score_table(rows: dict[str, Score], evaluation: Evaluation) -> list[str]:
    """Return the lines of a Markdown table; the least MAE is bold, undefined metrics are a dash."""
    columns = [c for c in _COLUMNS if any(row.get(c[0]) is not None for row in rows.values())]
    lines = [
        "| | " + " | ".join(heading for _, heading, _ in columns) + " |",
        "|---" + "|---:" * len(columns) + "|",
    ]
    best = min((row["mae"] for row in rows.values() if row["mae"] is not None), default=None)
    for name, row in rows.items():
        cells = []
        for key, _, show in columns:
            value = row.get(key)
            text = "–" if value is None else show(value)
            cells.append(f"**{text}**" if key == "mae" and value == best else text)
        label = name if name not in evaluation.scores or name == evaluation.name else f"*{name}*"
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def _groups(evaluation: Evaluation) -> list[tuple[str, str]]:
    ages = [name for name in evaluation.scores[evaluation.name] if name.isdigit()]
    named = [("admission", "At admission"), ("steps", "Over all steps")]
    return named + [(age, f"At age {age}") for age in ages if age in {"64", "256", "1024"}]


def _how(evaluation: Evaluation) -> str:
    when = {
        "frozen": "The predictors were trained before and learned nothing here.",
        "online": "Prequential: each sequence was predicted at its arrival, with what had finished "
        "by then, and learned at its finish.",
    }[evaluation.mode]
    cut = "".join(f"{line} " for line in evaluation.points.cuts.says())
    text = (
        f"{counted(evaluation.rows, 'sequence')}. {cut}{when} *Admission*: age 0. *Age n*: "
        "sequences still alive after n tokens. *Steps*: every generated token equally likely. Ages "
        "never depend on the true length. Rivals (in italics) were fitted on the same rows."
    )
    floor = evaluation.floor
    if floor is not None and floor["mae"] is not None:
        rows = counted(int(floor["n"] or 0), "row")
        text += (
            f" Noise floor, from repeated samples of the same prompts: MAE {floor['mae']:.1f} "
            f"tokens over {rows}, {floor['within_10pct'] or 0:.1%} within 10 %; over the same rows "
            "skill is 0 for the constant and 1 at the floor."
        )
    return text
