"""Prometheus metrics: the statistics of every engine core, read when they are asked for.

Prefix ``lifetime_predictor_``, base units, one label ``engine`` for the engine core and none per
request.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from sagellm_lifetime.engines.vllm.settings import MODES
from sagellm_lifetime.engines.vllm.state import read_stats

PREFIX: Final = "lifetime_predictor_"
_COUNTERS: Final = {
    "predictions": ("total_predictions", "Sequences that were predicted."),
    "completions": ("completions", "Predicted sequences that ended by themselves."),
    "censored": ("censored", "Predicted sequences that were capped or aborted."),
    "capped": ("capped", "Of them, those that reached a cap; they are not scored."),
    "unpredicted": ("unpredicted", "Sequences that ended without a prediction."),
    "lessons": ("lessons", "Completions that predictions stand on, earlier runs included."),
    "lessons_taken": ("lessons_taken", "Completions handed to the learner."),
    "lessons_dropped": ("lessons_dropped", "Of them, too many to wait, or too late."),
    "lessons_lost": ("lessons_lost", "Of them, lost with a learning process that died."),
    "learner_restarts": ("learner_restarts", "Learning processes started anew."),
    "learner_swaps": ("learner_swaps", "Times that what was learned came into use."),
    "steps": ("steps", "Steps of the engine core."),
    "step_seconds": ("step_seconds", "Duration of these steps."),
    "overhead_seconds": ("overhead_seconds", "Of it, spent on predictions and policies."),
    "recorded": ("recorded", "Completions written to the record."),
    "record_lost": ("record_lost", "Completions that could not be written."),
}
_SUMS: Final = {
    "scored": ("scored", "Predictions compared with the length of what ended by itself."),
    "absolute_error_tokens": ("absolute_error", "Sum of their absolute errors."),
    "squared_error_tokens": ("squared_error", "Sum of their squared errors."),
    "within_10_percent": ("within_10_percent", "Of them within 10 percent of the total length."),
    "confidence": ("confidence", "Sum of their confidences."),
}
_BREAKER: Final = ("closed", "trial", "open", "stuck")


class LifetimeCollector(Collector):
    """Registers once per API server process.

    Args:
        state: folder the engine cores publish to.
    """

    def __init__(self, state: Path) -> None:
        self._state = state

    def describe(self) -> list[Metric]:
        """Nothing: a registry must not read files to register a collector."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        engines = read_stats(self._state)
        names = [str(stats["engine"]) for stats in engines]
        for name, (key, text) in _COUNTERS.items():
            yield _counter(name, text, names, [stats[key] for stats in engines])
        for name, (key, text) in _SUMS.items():
            yield _counter(name, text, names, [stats["sums"][key] for stats in engines])
        yield _gauge("running_sequences", "Predicted sequences that have not ended.", names,
                     [stats["running"] for stats in engines])  # fmt: skip
        yield _gauge("lessons_on_the_way", "Lessons that are not in use yet.", names,
                     [stats["lessons_on_the_way"] for stats in engines])  # fmt: skip
        # None for an engine core that is not to learn: a 0 is a learner that is not there.
        learning = [stats for stats in engines if stats["learning"]]
        yield _gauge("learner_running", "1 while a process is there that learns.",
                     [str(stats["engine"]) for stats in learning],
                     [float(stats["learner_running"]) for stats in learning])  # fmt: skip
        yield _gauge("stats_age_seconds", "Age of these figures.", names,
                     [stats["age"] for stats in engines])  # fmt: skip
        yield _states("mode", "1 for the mode it is in.", names, MODES,
                      [stats["mode"] for stats in engines])  # fmt: skip
        yield _states("breaker_state", "1 for the state of the circuit breaker.", names, _BREAKER,
                      [stats["breaker"]["state"] for stats in engines])  # fmt: skip
        yield from _kinds(names, engines)
        info = InfoMetricFamily(PREFIX + "build", "What predicts.", labels=["engine"])
        for name, stats in zip(names, engines, strict=True):
            said = {"predictor": str(stats["predictor"]), "policy": str(stats["policy"])}
            info.add_metric([name], said)
        yield info


def _kinds(names: list[str], engines: list[dict[str, Any]]) -> Iterator[Metric]:
    labels = ["engine", "kind"]
    faults = CounterMetricFamily(
        PREFIX + "faults", "Faults that opened the circuit breaker.", labels=labels
    )
    made = CounterMetricFamily(
        PREFIX + "decisions", "Decisions of the engine in shadow mode.", labels=labels
    )
    others = CounterMetricFamily(
        PREFIX + "decisions_differing",
        "Of them, those that would have differed; an estimate where not all are compared.",
        labels=labels,
    )
    for name, stats in zip(names, engines, strict=True):
        for kind, count in stats["breaker"]["faults"].items():
            faults.add_metric([name, kind], count)
        for kind, (count, differing) in stats["decisions"].items():
            made.add_metric([name, kind], count)
            others.add_metric([name, kind], differing)
    yield from (faults, made, others)


def _counter(name: str, text: str, engines: list[str], values: list[float]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=["engine"])
    for engine, value in zip(engines, values, strict=True):
        family.add_metric([engine], value)
    return family


def _gauge(name: str, text: str, engines: list[str], values: list[float]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=["engine"])
    for engine, value in zip(engines, values, strict=True):
        family.add_metric([engine], value)
    return family


def _states(
    name: str, text: str, engines: list[str], states: tuple[str, ...], now: list[str]
) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=["engine", "state"])
    for engine, is_in in zip(engines, now, strict=True):
        for state in states:
            family.add_metric([engine, state], float(state == is_in))
    return family
