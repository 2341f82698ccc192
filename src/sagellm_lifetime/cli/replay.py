"""``replay``: a history through vLLM's own scheduler, policy by policy."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sagellm_lifetime.cli.fitting import ClockKind, Reading, check_names, fit
from sagellm_lifetime.cli.guard import CommandError
from sagellm_lifetime.cli.options import (
    PREDICTOR_HELP,
    BadRows,
    CapReached,
    CapReachedOption,
    Clock,
    ClockOption,
    DataPath,
    Json,
    OnBadRows,
)
from sagellm_lifetime.cli.output import note, progress, write_json
from sagellm_lifetime.cli.places import check_folder, check_json
from sagellm_lifetime.cli.replayed import settings, show, told, unreached

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.predictor.base import Predictor
    from sagellm_lifetime.replay.compare import Replayed
    from sagellm_lifetime.replay.cost import StepCost
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.replay.hash_blocks import HashBlocks
    from sagellm_lifetime.replay.load import Calibrated
    from sagellm_lifetime.replay.policies import ReplayPolicy
    from sagellm_lifetime.replay.report import Comparison
    from sagellm_lifetime.replay.trace import TraceRequest

POLICIES: Final = ("fcfs", "fcfs-watermark", "lifetime", "lifetime-oracle")
REFERENCES: Final = ("fcfs", "fcfs-watermark", "priority-max-tokens")
"""vLLM's own."""
PLANS: Final = (
    "lifetime",
    "sjf",
    "gittins",
    "evict-shortest",
    "evict-longest",
    "evict-engine",
    "longest-first",
    "reserve",
)
"""Each of them also ``-oracle``. Written out so that ``--help`` loads nothing."""
RIVALS: Final = ("fair-input", "reserve-max-tokens", "reserve-ratio", "reserve-average")
"""Of the plans, without a predictor."""
POLICY_HELP: Final = (
    "Policies, with spaces or commas between. vLLM's: "
    f"{', '.join(REFERENCES)}. With the predictor, or with known lengths as NAME-oracle: "
    f"{', '.join(PLANS)}. Without either: {', '.join(RIVALS)}."
)
PREDICTOR: Final = "survival"
LOAD: Final = "knee"
COST: Final = "a100-7b"
BLOCKS: Final = 6000
REQUESTS: Final = 300
RATES: Final = (1e-6, 1e6)
MOST_BLOCKS: Final = 4_000_000
"""64 million tokens; vLLM makes an object of each block, for every run anew: 8 s, and 1 GB."""
NEEDS_VLLM: Final = "replay needs vLLM: pip install 'isagellm-lifetime[vllm]'"


@dataclass
class Job:
    """What is replayed, and who is asked.

    Attributes:
        rows: the requests are drawn from these.
        how: where they and the predictor come from, for people.
        train: what the predictor learns from; ``None`` where it has learned, or nobody asks it.
        predictor: a loaded one, or what the one to be trained is called.
        split: how the history was cut, ``None`` where it was not.
        clock: what the arrival times of ``rows`` count from.
        hash_blocks: prompt tokens behind an id of ``prefix_hashes``, ``None`` where no row needs
            it.
        train_clock: what those of ``train`` count from.
        min_confidence: of the plans.
    """

    rows: pl.DataFrame
    how: str
    train: pl.DataFrame | None
    predictor: Predictor | str
    split: str | None
    clock: ClockKind
    hash_blocks: HashBlocks | None
    train_clock: ClockKind = "wall"
    min_confidence: float = 0.0

    def ready(self, seed: int) -> Predictor:
        """The predictor, fitted."""
        from sagellm_lifetime.predictor.registry import create_predictor

        if not isinstance(self.predictor, str):
            return self.predictor
        if self.train is None:
            return create_predictor(self.predictor, seed=seed)
        return fit(self.predictor, self.train, seed=seed, clock=self.train_clock)


