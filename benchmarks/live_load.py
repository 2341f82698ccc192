"""A real model under load, with and without prediction: five servers, one after another.

    python tools/fetch_model.py smollm2 models/smollm2
    PYTHONPATH=src python benchmarks/record_answers.py models/smollm2 --output answers.parquet
    PYTHONPATH=src python benchmarks/live_load.py models/smollm2 --data answers.parquet \\
        --runs runs.jsonl --report report.md
    PYTHONPATH=src python benchmarks/live_load.py models/smollm2 --data answers.parquet \\
        --check-shadow

Needs the ``[vllm]`` extra. The last ``--requests`` rows of the recording are sent over HTTP as a
Poisson process on the engine's own clock (``live/clocks.py``); what came before, without other
answers to the same prompts, has taught the predictor. Every request generates as many tokens as
were recorded: a logits processor forbids the end before and forces it there (``live/end_at.py``),
and no scheduler but the oracle's knows. The capacity is measured first, on vLLM's own scheduler;
loads are shares of it. Each run is one line of ``--runs``, so that what was interrupted goes on
where it stopped; the engine's logs lie beside. About four minutes an arm on two cores.

With ``--states`` (what ``record_hidden.py --answers`` keeps beside its output) the arm
``lifetime-hidden`` has learned from the hidden states of the rows before, too; without it the
hidden score is learned during the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from common import say
from live import client, material, page, steps
from live.arms import ARMS, Setting, ours, theirs
from live.clocks import EngineClock
from live.figures import figures
from live.server import Server

LOADS = {"overload": 1.5, "knee": 0.9}
"""Shares of the capacity."""
CAP = 1024
"""Every request's ``max_tokens``, where the model length leaves room for it."""
DISTURBED = 1.5
"""A run whose steps took longer than so many times what they cost in the capacity run is not
counted, whatever came of it. Requests come by what the engine has done, so all arms have the same
load at any pace; but a machine that is so busy delays one process more than another."""
TRIES = 3
COMMAND = (sys.executable, "-m", "live.start", "engine", "start")


