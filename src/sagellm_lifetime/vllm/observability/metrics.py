"""Prometheus metrics: the statistics of every engine core, read at each scrape.

Prefix ``lifetime_predictor_``, base units, vLLM's labels ``model_name`` and ``engine`` (the engine
core), and none per request. Every counter is there from the start, at 0, and never falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from sagellm_lifetime.vllm.circuit_breaker import FAULTS
from sagellm_lifetime.vllm.engine_state import read_published
from sagellm_lifetime.vllm.published import COMPARED, DONE
from sagellm_lifetime.vllm.settings import MODES
from sagellm_lifetime.vllm.switchback import switchback_of

PREFIX: Final = "lifetime_predictor_"
_COUNTERS: Final = {
    "predictions": ("total_predictions", "Sequences that were predicted."),
    "completions": ("completions", "Predicted sequences that ended by themselves."),
    "censored": ("censored", "Predicted sequences that were capped or aborted."),
    "capped": ("capped", "Of them, those that reached a cap; they are not scored."),
    "unpredicted": ("unpredicted", "Sequences that ended without a prediction."),
    "beam_steps": ("beam_steps", "Steps of beam search, which are no sequences."),
    "lessons_taken": ("lessons_taken", "Completions handed to the learner."),
    "lessons_dropped": ("lessons_dropped", "Of them, too many to wait, or too late."),
    "lessons_lost": ("lessons_lost", "Of them, lost with a learning process that died."),
    "learner_restarts": ("learner_restarts", "Learning processes started anew."),
    "learner_swaps": ("learner_swaps", "Times that what was learned came into use."),
    "fleet_published": ("fleet_published", "Times that this replica wrote what it had learned."),
    "fleet_received": ("fleet_received", "Entries of other replicas that were read."),
    "fleet_refused": ("fleet_refused", "Of them, those that could not be used."),
    "fleet_failures": ("fleet_failures", "Exchanges with the fleet that failed."),
    "steps": ("steps", "Steps of the engine core."),
    "step_seconds": ("step_seconds", "Duration of these steps."),
    "overhead_seconds": ("overhead_seconds", "Of it, spent on predictions and policies."),
    "recorded": ("recorded", "Completions written to the record."),
    "record_lost": ("record_lost", "Completions that could not be written."),
    "record_replaced": ("record_replaced", "Values left out of written completions."),
}
_THIS_RUN: Final = {
    "lessons": ("lessons", "Completions that came into use by predictions."),
    "weights_accepted": ("weights_accepted", "New weights of a network that came into use."),
    "weights_refused": ("weights_refused", "New weights that predicted worse than those in use."),
    "drift_changes": ("drift_changes", "Changes of the workload of a model that were noticed."),
    "drift_returns": ("drift_returns", "Times that a workload of before came back."),
    "drift_trials": ("drift_trials", "Times that a change was suspected."),
}
"""Counts of what is learned, which goes on from an earlier run: from 0 in this one."""
_SUMS: Final = {
    "scored": ("scored", "Predictions compared with the length of what ended by itself."),
    "absolute_error_tokens": ("absolute_error", "Sum of their absolute errors."),
    "squared_error_tokens": ("squared_error", "Sum of their squared errors."),
    "within_10_percent": ("within_10_percent", "Of them within 10 percent of the total length."),
    "confidence": ("confidence", "Sum of their confidences."),
}
_GAUGES: Final = {
    "lessons_in_use": ("lessons", "Completions behind the predictions, earlier runs included."),
    "running_sequences": ("running", "Predicted sequences that have not ended."),
    "lessons_on_the_way": ("lessons_on_the_way", "Lessons that are not in use yet."),
    "fleet_replicas": ("fleet_replicas", "Other replicas whose lessons are in use."),
    "fleet_lessons": ("fleet_lessons", "Lessons of other replicas in use."),
    "record_waiting": ("record_waiting", "Completions that wait to be written to the record."),
    "stats_age_seconds": ("age", "Age of these figures."),
}
_DRIFT_OF_MODEL: Final = {
    "generation": ("drift_generation", "Number of the present generation of a model."),
    "completions": ("drift_completions", "Completions since it became the present one."),
}
_ACT: Final = {
    "act_admissions": ("admissions", "Sequences that were admitted in act."),
    "act_admissions_reordered": (
        "admissions_reordered", "Of them, those that went before one that came earlier."
    ),
    "act_overtaken": ("overtaken", "Sequences that a later one went before in act."),
    "act_overtaken_seconds": ("overtaken_seconds", "Sum of their waits from then on."),
    "act_preemptions": ("preemptions", "Sequences that were preempted in act."),
    "act_preemptions_differing": (
        "preemptions_differing", "Of them, those that vLLM would not have chosen."
    ),
}  # fmt: skip
_OF_MODE: Final = {
    "recomputed_tokens": ("recomputed_tokens", "Tokens computed again after preemptions."),
    "held_back_block_seconds": (
        "held_back_block_seconds",
        "Blocks kept free at admission beyond vLLM's watermark while sequences waited, times "
        "seconds; in shadow, what act would have kept free.",
    ),
}
Values = list[tuple[dict[str, Any], float | None]]
"""Statistics of an engine core, and one figure of them."""
_BREAKER: Final = ("closed", "trial", "open", "stuck")


class LifetimeCollector(Collector):
    """The metrics of all engine cores at one moment.

    Args:
        state: folder of the engine cores' statistics.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._published = read_published(state)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; a figure that an engine core does not have is left out."""
        names = {_name(stats): stats["model_name"] for stats in self._published.engines}
        common = next(iter(names.values()), "")  # of damaged statistics, which name no model
        for family in self._families():
            family.samples = [
                sample._replace(
                    labels={
                        "model_name": names.get(sample.labels["engine"], common), **sample.labels
                    }
                )
                for sample in family.samples
            ]  # fmt: skip
            yield family

    def _families(self) -> Iterator[Metric]:
        engines = self._published.engines
        for name, (key, text) in _COUNTERS.items():
            yield _counter(name, text, [(stats, stats.get(key)) for stats in engines])
        for name, (key, text) in _THIS_RUN.items():
            yield _counter(
                name, text, [(stats, stats["this_run"].get(key, 0)) for stats in engines]
            )
        for name, (key, text) in _SUMS.items():
            yield _counter(name, text, [(stats, stats["sums"].get(key)) for stats in engines])
        for name, (key, text) in _GAUGES.items():
            yield _gauge(name, text, [(stats, stats.get(key)) for stats in engines])
        # Left out for an engine core without learning, as a 0 means a missing learner.
        yield _gauge(
            "learner_running",
            "1 while a process is there that learns.",
            [(stats, float(stats["learner_running"])) for stats in engines if stats["learning"]],
        )
        yield _states("mode", "1 for the mode it is in.", MODES,
                      [(stats, stats["mode"]) for stats in engines])  # fmt: skip
        yield _states("breaker_state", "1 for the state of the circuit breaker.", _BREAKER,
                      [(stats, stats["breaker"]["state"]) for stats in engines])  # fmt: skip
        yield from _by_kind(engines)
        yield from _of_act(engines)
        yield from _switchback(switchback_of(self._state, self._published))
        yield from _outlook(engines)
        yield from _drift(engines)
        info = InfoMetricFamily(PREFIX + "build", "What predicts.", labels=["engine"])
        for stats in engines:
            labels = {"predictor": str(stats["predictor"]), "policy": stats["policy"]}
            info.add_metric([_name(stats)], labels)
        yield info
        unreadable = GaugeMetricFamily(
            PREFIX + "stats_unreadable", "1 where the statistics of an engine core are damaged.",
            labels=["engine"],
        )  # fmt: skip
        for text in self._published.unreadable:
            unreadable.add_metric([text.partition(":")[0].removeprefix("engine-")], 1.0)
        yield unreadable