def replay(
    *,
    data_path: DataPath,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=POLICY_HELP,
            show_default=", ".join(POLICIES),
        ),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            metavar="LOAD",
            help="How fast the requests come: relaxed, knee, overload, or requests a second.",
            show_default=LOAD,
        ),
    ] = None,
    blocks: Annotated[
        int, typer.Option(min=2, max=MOST_BLOCKS, help="KV blocks of 16 tokens in the pool.")
    ] = BLOCKS,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**8,
            help="Tokens of prompt and output together that the engine takes.",
            show_default="what the longest request may come to",
        ),
    ] = None,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Replay so many neighbouring requests of the history.")
    ] = REQUESTS,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Draw the requests so many times, and report the medians."
        ),
    ] = 1,
    offline: Annotated[
        bool, typer.Option("--offline", help="All requests are there from the start.")
    ] = False,
    train_path: Annotated[
        str | None,
        typer.Option(
            "--train-path",
            metavar="FILE",
            help="Train on this history, and draw the requests from all of --data-path.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="Ask this trained predictor; the requests come from all of --data-path.",
            show_default=False,
        ),
    ] = None,
    predictor_type: Annotated[
        str | None,
        typer.Option(
            "--predictor-type", metavar="NAME", help=f"{PREDICTOR_HELP}.", show_default=PREDICTOR
        ),
    ] = None,
    min_confidence: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="P",
            help="Of a request whose prediction is less confident vLLM's own rule decides.",
        ),
    ] = 0.0,
    cost_model: Annotated[
        str,
        typer.Option(
            "--cost-model", metavar="NAME", help="Seconds of a step: a100-7b, h100-70b, cpu-small."
        ),
    ] = COST,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the table and two plots into this folder.",
            show_default=False,
        ),
    ] = None,
    json: Json = None,
    on_bad_rows: BadRows = OnBadRows.refuse,
    cap_reached: CapReachedOption = CapReached.length,
    clock: ClockOption = Clock.auto,
    hash_block_size: Annotated[
        int | None,
        typer.Option(
            "--hash-block-size",
            min=1,
            max=10**8,
            metavar="TOKENS",
            help="Prompt tokens behind one id of prefix_hashes.",
            show_default="told from the prompt lengths",
        ),
    ] = None,
) -> None:
    """Replay a history through vLLM's own scheduler, without a model, and compare policies.

    Without --train-path and --checkpoint the history itself is cut by time: the predictor is
    trained on the earlier 70 %, the requests come from the rest. It learns online in simulated
    time. Prefix caching is on where the history has prefix_hashes or prompt_token_ids.
    """
    if checkpoint is not None and train_path is not None:
        raise CommandError("--train-path and --checkpoint: choose one")
    if checkpoint is not None and predictor_type is not None:
        raise CommandError("a checkpoint is of one type: leave --predictor-type out")
    if offline and load is not None:
        raise CommandError("--offline has all requests there at once: leave --load out")
    load = LOAD if load is None else load
    who = _predictor(predictor_type)
    names = _policies(policy or POLICIES)
    _check_load(load)
    from sagellm_lifetime.replay.cost import cost_model as find_cost
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.replay.report import FILES, write_report

    check_folder(report, FILES)
    written = [report / each for each in FILES] if report is not None else []
    check_json(json, data_path, train_path, checkpoint, *written)

    cost = find_cost(cost_model)
    reading = Reading(on_bad_rows, cap_reached, clock)
    job = _job(data_path, names, who, train_path, checkpoint, reading, hash_block_size)
    job.min_confidence = min_confidence
    engine = EngineSettings(
        blocks=blocks, max_model_len=max_model_len, prefix_caching=_shares_prompts(job.rows)
    )
    traces = _traces(job, max_requests, seeds, engine)
    _need_vllm()
    note(job.how)
    if seeds > 1 and max_requests >= len(job.rows):
        note(f"all {len(job.rows):,} requests are in every seed: give a smaller --max-requests")

    found, rates = _compare(job, names, traces, engine, cost, "" if offline else load)
    found.settings = settings(
        data=data_path,
        job=job,
        load="offline" if offline else load,
        rates=rates,
        requests=[len(trace) for trace in traces],
        engine=engine,
        cost=cost,
        read=reading.told,
    )
    how = told(found.settings)
    if not found.settings["load_reached"]:
        note(unreached(load))
    if json is not None:
        write_json(found.to_json(), json)
    if json != "-":
        show(found, how)
    if report is not None:
        note(f"report: {write_report(report, found, how=how)}")


