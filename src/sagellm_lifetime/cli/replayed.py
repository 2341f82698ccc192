"""What ``replay`` says of itself: its setting, and the comparison for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sagellm_lifetime.cli.output import say, table

if TYPE_CHECKING:
    from sagellm_lifetime.cli.replay import Job
    from sagellm_lifetime.replay.cost import StepCost
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.replay.load import Calibrated
    from sagellm_lifetime.replay.report import Comparison


def show(found: Comparison, how: str) -> None:
    """On stdout."""
    from sagellm_lifetime.replay.report import COLUMNS, LEGEND, cost_lines

    say(how)
    table(COLUMNS, found.rows())
    for line in (LEGEND, *found.says(), *cost_lines(found.cost), found.pace()):
        say(line)


def settings(
    *,
    data: str,
    job: Job,
    load: str,
    rates: Sequence[Calibrated],
    requests: Sequence[int],
    engine: EngineSettings,
    cost: StepCost,
    read: dict[str, Any],
) -> dict[str, Any]:
    """Everything that is the same for all policies; the same in every run of the command."""
    from statistics import median

    from sagellm_lifetime.vllm.compat.interface import version

    blocks = job.hash_blocks
    who = job.predictor if isinstance(job.predictor, str) else job.predictor.name
    return {
        "data": data,
        "how": job.how,
        "split": job.split,
        "clock": read[data]["clock"],
        "read": read,
        "predictor": who if job.train is not None or job.predictor is not who else None,
        "min_confidence": job.min_confidence,
        "training_rows": None if job.train is None else len(job.train),
        "requests": median(requests),
        "seeds": len(rates),
        "load": load,
        "load_reached": all(at.reached for at in rates),
        "rate": median(at.rate for at in rates) or None,
        "rates": [at.rate or None for at in rates],
        "capacity": median(at.capacity for at in rates) or None,
        "engine": f"vLLM {version()}",
        "blocks": engine.blocks,
        "block_size": engine.block_size,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "prefix_caching": engine.prefix_caching,
        "hash_block_size": None if blocks is None else blocks.tokens,
        "hash_block_size_source": None if blocks is None else blocks.source,
        "cost_model": asdict(cost),
    }


def told(found: dict[str, Any]) -> str:
    """The setting in a sentence."""
    from sagellm_lifetime.replay.hash_blocks import HashBlocks

    if found["rate"] is None:
        asked = "all at once"
    else:
        asked = f"{found['rate']:.3g} a second"
        if found["capacity"] is not None:
            asked += f" ({found['load']}; {found['capacity']:.3g} is what fcfs gets done)"
    several = f", medians over {found['seeds']} seeds" if found["seeds"] > 1 else ""
    if not found["load_reached"]:
        several += f"; {unreached(found['load'])}"
    caching = "on" if found["prefix_caching"] else "off"
    if found["hash_block_size"] is not None:
        blocks = HashBlocks(found["hash_block_size"], found["hash_block_size_source"])
        caching += f" ({blocks.said})"
    return (
        f"{found['requests']:,.0f} requests of {found['data']}, {asked}{several}; "
        f"{found['engine']}, {found['blocks']:,} blocks of {found['block_size']} tokens, "
        f"prefix caching {caching}"
    )


def unreached(load: str) -> str:
    """That no rate which was tried made it the load that was asked for."""
    return f"NOT {load}: no rate that was tried lets vLLM's default queue as that load wants it"
