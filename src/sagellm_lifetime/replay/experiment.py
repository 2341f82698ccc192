"""Replay a history through vLLM's own scheduler and compare policies.

>>> settings = ExperimentSettings(policies=("fcfs", "lifetime"), load="overload")
>>> experiment = Experiment(Dataset.read("log.jsonl"), settings)  # doctest: +SKIP
>>> experiment.run().figures()["lifetime"]["mean_latency_s"]  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Final

import polars as pl

from sagellm_lifetime.core.errors import HistoryError, RequestError, UnknownNameError
from sagellm_lifetime.core.values import as_level
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.evaluation.dataset import Dataset
from sagellm_lifetime.evaluation.study import Progress, labelled
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.registry import DEFAULT, create_predictor, predictor_class
from sagellm_lifetime.replay.compare import Replayed
from sagellm_lifetime.replay.compare import replay as run_policy
from sagellm_lifetime.replay.cost import cost_model
from sagellm_lifetime.replay.engine import EngineSettings, check_fits
from sagellm_lifetime.replay.hash_blocks import HashBlocks, hash_blocks
from sagellm_lifetime.replay.load import LOADS, Calibrated, at_load
from sagellm_lifetime.replay.metrics import metrics
from sagellm_lifetime.replay.planned import planned_policies
from sagellm_lifetime.replay.policies import POLICIES, ReplayPolicy
from sagellm_lifetime.replay.report import Comparison
from sagellm_lifetime.replay.trace import TraceRequest, at_once, make_trace, sample
from sagellm_lifetime.vllm.compat.interface import check_interface
from sagellm_lifetime.vllm.compat.versions import version

OFFLINE: Final = "offline"
"""The load at which all requests arrive at the start."""
RATES: Final = (1e-6, 1e6)
"""Lowest and highest possible load, requests a second."""


@dataclass(frozen=True)
class ExperimentSettings:
    """The settings of an experiment.

    Attributes:
        policies: names of policies; :func:`known_policies` returns them all.
        load: ``relaxed``, ``knee``, ``overload``, a number (requests a second) or ``offline``.
        blocks: KV blocks of 16 tokens in the pool.
        max_model_len: tokens of prompt and output together that the engine accepts; ``None`` for
            the largest possible size of the longest request.
        max_requests: largest number of requests of one seed, neighbours in the history.
        seeds: number of draws of requests; figures are medians.
        predictor: name of the predictor that is trained and used.
        min_confidence: confidence below which vLLM's own rule decides, 0 to 1.
        cost_model: name of the model of a step's duration.
        hash_block_size: prompt tokens per id of ``prefix_hashes``; ``None`` to infer it.

    Raises:
        UnknownNameError: if no policy, load, predictor or cost model has the name.
        RequestError: if a number is out of range.

    >>> ExperimentSettings(policies=("fcfs",), load="2.5").seeds
    1
    >>> ExperimentSettings(load="heavy")
    Traceback (most recent call last):
    ...
    sagellm_lifetime.core.errors.UnknownNameError: unknown load 'heavy': choose one of relaxed, \
knee, overload, a number (requests a second)
    """

    policies: Sequence[str] = ("fcfs", "fcfs-watermark", "lifetime", "lifetime-oracle")
    load: str = "knee"
    blocks: int = 6000
    max_model_len: int | None = None
    max_requests: int = 300
    seeds: int = 1
    predictor: str = DEFAULT
    min_confidence: float = 0.0
    cost_model: str = "a100-7b"
    hash_block_size: int | None = None

    def __post_init__(self) -> None:
        predictor_class(self.predictor)
        _check_policies(self.policies)
        check_load(self.load)
        cost_model(self.cost_model)
        as_level(self.min_confidence, "min_confidence")
        required = {"blocks": 2, "max_requests": 1, "seeds": 1}
        optional = {"max_model_len": 1, "hash_block_size": 1}
        for name, lowest in (required | optional).items():
            value = getattr(self, name)
            if not (value is None and name in optional) and value < lowest:
                raise RequestError(f"{name} must be {lowest} or more, got {value}")


def known_policies(predictor: Predictor, min_confidence: float = 0.0) -> dict[str, ReplayPolicy]:
    """Return all policies by name: vLLM's own, and plans that use ``predictor``."""
    return POLICIES | planned_policies(predictor, min_confidence)


def check_load(load: str) -> None:
    """Refuse a load that is neither a name nor a possible number of requests a second.

    Raises:
        UnknownNameError: if it is neither a name nor a number.
        RequestError: if it is a number out of range.
    """
    if load in LOADS or load == OFFLINE:
        return
    try:
        rate = float(load)
    except ValueError:
        known = [*LOADS, "a number (requests a second)"]
        raise UnknownNameError("load", load, known) from None
    lowest, highest = RATES
    if not (math.isfinite(rate) and lowest <= rate <= highest):
        raise RequestError(
            f"--load: {lowest:g} to {highest:,.0f} requests a second are possible, not {load}"
        )