class Bench:
    """A recording, an engine, and the runs made so far.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = options.model.resolve()
        self.setting = Setting(
            blocks=options.blocks,
            block_size=32,
            max_num_seqs=options.seqs,
            max_num_batched_tokens=options.model_len,
            max_model_len=options.model_len,
        )
        frame = material.read(options.data)
        self.served = material.served_name(frame)
        cap = min(CAP, options.model_len // 2)
        self.parts = material.parts(
            frame, options.requests, prompt=options.model_len - cap, answer=cap
        )
        self.trace = material.trace_of(self.parts.load, seed=options.seed, cap=cap)
        self.logs = options.runs.resolve().with_suffix("")
        self.logs.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.logs / "predictor"
        if not self.checkpoint.exists():
            material.teach(self.parts.train, options.predictor, self.checkpoint, cap)
            say(f"{options.predictor} has learned from {len(self.parts.train):,} answers")
        self.with_hidden = self.checkpoint
        if options.states is not None:
            self.with_hidden = self.logs / "predictor-hidden"
            if "lifetime-hidden" in options.arms and not self.with_hidden.exists():
                source = material.source_of(self.model)
                read = material.with_states(self.parts.train, options.states, source)
                material.teach(read, options.predictor, self.with_hidden, cap)
        self.identity = {
            "blocks": options.blocks,
            "seqs": options.seqs,
            "model_len": options.model_len,
            "requests": options.requests,
            "seed": options.seed,
            "clock": "engine",
            "first": self.parts.load["request_id"][0] if "request_id" in frame.columns else "",
        }
        text = options.runs.read_text(encoding="utf-8") if options.runs.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        mine = [line for line in lines if line["setting"] == self.identity]
        self.runs = [line for line in mine if line["pace"] <= DISTURBED]
        self.disturbed = [line for line in mine if line["pace"] > DISTURBED]

    def capacity(self) -> dict[str, Any]:
        """Requests a second that vLLM's own scheduler gets done; measured once."""
        early = material.trace_of(self.parts.early, seed=0, cap=self.trace[0].max_length)
        run = self.run("capacity", "fcfs", early, None, 0.0)
        if "rate" not in run:
            run["rate"] = steps.capacity(self.log_of(run))
            # As many requests a second of the load generate more or fewer tokens than of these.
            said = [sum(r.output_length for r in t) / len(t) for t in (early, self.trace)]
            run["rate"] *= said[0] / said[1]
        return run

    def run(
        self, load: str, arm: str, trace: list[Any], rate: float | None, watermark: float
    ) -> dict[str, Any]:
        """One arm, unless it is there already; once more where something disturbed it."""
        for line in self.runs:
            if (line["load"], line["arm"]) == (load, arm):
                return line
        for attempt in range(TRIES):
            line = self.attempt(load, arm, trace, rate, watermark, attempt)
            if line["pace"] <= DISTURBED:
                break
            self.disturbed.append(line)
            say(f"{load}, {arm}: disturbed, steps took {line['pace']:.2f} times what they cost")
        else:
            raise SystemExit("the machine has too much else to do: nothing of this can be compared")
        self.runs.append(line)
        return line

    def attempt(
        self,
        load: str,
        arm: str,
        trace: list[Any],
        rate: float | None,
        watermark: float,
        attempt: int,
    ) -> dict[str, Any]:
        """Run an arm and write its line."""
        name = f"{load}-{arm}" + (f"-{attempt + 1}" if attempt else "")
        log, state = self.logs / f"{name}.jsonl", self.logs / f"{name}-state"
        shutil.rmtree(state, ignore_errors=True)  # what an earlier run has learned
        extra = (*theirs(arm, log, watermark), *self.options.vllm)
        checkpoint = self.with_hidden if arm == "lifetime-hidden" else self.checkpoint
        say(f"{name}: {len(trace)} requests, {ARMS[arm]}")
        with Server(
            [*COMMAND, str(self.model), *ours(arm, checkpoint, state)],
            self.setting.options(self.served, extra),
            self.logs / f"{name}.log",
        ) as server:
            asyncio.run(client.warm_up(trace, server.url, self.served))
            clock = self.clock(log) if rate is not None else None
            sent = material.at_load(trace, rate)
            seen = asyncio.run(client.play(sent, server.url, self.served, clock))
            stats = server.stats() if arm not in ("fcfs", "fcfs-watermark") else None
        line = {
            "setting": self.identity,
            "load": load,
            "arm": arm,
            "rate_asked": rate,
            "watermark": watermark,
            "seen": seen,
            "stats": stats,
            "log": log.name,
        }
        self.check(line, trace)
        line["pace"] = self.pace(line)
        with self.options.runs.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def clock(self, log: Path) -> EngineClock:
        """That of an engine, by what its steps cost in the capacity run."""
        return EngineClock(log, steps.fit_cost(self.log_of(self.capacity()).steps))

    def pace(self, line: dict[str, Any]) -> float:
        """How long the steps of a run took, measured by what they cost in the first one."""
        if line["load"] == "capacity":
            return 1.0
        cost = steps.fit_cost(self.log_of(self.capacity()).steps)
        return steps.pace(self.log_of(line), cost)

    def log_of(self, run: dict[str, Any]) -> steps.Log:
        """The engine's log of a run."""
        return steps.read(self.logs / run["log"], run["seen"])

    def check(self, run: dict[str, Any], trace: list[Any]) -> None:
        """Whether everybody got what was asked for.

        Raises:
            SystemExit: somebody did not.
        """
        log = self.log_of(run)
        for request in trace:
            told, done = run["seen"][request.id], log.requests[request.id]
            wanted = (200, request.output_length, request.output_length)
            if (told["status"], told["tokens"], done["output"]) != wanted:
                raise SystemExit(f"{run['load']}, {run['arm']}: {request.id}: {told}, {done}")

    def load(self, name: str, arms: list[str]) -> None:
        """All arms of one load."""
        from live.replayed import tuned_watermark

        able = self.capacity()
        rate = LOADS[name] * able["rate"]
        trace = material.at_load(self.trace, rate)
        known = [line["watermark"] for line in self.runs if line["load"] == name]
        if known:
            watermark = known[0]
        else:
            cost = steps.fit_cost(self.log_of(able).steps)
            watermark = tuned_watermark(trace, self.setting, cost)
            say(f"{name}: {rate:.3f} requests/s, watermark {watermark:g}; {steps.describe(cost)}")
        for arm in arms:
            self.run(name, arm, self.trace, rate, watermark)

    def report(self) -> str:
        """A page of all runs."""
        from live.replayed import replayed, replayed_as_it_came

        from sagellm_lifetime import load_predictor

        arms = [line for line in self.runs if line["load"] in LOADS]
        logs = {(line["load"], line["arm"]): self.log_of(line) for line in arms}
        cost = steps.fit_cost([step for log in logs.values() for step in log.steps])
        predictor = load_predictor(self.checkpoint)
        pages = [
            page.head(
                self.served,
                len(self.parts.train),
                self.capacity()["rate"],
                steps.describe(cost),
                list(ARMS),
            )
        ]
        for name, share in LOADS.items():
            lines = {line["arm"]: line for line in arms if line["load"] == name}
            if not lines:
                continue
            live = {
                arm: figures(logs[name, arm], lines[arm]["seen"], cost)
                for arm in ARMS
                if arm in lines
            }
            one = next(iter(lines.values()))
            rate, watermark = one["rate_asked"], one["watermark"]
            trace = material.at_load(self.trace, rate)
            title = (
                f"{name.capitalize()}: {len(trace)} requests, {rate:.3f} a second "
                f"({share:g} × capacity), {self.setting.blocks} blocks of 32 tokens, "
                f"watermark tuned to {watermark:g}"
            )
            found = replayed(trace, self.setting, cost, predictor, watermark)
            keys = [request.id for request in trace]
            arrivals = {
                arm: steps.as_they_came(logs[name, arm], keys, cost) for arm in found if arm in live
            }
            came = replayed_as_it_came(trace, arrivals, self.setting, cost, predictor, watermark)
            for arm, line in lines.items():
                live[arm]["counts"]["pace"] = line["pace"]
            pages.append(
                page.section(
                    {
                        "title": title,
                        "live": live,
                        "replayed": found,
                        "came": came,
                        "stats": {a: line["stats"] for a, line in lines.items() if line["stats"]},
                    }
                )
            )
        missing = [f"{load}, {arm}" for load in LOADS for arm in ARMS if (load, arm) not in logs]
        return "\n".join([*pages, page.left_out(self.disturbed, missing)])


def main(argv: list[str] | None = None) -> None:
    """Run what is not there yet, and report on everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--data", type=Path, required=True, help="recording with token ids")
    parser.add_argument("--runs", type=Path, default=Path("live-runs.jsonl"))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--loads", nargs="*", choices=list(LOADS), default=list(LOADS))
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--blocks", type=int, default=128, help="of 32 tokens")
    parser.add_argument("--seqs", type=int, default=64, help="running at once, at most")
    parser.add_argument("--model-len", type=int, default=2048)
    parser.add_argument("--predictor", default="survival")
    parser.add_argument("--states", type=Path, help="hidden states of the recording")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check-shadow", action="store_true", help="and nothing else")
    parser.add_argument("--vllm", nargs=argparse.REMAINDER, default=[], help="further options")
    options = parser.parse_args(argv)
    bench = Bench(options)
    if options.check_shadow:
        from live.unchanged import check_shadow

        raise SystemExit(check_shadow(bench))
    for name in options.loads:
        bench.load(name, options.arms)
    text = bench.report()
    print(text)
    if options.report is not None:
        options.report.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
