"""Real answers of a small chat model, recorded: the plan of ``answers/`` through vLLM.

    python tools/fetch_model.py smollm2 models/smollm2
    PYTHONPATH=src python benchmarks/record_answers.py models/smollm2 --output answers.parquet

Needs the ``[vllm]`` extra. Sampling is on (temperatures and seeds of the plan, min-p, a penalty on
frequent tokens), at most 1,024 tokens an answer. The rows are those of the live engine's recorder,
in a folder beside the output (``.recording``); an interrupted recording, killed or not, goes on
where that stopped. At the end they are joined with what only the plan knows, and made one Parquet;
with ``--limit`` only the first so many are asked. About an hour on two cores.

With ``--low`` each prompt is asked at temperature 0 or 0.2, at most 512 tokens an answer: the
recording ``smollm2-low-temperature`` of the package.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from answers.plan import Ask, Message, check, plan
from answers.recording import answered, joined, write_parquet
from common import say

from sagellm_lifetime.core.errors import HistoryError

MIN_P = 0.05
"""Cuts off what a top-p would, without its sort of the vocabulary: half the time of a step."""
FREQUENCY_PENALTY = 0.3
"""Ends the loops so small a model falls into. Not vLLM's repetition penalty: that one counts the
prompt too, where every message ends in the token that would end the answer."""
PREFILLED = 3500
"""Most prompt tokens that are submitted before a step, so that none is prefilled in chunks: vLLM
cannot rewind the random generator of such a sequence on a CPU."""
SAID_EVERY = 16
"""Answers between two lines of progress."""
MODEL = "SmolLM2-135M-Instruct"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a recording is limited to.

    Attributes:
        cap: most tokens of an answer.
        running: most sequences at a time.
    """

    cap: int
    running: int


USUAL, LOW = Limits(cap=1024, running=64), Limits(cap=512, running=128)
"""Limits at the usual temperatures, and at low ones, where small models fall into loops."""


class Recording:
    """The engine at work on a plan, with the live scheduler, which predicts nothing but records.

    Args:
        model: folder of the model.
        folder: where the recorder writes.
        limits: of tokens and sequences.
    """

    def __init__(self, model: Path, folder: Path, limits: Limits = USUAL) -> None:
        os.environ.update(ENVIRONMENT)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB
        from sagellm_lifetime.vllm.launch.server import SCHEDULER
        from sagellm_lifetime.vllm.logits_processor import EosWatch  # first: it mends imports
        from sagellm_lifetime.vllm.settings import KEY, LiveSettings

        from vllm import LLM, SamplingParams  # isort: skip
        from vllm.sampling_params import RequestOutputKind

        settings = LiveSettings(
            predict=False, mode="off", signals=True, record=str(folder), content=True
        )
        self._params = SamplingParams
        self._final = RequestOutputKind.FINAL_ONLY
        self._llm = LLM(
            str(model),
            additional_config={KEY: settings.json()},
            block_size=32,
            distributed_executor_backend="uni",
            dtype="float32",
            enforce_eager=True,
            logits_processors=[EosWatch],
            max_num_seqs=limits.running,
            scheduler_cls=SCHEDULER,
            served_model_name=MODEL,
        )
        self._engine = self._llm.llm_engine
        self._tokenizer = self._llm.get_tokenizer()
        self._said: dict[str, list[Message]] = {}
        self._limits = limits

    def recall(self, ask: Ask, output: Sequence[int]) -> None:
        """What was said up to the end of an answer, for the turn that follows."""
        text = self._tokenizer.decode(output, skip_special_tokens=True)
        answer = {"role": "assistant", "content": text}
        self._said[ask.key] = [*self._before(ask), *ask.messages, answer]

    def run(self, asks: Sequence[Ask]) -> Iterator[int]:
        """Have all of them answered, as many at a time as the engine runs; yields their lengths.

        Args:
            asks: what is still to be asked; what it follows was answered, or stands before it.
        """
        waiting, running = list(asks), {}
        while waiting or running:
            ready = [ask for ask in waiting if ask.after is None or ask.after in self._said]
            prefilled = 0
            for ask in ready[: self._limits.running - len(running)]:
                prompt = self._prompt(ask)
                prefilled += len(prompt)
                if prefilled > PREFILLED and prefilled > len(prompt):
                    break
                waiting.remove(ask)
                running[ask.key] = ask
                self._submit(ask, prompt)
            for output in self._engine.step():
                tokens = output.outputs[0].token_ids
                self.recall(running.pop(output.request_id), tokens)
                yield len(tokens)

    def close(self) -> None:
        """Have the recorder write the rest."""
        self._engine.engine_core.shutdown()

    def _before(self, ask: Ask) -> list[Message]:
        return [] if ask.after is None else self._said[ask.after]

    def _prompt(self, ask: Ask) -> list[int]:
        messages = [*self._before(ask), *ask.messages]
        prompt: list[int] = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        return prompt

    def _submit(self, ask: Ask, prompt: list[int]) -> None:
        who = {"client_id": ask.kind, "session_id": ask.session, "turn": ask.turn}
        params = self._params(
            detokenize=False,
            extra_args=who,
            frequency_penalty=FREQUENCY_PENALTY,
            max_tokens=self._limits.cap,
            min_p=MIN_P,
            output_kind=self._final,
            seed=ask.seed,
            temperature=ask.temperature,
        )
        self._engine.add_request(ask.key, {"prompt_token_ids": prompt}, params)


