"""Shadow mode changes nothing: the real model, stock against shadow, step by step, token by token.

HTTP has a clock, and two runs over it never have the same schedule. Here the requests come at the
same step of an engine in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import say

from live.material import mean_area
from live.server import ENVIRONMENT, python_path
from sagellm_lifetime.replay.trace import TraceRequest, at_rate

LOAD = 1.5
"""Times what the pool can take."""
MOST = 80
"""Requests: enough to preempt dozens of times."""


def check_shadow(bench: Any) -> int:
    """Run both, compare; 1 where they differ."""
    pool = bench.setting.blocks * bench.setting.block_size
    per_step = LOAD * pool / mean_area(bench.trace)
    trace = at_rate(bench.trace[:MOST], per_step)
    found = {}
    for mode in ("stock", "shadow"):
        say(f"in process, {mode}: {len(trace)} requests, {per_step:.3f} a step")
        found[mode] = _run(bench, trace, mode)
    stats = json.loads((bench.logs / "check-shadow.stats.json").read_bytes())
    lines, differing = compare(found["stock"], found["shadow"])
    print("\n".join([*lines, *(f"{key}: {value}" for key, value in stats.items())]))
    idle = not stats["total_predictions"] or any(stats["faults"].values())
    if idle:
        print("the shadow did not predict all the way: nothing is shown by this")
    return int(differing or idle)


def compare(theirs: Sequence[Any], ours: Sequence[Any]) -> tuple[list[str], bool]:
    """Two logs in words, and whether they differ."""
    steps = [[each["scheduled"] for each in log if "step" in each] for log in (theirs, ours)]
    tokens = [
        {each["request"]: each["tokens"] for each in log if "request" in each}
        for log in (theirs, ours)
    ]
    preempted = [sum(each["preempted"] for each in log if "step" in each) for log in (theirs, ours)]
    first = next(
        (i for i, pair in enumerate(zip(*steps, strict=False)) if pair[0] != pair[1]),
        None if len(steps[0]) == len(steps[1]) else min(map(len, steps)),
    )
    others = sorted(key for key in tokens[0].keys() | tokens[1].keys()
                    if tokens[0].get(key) != tokens[1].get(key))  # fmt: skip
    lines = [
        f"steps: {len(steps[0]):,} and {len(steps[1]):,}, "
        + ("all alike" if first is None else f"different from step {first} on"),
        f"preemptions: {preempted[0]} and {preempted[1]}",
        f"answers: {len(tokens[0])} and {len(tokens[1])}, "
        f"{sum(map(len, tokens[0].values())):,} tokens, "
        + ("all alike" if not others else f"{len(others)} differ, {others[0]} among them"),
    ]
    return lines, first is not None or bool(others)


def _run(bench: Any, trace: Sequence[TraceRequest], mode: str) -> list[dict[str, Any]]:
    log = bench.logs / f"check-{mode}.jsonl"
    additional: dict[str, Any] = {"load": {"log": str(log), "detail": True}}
    if mode == "shadow":
        # Whatever a busy machine does to its speed: what is shown is that it changes nothing.
        additional["lifetime"] = {
            "mode": "shadow", "checkpoint": str(bench.checkpoint), "predictor": "", "learn": True,
            "floor_s": 1.0,
        }  # fmt: skip
    setting = bench.setting
    job = {
        "model": str(bench.model),
        "options": {
            "additional_config": additional,
            "block_size": setting.block_size,
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": setting.max_model_len,
            "max_num_batched_tokens": setting.max_num_batched_tokens,
            "max_num_seqs": setting.max_num_seqs,
            "num_gpu_blocks_override": setting.blocks,
            "served_model_name": bench.served,
            **as_arguments(bench.options.vllm),
        },
        "requests": [_asked(request) for request in trace],
        "stats": str(bench.logs / f"check-{mode}.stats.json"),
    }
    path = bench.logs / f"check-{mode}.job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "live.in_process", str(path)],
        check=True,
        env={**ENVIRONMENT, **os.environ, "PYTHONPATH": python_path()},
    )
    return [json.loads(line) for line in Path(log).read_text(encoding="utf-8").splitlines()]


def as_arguments(options: Sequence[str]) -> dict[str, str]:
    """vLLM's options on the command line as arguments of ``LLM``; each has a value."""
    names = [option.removeprefix("--").replace("-", "_") for option in options[::2]]
    return dict(zip(names, options[1::2], strict=True))


def _asked(request: TraceRequest) -> dict[str, Any]:
    who = {
        "client_id": request.client_id,
        "session_id": request.session_id,
        "turn": request.turn,
    }
    return {
        "key": request.id,
        "at": int(request.arrival),
        "prompt": request.prompt_token_ids,
        "length": request.output_length,
        "cap": request.max_length,
        "who": {name: value for name, value in who.items() if value is not None},
    }