def _predictor(given: str | None) -> str:
    names = check_names([given or PREDICTOR])
    if len(names) > 1:
        raise CommandError("one --predictor-type at a time")
    return names[0]


def _policies(given: Sequence[str]) -> list[str]:
    """Names of policies, each once; a name may be several, with commas between."""
    from sagellm_lifetime.core.errors import UnknownNameError
    from sagellm_lifetime.predictor.registry import create_predictor

    names = [name.strip() for several in given for name in several.split(",") if name.strip()]
    if not names:
        raise CommandError("no policy is named: choose one with --policy")
    known = _known(create_predictor("baseline"))
    for name in names:
        if name not in known:
            raise UnknownNameError("policy", name, list(known))
    return list(dict.fromkeys(names))


def _known(predictor: Predictor, min_confidence: float = 0.0) -> dict[str, ReplayPolicy]:
    from sagellm_lifetime.replay.planned import planned_policies
    from sagellm_lifetime.replay.policies import POLICIES as PLAIN

    return PLAIN | planned_policies(predictor, min_confidence)


def _check_load(load: str) -> None:
    from sagellm_lifetime.core.errors import UnknownNameError
    from sagellm_lifetime.replay.load import LOADS

    if load in LOADS:
        return
    try:
        rate = float(load)
    except ValueError:
        known = [*LOADS, "a number (requests a second)"]
        raise UnknownNameError("load", load, known) from None
    least, most = RATES
    if not (math.isfinite(rate) and least <= rate <= most):
        raise CommandError(
            f"--load: {least:g} to {most:,.0f} requests a second are possible, not {load}"
        )


def _job(
    data_path: str,
    names: Sequence[str],
    who: str,
    train_path: str | None,
    checkpoint: Path | None,
    reading: Reading,
    hash_block_size: int | None,
) -> Job:
    from sagellm_lifetime.history.splits import split
    from sagellm_lifetime.replay.hash_blocks import hash_blocks
    from sagellm_lifetime.replay.policies import POLICIES as PLAIN

    loaded: Predictor | None = None
    if checkpoint is not None:
        from sagellm_lifetime.predictor.checkpoint import load_predictor

        loaded = load_predictor(checkpoint)
    rows = reading.rows(data_path)
    clock = reading.clock_of(data_path, rows)
    blocks = hash_blocks(rows, hash_block_size)
    if loaded is not None:
        how = f"{loaded.name} of {checkpoint}"
        return Job(_in_order(rows, clock), how, None, loaded, None, clock, blocks)
    asked = any(name not in PLAIN for name in names)
    if train_path is not None:
        train = reading.rows(train_path)
        how = f"trained on {len(train):,} rows of {train_path}"
        train_clock = reading.clock_of(train_path, train)
        job = Job(_in_order(rows, clock), how, train, who, None, clock, blocks, train_clock)
    else:
        cut = split(rows, clock=clock)
        how = (
            f"split by {cut.by}: trained on {len(cut.train):,} rows, requests from the other "
            f"{len(cut.test):,}"
        )
        job = Job(cut.test, how, cut.train, who, cut.by, clock, blocks, clock)
    assert job.train is not None
    if not asked:
        job.how, job.train = f"requests from {len(job.rows):,} rows; no predictor is asked", None
    elif not (job.train["actual_length"] > 0).any():
        raise CommandError("nothing to train on: no row of the training part has generated tokens")
    return job