def record(
    model: Path, folder: Path, limit: int | None = None, *, low: bool = False
) -> pl.DataFrame:
    """Run what is left of the plan; returns all rows, those of earlier runs too.

    Args:
        model: folder of the model.
        folder: where the recorder writes.
        limit: only the first so many answers of the plan.
        low: True for the plan of low temperatures.

    Raises:
        SystemExit: the folder is not of this plan, is in use, or lacks what was to be recorded.
    """
    asks, rows = plan(low=low), answered(folder)
    done = dict(rows.select("request_id", "output_token_ids").iter_rows())
    check(asks, set(done))
    asked = asks[:limit]
    left = [ask for ask in asked if ask.key not in done]
    say(f"{len(done):,} answers are there, {len(left):,} to record")
    if left:
        recording = Recording(model, folder, LOW if low else USUAL)
        for ask in asked:
            if ask.key in done:
                recording.recall(ask, done[ask.key])
        try:
            _follow(recording.run(left), len(left))
        finally:
            recording.close()
        rows = answered(folder)
        lost = {ask.key for ask in left} - set(rows["request_id"])
        if lost:
            raise SystemExit(f"error: {folder}: {len(lost)} answers were not written: run it again")
    return joined(rows, asks)


def _follow(lengths: Iterator[int], planned: int) -> None:
    """Say how far it is."""
    started, tokens = time.perf_counter(), 0
    for count, length in enumerate(lengths, 1):
        tokens += length
        if count % SAID_EVERY == 0 or count == planned:
            speed = tokens / (time.perf_counter() - started)
            minutes = (planned - count) * tokens / count / speed / 60
            say(f"{count:,} of {planned:,}; {speed:.0f} tokens/s; {minutes:.0f} min left")


def main(argv: list[str] | None = None) -> None:
    """Record, and write the Parquet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--output", type=Path, default=Path("answers.parquet"))
    parser.add_argument("--limit", type=int, help="only the first so many answers of the plan")
    parser.add_argument("--low", action="store_true", help="temperatures 0 and 0.2")
    args = parser.parse_args(argv)
    folder = args.output.with_suffix(".recording")
    try:
        rows = record(args.model, folder, args.limit, low=args.low)
    except HistoryError as error:
        raise SystemExit(f"error: {error}") from error
    write_parquet(rows, args.output)
    say(f"{len(rows):,} answers in {args.output} ({args.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
