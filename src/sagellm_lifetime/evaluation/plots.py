"""Draw the plots of a report; matplotlib is imported with the first plot, without pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sagellm_lifetime.evaluation import metrics
from sagellm_lifetime.evaluation.point_forecasts import Forecast, cdf
from sagellm_lifetime.evaluation.points import Points
from sagellm_lifetime.evaluation.protocol import Evaluation
from sagellm_lifetime.evaluation.rivals.kaplan_meier import kaplan_meier
from sagellm_lifetime.evaluation.scoring import confidence_hits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of predictors, safe for colour-blind readers (Okabe & Ito); rivals are grey."""
_RIVALS: Final = (":", "--", "-.", (0, (5, 1)))
_GREY: Final = "#777777"
_SAMPLE: Final = 1500


def error_by_age(evaluations: Sequence[Evaluation]) -> Figure:
    """Draw the MAE of all predictors and rivals at admission and at each age."""
    figure, (axes,) = _figure(1)
    ages = _ages(evaluations[0])
    for name, scores, style in _series(evaluations):
        axes.plot(
            range(len(ages)), [scores.get(age, {}).get("mae") for age in ages], label=name, **style
        )
    _age_axis(axes, ages)
    axes.set_yscale("log")
    _set_plain_labels(axes.yaxis)
    axes.yaxis.set_major_locator(_one_two_five())
    axes.set_ylabel("mean absolute error (tokens)")
    return _with_legend(figure, axes)


def coverage_by_age(evaluations: Sequence[Evaluation]) -> Figure:
    """Draw the coverage of the 80 % and the 90 % interval at each age."""
    figure, panels = _figure(2, sharey=True)
    ages = _ages(evaluations[0])
    for axes, level in zip(panels, (80, 90), strict=True):
        axes.axhline(level / 100, color="black", linestyle=":", linewidth=1)
        for name, scores, style in _series(evaluations):
            share = [scores.get(age, {}).get(f"coverage_{level}") for age in ages]
            if any(value is not None for value in share):
                values = [np.nan if value is None else value for value in share]
                axes.plot(range(len(ages)), values, label=name, **style)
        _age_axis(axes, ages)
        axes.set_title(f"{level} % interval", fontsize=10)
    panels[0].set_ylabel("share of sequences inside")
    low, _ = panels[0].get_ylim()
    panels[0].set_ylim(min(low, 0.6), 1.0)
    return _with_legend(figure, panels[-1])


def reliability(evaluations: Sequence[Evaluation]) -> Figure:
    """Draw stated confidence against the share that was within 10 %, over all steps."""
    figure, (axes,) = _figure(1)
    axes.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
    for evaluation, colour in zip(evaluations, _colours(evaluations), strict=True):
        points, forecast = evaluation.points, evaluation.forecasts[evaluation.name]
        if forecast.confidence is None:
            continue
        at, hits, weight = confidence_hits(points, forecast, points.groups()["steps"])
        stated, hits_in, share = metrics.reliability(forecast.confidence[at], hits, weight)
        seen = share > 0.002
        axes.plot(stated[seen], hits_in[seen], color=colour, linewidth=1.2, label=evaluation.name)
        axes.scatter(stated[seen], hits_in[seen], s=400 * share[seen] + 6, color=colour, alpha=0.6)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("stated confidence")
    axes.set_ylabel("share within 10 % of the total")
    return _with_legend(figure, axes)


def survival(evaluations: Sequence[Evaluation]) -> Figure:
    """Draw mean predicted survival against Kaplan-Meier, at admission and at a later age."""
    first = evaluations[0]
    groups = first.points.groups()
    later = [age for age in ("256", "128", "64", "32", "16") if age in groups][:1]
    figure, panels = _figure(1 + len(later), sharey=True)
    for axes, group in zip(panels, ["admission", *later], strict=True):
        index = groups[group]
        left = first.points.remaining[index]
        curve = kaplan_meier(left, first.points.known[index])
        grid = np.unique(np.rint(np.geomspace(1, max(int(left.max()), 2), 120)))
        axes.step(
            curve.at, curve.survival, where="post", color="black", linewidth=2.2, label="seen"
        )
        for name, forecast, style in _forecasts(evaluations):
            if forecast.quantiles is not None:
                axes.plot(grid, _mean_survival(forecast, index, grid), label=name, **style)
        axes.set_xscale("log")
        axes.set_xlim(1, grid[-1])
        axes.set_xlabel("further tokens n")
        axes.set_title("at admission" if group == "admission" else f"at age {group}", fontsize=10)
        _set_plain_labels(axes.xaxis)
    panels[0].set_ylabel("P(more than n further tokens)")
    panels[0].set_ylim(0, 1.01)
    return _with_legend(figure, panels[-1])