def exposition(state: Path, names: Sequence[str], *, openmetrics: bool) -> bytes:
    """Return the metrics as text, in the format of Prometheus or in OpenMetrics.

    Args:
        state: folder of the engine cores' statistics.
        names: of the wanted samples; empty for all.
        openmetrics: True for OpenMetrics, whose last line is ``# EOF``.
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.openmetrics import exposition as openmetrics_exposition

    families = list(LifetimeCollector(state).collect())
    if names:
        for family in families:
            family.samples = [sample for sample in family.samples if sample.name in names]
        families = [family for family in families if family.samples]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families))
    text: bytes = (openmetrics_exposition.generate_latest if openmetrics else generate_latest)(
        registry
    )
    return text


class _Collected(Collector):
    """A collector of metrics that are collected already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        return self._families


def _name(stats: dict[str, Any]) -> str:
    return str(stats["engine"])


def _by_kind(engines: list[dict[str, Any]]) -> Iterator[Metric]:
    labels = ["engine", "kind"]
    faults = CounterMetricFamily(
        PREFIX + "faults", "Faults that opened the circuit breaker.", labels=labels
    )
    decisions = CounterMetricFamily(
        PREFIX + "decisions", "Decisions of the engine in shadow mode.", labels=labels
    )
    differing_decisions = CounterMetricFamily(
        PREFIX + "decisions_differing",
        "Of them, those that would have differed; an estimate where not all are compared.",
        labels=labels,
    )
    for stats in engines:
        counts = {**dict.fromkeys(FAULTS, 0), **stats["breaker"]["faults"]}
        for kind, count in counts.items():
            if count is not None:
                faults.add_metric([_name(stats), kind], count)
        for kind in COMPARED:
            count, differing = stats["decisions"][kind]
            decisions.add_metric([_name(stats), kind], count)
            differing_decisions.add_metric([_name(stats), kind], differing)
    yield from (faults, decisions, differing_decisions)


