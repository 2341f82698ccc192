"""Real answers of a small chat model, recorded: the plan of ``answers/`` through vLLM.

    sage llm engine fetch smollm2 models/smollm2
    PYTHONPATH=src python benchmarks/record_answers.py models/smollm2 --output answers.parquet

Needs the ``[vllm]`` extra. Sampling is on (temperatures and seeds of the plan, min-p, a penalty on
frequent tokens), at most 1,024 tokens an answer. Answers are written beside the output (``.jsonl``)
as they come, so that an interrupted recording goes on where it stopped; the Parquet is made of all
of them at the end, with ``--limit`` of the first so many. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from answers import journal
from answers.plan import Ask, Message, check, plan
from common import say

CAP = 1024
"""Most tokens of an answer."""
MIN_P = 0.05
"""Cuts off what a top-p would, without its sort of the vocabulary: half the time of a step."""
FREQUENCY_PENALTY = 0.3
"""Ends the loops so small a model falls into. Not vLLM's repetition penalty: that one counts the
prompt too, where every message ends in the token that would end the answer."""
RUNNING = 64
"""Sequences at a time."""
FLUSH = 16
"""Answers between two writes to the disk."""
MODEL = "SmolLM2-135M-Instruct"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


class Answer(NamedTuple):
    """What the engine gave."""

    ask: Ask
    prompt: list[int]
    output: list[int]
    reason: str
    arrival: float
    seconds: float
    eos_logprob: list[float]
    entropy: list[float]


class Recording:
    """The engine at work on a plan."""

    def __init__(self, model: Path) -> None:
        os.environ.update(ENVIRONMENT)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB
        from sagellm_lifetime.engines.vllm.eos import EosWatch, taken  # first: it mends imports

        from vllm import LLM, SamplingParams  # isort: skip
        from vllm.sampling_params import RequestOutputKind

        self._taken = taken
        self._params = SamplingParams
        self._final = RequestOutputKind.FINAL_ONLY
        self._llm = LLM(
            str(model),
            block_size=32,
            distributed_executor_backend="uni",
            dtype="float32",
            enforce_eager=True,
            logits_processors=[EosWatch],
            max_num_seqs=RUNNING,
        )
        self._engine = self._llm.llm_engine
        self._tokenizer = self._llm.get_tokenizer()
        self._said: dict[str, list[Message]] = {}

    def recall(self, ask: Ask, output: Sequence[int]) -> None:
        """What was said up to the end of an answer, for the turn that follows."""
        text = self._tokenizer.decode(output, skip_special_tokens=True)
        answer = {"role": "assistant", "content": text}
        self._said[ask.key] = [*self._before(ask), *ask.messages, answer]

    def run(self, asks: Sequence[Ask], start: float) -> Iterator[Answer]:
        """Answer all of them, as many at a time as the engine runs.

        Args:
            asks: what is still to be asked; what it follows was answered, or stands before it.
            start: seconds on the clock of the recording.
        """
        began = time.perf_counter() - start
        waiting, running = list(asks), {}
        while waiting or running:
            ready = [ask for ask in waiting if ask.after is None or ask.after in self._said]
            for ask in ready[: RUNNING - len(running)]:
                waiting.remove(ask)
                running[ask.key] = (ask, time.perf_counter())
                self._submit(ask)
            for output in self._engine.step():
                ask, arrival = running.pop(output.request_id)
                tokens = list(output.outputs[0].token_ids)
                self.recall(ask, tokens)
                yield Answer(
                    ask,
                    output.prompt_token_ids,
                    tokens,
                    output.outputs[0].finish_reason,
                    arrival - began,
                    time.perf_counter() - arrival,
                    *self._taken(ask.key),
                )

    def _before(self, ask: Ask) -> list[Message]:
        return [] if ask.after is None else self._said[ask.after]

    def _submit(self, ask: Ask) -> None:
        prompt = self._tokenizer.apply_chat_template(
            [*self._before(ask), *ask.messages], add_generation_prompt=True, return_dict=False
        )
        params = self._params(
            detokenize=False,
            extra_args={"watch_eos": ask.key},
            frequency_penalty=FREQUENCY_PENALTY,
            max_tokens=CAP,
            min_p=MIN_P,
            output_kind=self._final,
            seed=ask.seed,
            temperature=ask.temperature,
        )
        self._engine.add_request(ask.key, {"prompt_token_ids": prompt}, params)


def row_of(answer: Answer) -> journal.Row:
    """An answer as a row of a history."""
    ask = answer.ask
    return {
        "request_id": ask.key,
        "model": MODEL,
        "client_id": ask.kind,
        "session_id": ask.session,
        "prompt_id": ask.prompt_id,
        "arrival_time": round(answer.arrival, 3),
        "turn": ask.turn,
        "sample": ask.sample,
        "prompt_length": len(answer.prompt),
        "max_length": CAP,
        "actual_length": len(answer.output),
        "actual_time": round(answer.seconds, 3),
        "finish_reason": answer.reason,
        "temperature": ask.temperature,
        "prompt_text": ask.prompt_text,
        "prompt_token_ids": answer.prompt,
        "output_token_ids": answer.output,
        "eos_logprob": [round(value, 3) for value in answer.eos_logprob],
        "entropy": [round(value, 3) for value in answer.entropy],
    }


def record(model: Path, output: Path, limit: int | None) -> list[journal.Row]:
    """Run what is left of the plan; returns all rows, those of earlier runs too."""
    growing = output.with_suffix(".jsonl")
    asks = plan()[:limit]
    rows = journal.read(growing)
    done = {row["request_id"]: row["output_token_ids"] for row in rows}
    check(plan(), set(done))
    left = [ask for ask in asks if ask.key not in done]
    say(f"{len(done):,} answers are there, {len(left):,} to record")
    if not left:
        return rows
    recording = Recording(model)
    for ask in asks:
        if ask.key in done:
            recording.recall(ask, done[ask.key])
    started, tokens, fresh = time.perf_counter(), 0, []
    end = max((row["arrival_time"] + row["actual_time"] for row in rows), default=0.0)
    for count, answer in enumerate(recording.run(left, end), 1):
        fresh.append(row_of(answer))
        tokens += len(answer.output)
        if count % FLUSH == 0 or count == len(left):
            journal.append(growing, fresh)
            rows += fresh
            fresh = []
            speed = tokens / (time.perf_counter() - started)
            minutes = (len(left) - count) * tokens / count / speed / 60
            say(f"{count:,} of {len(left):,}; {speed:.0f} tokens/s; {minutes:.0f} min left")
    return rows


def main(argv: list[str] | None = None) -> None:
    """Record, and write the Parquet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--output", type=Path, default=Path("answers.parquet"))
    parser.add_argument("--limit", type=int, help="only the first so many answers of the plan")
    args = parser.parse_args(argv)
    rows = record(args.model, args.output, args.limit)
    journal.write_parquet(rows, args.output)
    say(f"{len(rows):,} answers in {args.output} ({args.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