def _in_order(rows: pl.DataFrame, clock: ClockKind) -> pl.DataFrame:
    """By arrival where that says something, so that neighbours came one after the other."""
    recorded = "arrival_time" in rows.columns and not rows["arrival_time"].null_count()
    if not recorded or clock == "session":
        return rows
    return rows.sort("arrival_time", maintain_order=True)


def _shares_prompts(rows: pl.DataFrame) -> bool:
    """Whether the history says which prompts begin alike: then the engine caches prefixes."""
    return any(
        name in rows.columns and rows[name].null_count() < len(rows)
        for name in ("prefix_hashes", "prompt_token_ids")
    )


def _traces(
    job: Job, max_requests: int, seeds: int, engine: EngineSettings
) -> list[list[TraceRequest]]:
    """The requests of each seed; that they fit is looked at before anything is trained."""
    from sagellm_lifetime.replay.engine import check_fits
    from sagellm_lifetime.replay.trace import make_trace, sample

    size = None if job.hash_blocks is None else job.hash_blocks.tokens
    traces = [
        make_trace(
            sample(job.rows, max_requests, seed=seed),
            seed=seed,
            clock=job.clock,
            hash_block_size=size,
        )
        for seed in range(seeds)
    ]
    for trace in traces:
        check_fits(trace, engine)
    return traces


def _need_vllm() -> None:
    """Load vLLM, and look whether it is the one this was written for."""
    from sagellm_lifetime.core.errors import MissingExtraError
    from sagellm_lifetime.vllm.compat.interface import check_interface

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it logs to stdout …
    logging.getLogger("vllm").setLevel(logging.ERROR)  # … and to stderr until it has read that
    try:
        with progress("loading vLLM"):
            check_interface()
    except MissingExtraError:
        raise CommandError(NEEDS_VLLM) from None


def _compare(
    job: Job,
    names: Sequence[str],
    traces: Sequence[Sequence[TraceRequest]],
    engine: EngineSettings,
    cost: StepCost,
    load: str,
) -> tuple[Comparison, list[Calibrated]]:
    """Replay every seed with every policy; ``load`` is empty where all come at once."""
    from sagellm_lifetime.replay.load import Calibrated, at_load
    from sagellm_lifetime.replay.report import Comparison
    from sagellm_lifetime.replay.trace import at_once

    found = Comparison({}, cost, engine.blocks, {name: [] for name in names})
    rates: list[Calibrated] = []
    for seed, trace in enumerate(traces):
        known = _known(job.ready(seed), job.min_confidence)
        which = f"seed {seed}, " if len(traces) > 1 else ""
        with progress("replaying") as step:

            def look(tried: int, share: float, which: str = which) -> None:
                step(f"{which}finding the load, try {tried}", share)

            at = Calibrated(at_once(trace), 0.0)
            if load:
                look(0, 0.0)
                at = at_load(load, trace, engine, cost, look)
            rates.append(at)
            for i, name in enumerate(names):

                def tell(share: float, what: str = which + name, before: int = i) -> None:
                    step(what, (before + share) / len(names))

                found.runs[name].append(_run(known[name], at, engine, cost, tell))
    return found, rates


def _run(
    policy: ReplayPolicy,
    at: Calibrated,
    engine: EngineSettings,
    cost: StepCost,
    tell: Callable[[float], None],
) -> Replayed:
    from sagellm_lifetime.replay.compare import Replayed
    from sagellm_lifetime.replay.compare import replay as run_policy
    from sagellm_lifetime.replay.metrics import metrics

    if policy.name == "fcfs" and at.default is not None:  # was run to find the load
        return Replayed(policy, at.default, metrics(at.default), {})
    ran, last, runs = 0, 0, max(len(policy.grid), 1)

    def finished(done: int) -> None:
        nonlocal ran, last
        ran += done < last  # the next entry of its grid has begun
        last = done
        tell((ran + done / len(at.trace)) / runs)

    tell(0.0)
    return run_policy(at.trace, engine, cost, policy, progress=finished)