def predicted_actual(evaluations: Sequence[Evaluation]) -> Figure:
    """Draw predicted against actual totals at admission, log axes, one panel per predictor."""
    figure, panels = _figure(len(evaluations), sharey=True, square=True)
    points = evaluations[0].points
    index = _known(points, points.groups()["admission"])
    top = 1.3 * float(points.length[index].max(initial=2))
    line = np.array([1.0, top])
    for axes, evaluation in zip(panels, evaluations, strict=True):
        x, y = (
            points.length[index],
            np.maximum(evaluation.forecasts[evaluation.name].point[index], 1),
        )
        axes.hexbin(
            x, y, gridsize=45, xscale="log", yscale="log", bins="log", mincnt=1, cmap="Blues",
            linewidths=0.1, extent=(0.0, np.log10(top), 0.0, np.log10(top)),
        )  # fmt: skip
        axes.plot(line, line, color="black", linewidth=0.8)
        for factor in (0.9, 1.1):
            axes.plot(line, line * factor, color="black", linewidth=0.6, linestyle="--")
        axes.set_xlim(1, top)
        axes.set_ylim(1, top)
        axes.set_aspect("equal")
        axes.set_title(evaluation.name, fontsize=10)
        axes.set_xlabel("actual total (tokens)")
        _set_plain_labels(axes.xaxis)
        _set_plain_labels(axes.yaxis)
    panels[0].set_ylabel("predicted total (tokens)")
    return figure


def _figure(
    panels: int, *, sharey: bool = False, square: bool = False
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(panels, 3)
    rows = -(-panels // columns)
    width = 3.6 * columns + 0.6 if square else (7.4 if panels == 1 else 10.0)
    figure = Figure(figsize=(width, (3.7 if square else 4.2) * rows), layout="constrained")
    made = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel().tolist()
    for axes in made[panels:]:
        axes.set_visible(False)
    for axes in made[:panels]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, made[:panels]


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    return figure


def _set_plain_labels(axis: Any) -> None:
    """Set the tick labels of an axis to plain numbers: 100, 1,000."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axis.set_minor_formatter(NullFormatter())


def _one_two_five() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1.0, 2.0, 5.0))


def _age_axis(axes: Axes, ages: list[str]) -> None:
    axes.set_xticks(range(len(ages)), ["0" if age == "admission" else age for age in ages])
    axes.set_xlabel("age: tokens generated so far")


def _ages(evaluation: Evaluation) -> list[str]:
    return [name for name in evaluation.scores[evaluation.name] if name != "steps"]


def _colours(evaluations: Sequence[Evaluation]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(evaluations))]


def _styles(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """Return line styles by name: predictors in their order, then the rivals of the first."""
    styles: dict[str, dict[str, Any]] = {
        evaluation.name: {"color": colour, "linewidth": 1.6, "marker": "", "zorder": 3}
        for evaluation, colour in zip(evaluations, _colours(evaluations), strict=True)
    }
    rivals = [name for name in evaluations[0].scores if name not in styles]
    for name, line in zip(rivals, _RIVALS * len(rivals), strict=False):
        styles[name] = {"color": _GREY, "linewidth": 1.3, "linestyle": line}
    return styles


def _series(evaluations: Sequence[Evaluation]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    scores = {n: s for e in reversed(evaluations) for n, s in e.scores.items()}
    return [(name, scores[name], style) for name, style in _styles(evaluations).items()]


def _forecasts(evaluations: Sequence[Evaluation]) -> list[tuple[str, Forecast, dict[str, Any]]]:
    forecasts = {n: f for e in reversed(evaluations) for n, f in e.forecasts.items()}
    return [(name, forecasts[name], style) for name, style in _styles(evaluations).items()]


def _mean_survival(forecast: Forecast, index: np.ndarray, grid: np.ndarray) -> np.ndarray:
    assert forecast.quantiles is not None
    sample = index[:: max(1, len(index) // _SAMPLE)]
    table = forecast.quantiles[sample].astype(np.float64)
    return np.array([1.0 - cdf(table, np.full(len(sample), n)).mean() for n in grid])


def _known(points: Points, index: np.ndarray) -> np.ndarray:
    return index[points.known[index]]
