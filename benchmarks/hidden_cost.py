"""What reading the hidden state costs a step of the engine: the two goals, in one command.

    python tools/fetch_model.py smollm2 models/smollm2
    PYTHONPATH=src python benchmarks/hidden_cost.py models/smollm2

Needs the ``[vllm]`` extra. 64 prompts of the recording run in one engine in this process, each for
so many tokens as answers have on average; the watch reads them after prefill and at 32 and 64
tokens. Seconds are those of the thread's processor, so a busy machine disturbs them little.

- hidden score: all of it, in per cent of a decode step: following the batch, reading, reducing
  (``vllm/hidden_watch.py``), and ``survival``'s new predictions from the readings (goal: 1 %);
- worker: the same without the predictions, and without copying the rows of the residual stream out
  of the batch, in µs a step (goal: 30).

The mean is over all steps of these answers; in a step that reads, all 64 rows are read at once,
which is the worst there is. About a minute on one core.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import code, table
from record_answers import ENVIRONMENT

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.core.hidden_states import READ_AT
from sagellm_lifetime.workloads.recorded import recorded

TOKENS = 176
"""Mean length of the recorded answers."""
TAUGHT = 500


class Meter:
    """Processor seconds of the functions of one step, by name."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._now: dict[str, float] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function``, measured."""

        def measured(*args: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                self._now[name] = self._now.get(name, 0.0) + time.thread_time() - began

        return measured

    def step(self, run: Callable[[], Any]) -> None:
        """Run a step and keep its seconds."""
        self._now = {}
        began = time.thread_time()
        run()
        self._now["step"] = time.thread_time() - began
        self.steps.append(self._now)

    def of(self, *names: str) -> np.ndarray:
        """Return the seconds of these functions together in each step."""
        return np.array([sum(step.get(name, 0.0) for name in names) for step in self.steps])


def run(model: Path, running: int, tokens: int) -> tuple[Meter, dict[str, dict[int, np.ndarray]]]:
    """Return the seconds of each step after the prefill, and the readings of each request."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from sagellm_lifetime.vllm import hidden_watch
    from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm
    from sagellm_lifetime.vllm.launch.server import WORKER

    ready_for_vllm()  # before anything of vLLM is imported
    from vllm import LLM, SamplingParams  # isort: skip

    meter, reader = Meter(), hidden_watch.HiddenReader
    readings: dict[str, dict[int, np.ndarray]] = {str(number): {} for number in range(running)}
    begin, report = reader.begin, reader.report

    def asking(self: Any, step: Any) -> None:
        """Ask for every request under vLLM's own id, as our scheduler does."""
        for new in step.scheduled_new_reqs:
            new.sampling_params.extra_args = {hidden_watch.ASK: new.req_id}
        begin(self, step)

    def kept(self: Any, step: Any) -> Any:
        made = report(self, step)
        for name, one in made.readings.items() if made else ():
            readings[name.partition("-")[0]].update(one)
        return made

    reader.begin = meter.around("begin", asking)  # type: ignore[method-assign]
    reader.report = meter.around("report", kept)  # type: ignore[method-assign]
    # The sum of states and residual, and the rows of it, are what every reader has to copy.
    reader.capture = meter.around("capture", reader.capture)  # type: ignore[method-assign]
    reader.read = meter.around("read", reader.read)  # type: ignore[method-assign]
    hidden_watch._on_host = meter.around("copy", hidden_watch._on_host)
    engine = LLM(
        str(model),
        distributed_executor_backend="uni",
        dtype="float32",
        enforce_eager=True,
        max_num_batched_tokens=8192,
        max_num_seqs=running,
        worker_cls=WORKER,
    ).llm_engine
    asked = recorded().unique("prompt_id", keep="first", maintain_order=True)["prompt_token_ids"]
    for number, prompt in enumerate(asked.head(running).to_list()):
        params = SamplingParams(
            detokenize=False,
            ignore_eos=True,
            max_tokens=tokens,
            temperature=0.0,
        )
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
    while engine.has_unfinished_requests():
        meter.step(engine.step)
    return meter, readings


def predicted(readings: dict[str, dict[int, np.ndarray]]) -> float:
    """Return the processor seconds of all new predictions that the readings bring."""
    predictor = create_predictor("survival")
    rng = np.random.default_rng(0)
    width = len(next(iter(readings.values()))[0])
    for number in range(TAUGHT):
        given = {age: rng.normal(size=width) for age in READ_AT}
        predictor.predict(_request(str(number), 0, given))
        predictor.update(str(number), int(rng.integers(65, 400)), 1.0)
    spent = 0.0
    for name in readings:
        predictor.predict(_request(name, 0, {}))
    for age in READ_AT:
        requests = [
            _request(name, max(age, 1), {at: one for at, one in read.items() if at <= age})
            for name, read in readings.items()
        ]
        began = time.thread_time()
        predictor.predict_batch(requests)
        spent += time.thread_time() - began
    return spent


def _request(name: str, age: int, read: dict[int, np.ndarray]) -> PredictionRequest:
    given: dict[str, Any] = {"prompt_length": 60, "hidden_source": "model"}
    if read:
        given["hidden_state"] = read
    return PredictionRequest(name, [], age, 1024, given)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    options = parser.parse_args(arguments)
    made = code()
    meter, readings = run(options.model, options.running, options.tokens)
    if any(
        set(read) != {age for age in READ_AT if age < options.tokens} for read in readings.values()
    ):
        raise SystemExit("error: not every request was read at every age")
    steps, worker = meter.of("step"), meter.of("begin", "read", "report") - meter.of("copy")
    decode = float(np.median(steps[1:]))
    predictions = predicted(readings) / len(steps)
    total = float(meter.of("begin", "capture", "read", "report").mean()) + predictions
    rows: list[list[Any]] = [
        ["hidden score, % of a decode step", 100 * total / decode, 1.0],
        ["worker beyond the copy, µs a step", 1e6 * float(worker.mean()), 30.0],
    ]
    print(f"Made {made}. {options.running} running, {options.tokens} tokens each.\n")
    print(table(["cost", "measured", "goal"], rows))
    reads = meter.of("copy") > 0
    print(
        f"\nA decode step takes {1e3 * decode:.0f} ms. Worker beyond the copy: "
        f"{1e6 * float(worker[~reads].mean()):.0f} µs in a step without a reading, "
        f"{1e6 * float(worker[reads].mean()):.0f} in one of the {int(reads.sum())} that read; the "
        f"copy {1e6 * float(meter.of('copy')[reads].mean()):.0f}. Predictions: "
        f"{1e6 * predictions:.0f} µs a step on average."
    )


if __name__ == "__main__":
    main()
