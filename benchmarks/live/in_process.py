"""``python -m live.in_process JOB.json``: an engine in this process, arrivals by step number.

Nothing here depends on a clock, so two runs of one job are the same, step by step, unless the
scheduler makes them differ. The log, with the schedule and the tokens, goes where the job says.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}


def main(path: str) -> None:
    """Do the job: ``model``, ``options`` of ``LLM``, ``requests`` with their step in ``at``."""
    os.environ.update(ENVIRONMENT)
    from live.end_at import EndAt  # first: it mends imports

    from vllm import LLM, SamplingParams  # isort: skip
    from vllm.sampling_params import RequestOutputKind

    from live import END_AT, KEY

    job: dict[str, Any] = json.loads(Path(path).read_bytes())
    engine = LLM(
        job["model"],
        logits_processors=[EndAt],
        scheduler_cls="live.watched.scheduler",
        distributed_executor_backend="uni",
        **job["options"],
    ).llm_engine
    coming = sorted(job["requests"], key=lambda request: request["at"])
    step = 0
    while coming or engine.has_unfinished_requests():
        while coming and (coming[0]["at"] <= step or not engine.has_unfinished_requests()):
            one = coming.pop(0)
            params = SamplingParams(
                detokenize=False,
                extra_args={END_AT: one["length"], KEY: one["key"], **one["who"]},
                max_tokens=one["cap"],
                output_kind=RequestOutputKind.FINAL_ONLY,
                temperature=0.0,
            )
            engine.add_request(one["key"], {"prompt_token_ids": one["prompt"]}, params)
        engine.step()
        step += 1
    core = engine.engine_core.engine_core
    lifetime = core.scheduler.advisor if hasattr(core.scheduler, "lifetime") else None
    if lifetime is not None:
        agreement = lifetime.agreement
        stats = {
            **lifetime.statistics.snapshot(),
            "admissions": [agreement.admissions.made, agreement.admissions.differing],
            "preemptions": [agreement.preemptions.made, agreement.preemptions.differing],
            "faults": lifetime.breaker.faults,
        }
        Path(job["stats"]).write_text(json.dumps(stats), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