def _of_act(engines: list[dict[str, Any]]) -> Iterator[Metric]:
    """Yield what was decided in act, and the costs by mode."""
    for name, (key, text) in _ACT.items():
        done = [(stats, stats["decisions"].get("act", {}).get(key)) for stats in engines]
        yield _counter(name, text, done)
    longest = [
        (stats, stats["decisions"].get("act", {}).get("longest_overtaken_seconds"))
        for stats in engines
    ]
    yield _gauge("act_longest_overtaken_seconds", "The longest of the waits overtaken.", longest)
    for name, (key, text) in _OF_MODE.items():
        family = CounterMetricFamily(PREFIX + name, text, labels=["engine", "mode"])
        for stats in engines:
            for mode in DONE:
                value = stats["decisions"].get(mode, {}).get(key)
                if value is not None:
                    family.add_metric([_name(stats), mode], value)
        yield family


def _switchback(experiment: dict[str, Any] | None) -> Iterator[Metric]:
    """Yield the switchback of all engine cores together, under the engine ``all``."""
    running = GaugeMetricFamily(
        PREFIX + "switchback_running", "1 while off and act alternate.", labels=["engine"]
    )
    pairs = GaugeMetricFamily(
        PREFIX + "switchback_pairs", "Complete pairs of blocks of a switchback.", labels=["engine"]
    )
    effect = GaugeMetricFamily(
        PREFIX + "switchback_effect",
        "Of a quantity: its mean in off and in act, the difference, and the 95 percent interval.",
        labels=["engine", "quantity", "value"],
    )
    if experiment is not None:
        running.add_metric(["all"], float(experiment["running"]))
        pairs.add_metric(["all"], experiment["pairs"])
        for quantity, found in experiment["effects"].items():
            for value in ("off", "act", "difference", "low", "high"):
                if found[value] is not None:
                    effect.add_metric(["all", quantity, value], found[value])
    yield from (running, pairs, effect)


def _outlook(engines: list[dict[str, Any]]) -> Iterator[Metric]:
    """Yield what the engine cores expect; those without an outlook are left out."""
    found = [(_name(stats), stats["outlook"]) for stats in engines if stats["outlook"]]
    tokens = GaugeMetricFamily(
        PREFIX + "outlook_tokens", "Tokens that present sequences will still generate.",
        labels=["engine", "state", "value"],
    )  # fmt: skip
    peak = GaugeMetricFamily(
        PREFIX + "outlook_peak_blocks", "Most KV blocks that the running sequences will need.",
        labels=["engine", "value"],
    )  # fmt: skip
    done = GaugeMetricFamily(
        PREFIX + "outlook_done_seconds", "Time until all that runs now is done.",
        labels=["engine", "value"],
    )  # fmt: skip
    place = GaugeMetricFamily(
        PREFIX + "outlook_place_probability",
        "Probability that a newcomer behind the queue can run within so many seconds.",
        labels=["engine", "seconds"],
    )
    retry = GaugeMetricFamily(
        PREFIX + "outlook_retry_after_seconds",
        "Whole seconds after which this probability is 0.9.", labels=["engine"],
    )  # fmt: skip
    for name, outlook in found:
        for state in ("running", "waiting"):
            for value, number in outlook[f"{state}_tokens"].items():
                tokens.add_metric([name, state, value], number)
        for family, part in ((peak, "peak_blocks"), (done, "done_s"), (place, "place_within")):
            for value, number in outlook[part].items():
                family.add_metric([name, value], number)
        retry.add_metric([name], outlook["retry_after_s"])
    yield from (tokens, peak, done, place, retry)


def _drift(engines: list[dict[str, Any]]) -> Iterator[Metric]:
    for key, (name, text) in _DRIFT_OF_MODEL.items():
        family = GaugeMetricFamily(PREFIX + name, text, labels=["engine", "model"])
        for stats in engines:
            for model, found in stats["drift"].get("models", {}).items():
                family.add_metric([_name(stats), model], found[key])
        yield family


def _counter(name: str, text: str, values: Values) -> Metric:
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=["engine"]), values)


def _gauge(name: str, text: str, values: Values) -> Metric:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=["engine"]), values)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Values) -> Metric:
    for stats, value in values:
        if value is not None:
            family.add_metric([_name(stats)], value)
    return family


def _states(
    name: str, text: str, states: tuple[str, ...], now: list[tuple[dict[str, Any], str]]
) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=["engine", "state"])
    for stats, current in now:
        for state in states:
            family.add_metric([_name(stats), state], float(state == current))
    return family