def _check_policies(names: Sequence[str]) -> None:
    if not names:
        raise RequestError("no policy is named: choose one with --policy")
    known = known_policies(create_predictor("baseline"))
    for name in names:
        if name not in known:
            raise UnknownNameError("policy", name, list(known))


class Experiment:
    """A comparison of policies on a history, with the predictor that they use.

    The constructor makes all checks that do not need vLLM, before any training.

    Args:
        data: history from which the requests are drawn; split in two if there is no other data to
            train on.
        settings: of the replay.
        train: history to train the predictor on.
        predictor: a trained predictor to use instead of the one in the settings.
        origin: origin of ``predictor``, for the report.

    Raises:
        HistoryError: if the history cannot be split, trained on or replayed.
        RequestError: if a request does not fit into the pool or the model length.

    Attributes:
        how: origin of the requests and the predictor, in one sentence.
        notes: remarks on the setting, a sentence each.
    """

    def __init__(
        self,
        data: Dataset,
        settings: ExperimentSettings | None = None,
        *,
        train: Dataset | None = None,
        predictor: Predictor | None = None,
        origin: str = "memory",
    ) -> None:
        self.settings = settings or ExperimentSettings()
        self._read = [data] if train is None else [data, train]
        self._given = predictor
        self._train: Dataset | None = None
        self._split: str | None = None
        self._hash_blocks = hash_blocks(data.rows, self.settings.hash_block_size)
        if predictor is not None:
            self._requests = _in_arrival_order(data)
            self.how = f"{predictor.name} of {origin}"
        else:
            self._choose_training(data, train)
        self._engine = EngineSettings(
            blocks=self.settings.blocks,
            max_model_len=self.settings.max_model_len,
            prefix_caching=_shares_prompts(self._requests.rows),
        )
        self._cost = cost_model(self.settings.cost_model)
        self._traces = self._draw()
        self.notes: list[str] = []
        count = len(self._requests.rows)
        if self.settings.seeds > 1 and self.settings.max_requests >= count:
            self.notes.append(
                f"every seed draws all {counted(count, 'request')}: give a smaller --max-requests"
            )

    def _choose_training(self, data: Dataset, train: Dataset | None) -> None:
        """Set the rows to train on and the rows to replay."""
        if train is not None:
            self._requests = _in_arrival_order(data)
            self.how = f"trained on {counted(len(train.rows), 'row')} of {train.name}"
        else:
            parts = split(data.rows, clock=data.clock)
            self._requests = replace(data, rows=parts.test)
            train = replace(data, rows=parts.train)
            self._split = parts.by
            self.how = (
                f"split by {parts.by}: trained on {counted(len(parts.train), 'row')}, requests "
                f"from the other {len(parts.test):,}"
            )
        if all(name in POLICIES for name in self.settings.policies):
            self.how = (
                f"requests from {counted(len(self._requests.rows), 'row')}; no predictor is asked"
            )
        elif not train.has_tokens:
            raise HistoryError(
                "nothing to train on: no row of the training part has generated tokens"
            )
        else:
            self._train = train

    def _draw(self) -> list[list[TraceRequest]]:
        """Return the requests of each seed; all of them fit into the engine."""
        tokens = None if self._hash_blocks is None else self._hash_blocks.tokens
        traces = [
            make_trace(
                sample(self._requests.rows, self.settings.max_requests, seed=seed),
                seed=seed,
                clock=self._requests.clock,
                hash_block_size=tokens,
            )
            for seed in range(self.settings.seeds)
        ]
        for trace in traces:
            check_fits(trace, self._engine)
        return traces

    def run(self, progress: Progress | None = None) -> Comparison:
        """Train, find the load, and replay every seed with every policy.

        Args:
            progress: called with the name of the present task and its finished share.

        Raises:
            MissingExtraError: if vLLM is not installed.
            LifetimeError: if vLLM has another version, or the predictor cannot be trained on the
                history.
        """
        check_interface()
        names = self.settings.policies
        comparison = Comparison({}, self._cost, self._engine.blocks, {name: [] for name in names})
        loads = []
        for seed, trace in enumerate(self._traces):
            several = len(self._traces) > 1
            report = labelled(progress or _silent, f"seed {seed}" if several else "")
            known = known_policies(self._predictor(seed, report), self.settings.min_confidence)
            at = self._at_load(trace, report)
            loads.append(at)
            for i, name in enumerate(names):
                step = _part(report, name, i, len(names))
                comparison.runs[name].append(self._run_policy(known[name], at, step))
        comparison.settings = self._record(loads)
        return comparison

    def _predictor(self, seed: int, progress: Progress) -> Predictor:
        """Return the trained predictor that the policies use."""
        if self._given is not None:
            return self._given
        predictor = create_predictor(self.settings.predictor, seed=seed)
        if self._train is not None:
            report = labelled(progress, f"training {predictor.name}")
            predictor.fit(self._train.rows, progress=report, clock=self._train.clock)
        return predictor

    def _at_load(self, trace: Sequence[TraceRequest], progress: Progress) -> Calibrated:
        """Return the trace at the load of the settings."""
        if self.settings.load == OFFLINE:
            return Calibrated(at_once(trace), 0.0)

        def report(attempt: int, share: float) -> None:
            progress(f"finding the load, try {attempt}", share)

        report(0, 0.0)
        return at_load(self.settings.load, trace, self._engine, self._cost, report)

    def _run_policy(
        self, policy: ReplayPolicy, at: Calibrated, progress: Callable[[float], None]
    ) -> Replayed:
        """Return the run of one policy; ``progress`` gets its finished share."""
        if policy.name == "fcfs" and at.default is not None:  # already run to find the load
            return Replayed(policy, at.default, metrics(at.default), {})
        runs, earlier, last = max(len(policy.grid), 1), 0, 0

        def finished(done: int) -> None:
            nonlocal earlier, last
            earlier += done < last  # the next entry of the grid has begun
            last = done
            progress((earlier + done / len(at.trace)) / runs)

        progress(0.0)
        return run_policy(at.trace, self._engine, self._cost, policy, progress=finished)

    def _record(self, loads: Sequence[Calibrated]) -> dict[str, Any]:
        """Return the settings that all policies share, for the JSON."""
        settings, engine, blocks = self.settings, self._engine, self._hash_blocks
        uses_predictor = self._given is not None or self._train is not None
        name = settings.predictor if self._given is None else self._given.name
        return {
            "data": self._read[0].name,
            "how": self.how,
            "split": self._split,
            "clock": self._read[0].recorded_clock,
            "read": {dataset.name: dict(dataset.reading) for dataset in self._read},
            "predictor": name if uses_predictor else None,
            "min_confidence": settings.min_confidence,
            "training_rows": None if self._train is None else len(self._train.rows),
            "requests": median(len(trace) for trace in self._traces),
            "seeds": len(loads),
            "load": settings.load,
            "load_reached": all(at.reached for at in loads),
            "rate": median(at.rate for at in loads) or None,
            "rates": [at.rate or None for at in loads],
            "capacity": median(at.capacity for at in loads) or None,
            "engine": f"vLLM {version()}",
            "blocks": engine.blocks,
            "block_size": engine.block_size,
            "max_model_len": engine.max_model_len,
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "prefix_caching": engine.prefix_caching,
            "hash_block_size": None if blocks is None else blocks.tokens,
            "hash_block_size_source": None if blocks is None else blocks.source,
            "cost_model": asdict(self._cost),
        }


def describe(settings: Mapping[str, Any]) -> str:
    """Return the settings of a comparison, as an experiment records them, in one sentence."""
    if settings["rate"] is None:
        arrivals = "all at once"
    else:
        arrivals = f"{settings['rate']:.3g} a second"
        if settings["capacity"] is not None:
            capacity = f"{settings['capacity']:.3g} is what fcfs gets done"
            arrivals += f" ({settings['load']}; {capacity})"
    if settings["seeds"] > 1:
        arrivals += f", medians over {settings['seeds']} seeds"
    if not settings["load_reached"]:
        arrivals += f"; {not_reached(settings['load'])}"
    caching = "on" if settings["prefix_caching"] else "off"
    if settings["hash_block_size"] is not None:
        blocks = HashBlocks(settings["hash_block_size"], settings["hash_block_size_source"])
        caching += f" ({blocks.said})"
    return (
        f"{counted(round(settings['requests']), 'request')} of {settings['data']}, {arrivals}; "
        f"{settings['engine']}, {settings['blocks']:,} blocks of {settings['block_size']} tokens, "
        f"prefix caching {caching}"
    )


def not_reached(load: str) -> str:
    """Return the warning that no tried rate reached the load."""
    return f"NOT {load}: no rate that was tried lets vLLM's default queue as that load wants it"


def _in_arrival_order(data: Dataset) -> Dataset:
    """Return the data sorted by arrival if all rows are on one clock, else unchanged."""
    if not data.has_all_arrivals or data.clock == "session":
        return data
    return replace(data, rows=data.rows.sort("arrival_time", maintain_order=True))


def _shares_prompts(rows: pl.DataFrame) -> bool:
    """Return True if the history has shared prompt prefixes, which enables prefix caching."""
    return any(
        name in rows.columns and rows[name].null_count() < len(rows)
        for name in ("prefix_hashes", "prompt_token_ids")
    )


def _part(progress: Progress, name: str, index: int, count: int) -> Callable[[float], None]:
    """Return a callback for the share of one part of ``count``."""
    return lambda share: progress(name, (index + share) / count)


def _silent(_what: str, _share: float) -> None:
    return
