"""What live prediction adds to a step of vLLM's scheduler, without a model.

    PYTHONPATH=src python benchmarks/step_cost.py [--output docs/lab/step-cost.md] [--runs 3]
    PYTHONPATH=src python benchmarks/step_cost.py --length 2000 [--tight] [--parts] [--mode act]

The first measures the settings of the page in ``--runs`` rounds and writes it; the second prints
one setting.

A step here is what was added to the queue before it, ``schedule`` and ``update_from_output``, with
``--running`` sequences. Answers are ``--length`` tokens long on average, so in a step ``running /
length`` of them end and as many come: 0.64 of 400 tokens (chat), 0.13 of 2,000 (reasoning). Two
schedulers, vLLM's own and ours, take turns every few steps, so that a busy machine slows both down;
times are processor time of the thread. A process of its own learns, unless ``--no-learning`` says
otherwise; what is handed to it counts. The predictor has seen a thousand such answers before.

What ours adds is the difference of the two. With ``--parts``, and on the page, it is the time
inside our calls instead: the difference of two noisy figures says less, and with ``--tight`` ours
keeps more sequences running, so that vLLM's code has more to do.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from common import code, say, table, write_page

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.replay.engine import STOP, EngineSettings, build_scheduler
from sagellm_lifetime.vllm.settings import LiveSettings
from sagellm_lifetime.vllm.time_budget import TimeLimit

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "step-cost.md"
GOAL = 0.02
"""Share of the scheduler's time that predictions and policy may take."""
LENGTHS = ((400, False), (2000, False), (400, True))
"""Settings of the page: mean tokens of an answer, and whether memory is short."""
STEPS, STEPS_TIGHT = 600, 1500
MODES = ("off", "shadow", "act")
PROMPT = 128
"""Tokens, on average: from half to one and a half of it, so that no two are alike."""
LONGEST = 8
"""Caps are so many times the mean length."""
TURN = 10
"""Steps before it is the other's turn: Python adapts its code to the class it runs on, which takes
part of a step each time."""
TAUGHT = 1000
CALLS = (
    *("_prepare", "_account", "_compare_preemption"),
    *("_arrived", "_preempted", "_finished"),
)
SETTINGS = EngineSettings(blocks=60_000, max_num_seqs=512, max_num_batched_tokens=65_536)


class Parts:
    """Time inside the calls that a scheduler makes of ours, by their names."""

    def __init__(self):
        self.total, self.calls, self.spent, self.deep = Counter(), Counter(), 0.0, False

    def watch(self, owner, names):
        """Measure these methods of an object; of calls inside calls, the outer one."""
        for name in names:
            if hasattr(owner, name):
                setattr(owner, name, self.timed(name, getattr(owner, name)))

    def timed(self, name, function):
        def call(*args, **options):
            if self.deep:
                return function(*args, **options)
            self.deep, started = True, time.thread_time()
            try:
                return function(*args, **options)
            finally:
                cost = time.thread_time() - started
                self.deep = False
                self.spent += cost
                self.total[name] += cost
                self.calls[name] += 1

        return call

    def take(self):
        """Seconds since the last time."""
        spent, self.spent = self.spent, 0.0
        return spent


class Turn:
    """One scheduler that is stepped."""

    def __init__(self, cls, settings, running, length):
        self.scheduler = build_scheduler(settings, 2 * PROMPT + LONGEST * length, cls)
        self.rng = np.random.default_rng(0)
        self.running, self.length = running, length
        self.lengths = {}
        self.costs, self.eventful, self.scheduled, self.inside = [], [], [], []
        self.parts = Parts()

    def fill(self):
        """Let as many come as have ended; seconds it took."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        cost = 0.0
        while len(self.scheduler.requests) < self.running:
            name = f"r{len(self.lengths)}"
            self.lengths[name] = int(self.rng.exponential(self.length)) + 2
            params = SamplingParams(
                max_tokens=LONGEST * self.length, stop_token_ids=[STOP], detokenize=False
            )
            prompt = int(self.rng.integers(PROMPT // 2, PROMPT * 3 // 2))
            if not self.costs:  # who is there at the start has come a while ago
                prompt += min(int(self.rng.exponential(self.length)), 4 * self.length)
            request = Request(name, [5] * prompt, params, None, arrival_time=time.time())
            started = time.thread_time()
            self.scheduler.add_request(request)
            cost += time.thread_time() - started
        return cost

    def step(self):
        """One step."""
        from vllm.v1.outputs import ModelRunnerOutput

        scheduler = self.scheduler
        there = len(self.lengths)
        cost = self.fill()
        started = time.thread_time()
        out = scheduler.schedule()
        cost += time.thread_time() - started
        names = list(out.num_scheduled_tokens)
        tokens = [self.token(scheduler.requests[name]) for name in names]
        output = ModelRunnerOutput(names, {n: i for i, n in enumerate(names)}, tokens)
        started = time.thread_time()
        scheduler.update_from_output(out, output)
        self.costs.append(cost + time.thread_time() - started)
        self.eventful.append(len(self.lengths) > there or len(scheduler.requests) < self.running)
        self.scheduled.append(len(names))
        self.inside.append(self.parts.take())

    def token(self, request):
        """What the model would say: nothing before it has read all of the prompt."""
        if request.num_computed_tokens < request.num_tokens:
            return []
        return [STOP] if request.num_output_tokens + 1 >= self.lengths[request.request_id] else [7]


def taught(name, length, model_config):
    """A predictor that knows such answers."""
    predictor = create_predictor(name)
    served = model_config.served_model_name
    said = {"model": served[0] if isinstance(served, list) else str(served)}
    rng = np.random.default_rng(1)
    for i in range(TAUGHT):
        prompt = int(rng.integers(PROMPT // 2, PROMPT * 3 // 2))
        features = {**said, "prompt_length": prompt}
        predictor.predict(PredictionRequest(i, [], 0, LONGEST * length, features))
        predictor.update(i, int(rng.exponential(length)) + 2, 1.0)
    return predictor


def measure(args, predictor, mode):
    """Both schedulers after their steps, and our breaker's state."""
    from sagellm_lifetime.vllm import build
    from sagellm_lifetime.vllm.live import LiveScheduler, Scheduler

    settings = SETTINGS
    if args.tight:  # seven tenths of what all would hold
        blocks = int(args.running * (PROMPT + args.length) / 16 * 0.7)
        settings = replace(SETTINGS, blocks=blocks)
    stock, ours = (
        Turn(cls, settings, args.running, args.length) for cls in (Scheduler, LiveScheduler)
    )
    made = taught(predictor, args.length, ours.scheduler.vllm_config.model_config)
    build.make_predictor = lambda *_: made
    # A busy machine may keep a call waiting for seconds: no reason to stop here.
    live = LiveSettings(mode=mode, learn=args.learning, limit_s=60.0, floor_s=60.0)
    ours.scheduler.switch_on(live)
    # As in an engine core's own process, whose thread makes all calls itself.
    ours.scheduler.advisor.breaker._limit = TimeLimit(live.limit_s, "alarm")
    for turn in (stock, ours):
        turn.step()
    if args.parts:
        ours.parts.watch(ours.scheduler, CALLS)
    gc.collect()
    gc.freeze()  # as vLLM does once an engine has started
    for _ in range(-(-args.steps // TURN)):
        for turn in (stock, ours):
            for _ in range(TURN):
                turn.step()
    ours.scheduler.shutdown()
    return stock, ours, ours.scheduler.advisor.breaker.state


@dataclass(frozen=True)
class Cost:
    """What ours adds to a step in one setting and mode."""

    length: int
    tight: bool
    mode: str
    vllm_us: float
    mean_us: float
    mean: float
    """Share of vLLM's time, over all steps."""
    median: float
    """Share of vLLM's, of the median step."""
    breaker: str


def cost_of(args, mode):
    """Measure one setting in one mode; costs are those inside our calls."""
    stock, ours, breaker = measure(args, "survival", mode)
    start = args.steps // 4
    theirs = 1e6 * np.array(stock.costs[start:])
    extra = 1e6 * np.array(ours.inside[start:])
    share, middle = extra.mean() / theirs.mean(), np.median(extra) / np.median(theirs)
    return Cost(args.length, args.tight, mode, theirs.mean(), extra.mean(), share, middle, breaker)


PAGE = """# The cost of a step

{made}. At {running} running sequences, predictions and policy take {shadow} of the time of vLLM's
scheduler in `shadow` and {act} in `act` (mean, answers of 400 tokens); where memory is short,
{shadow_tight} and {act_tight}. The goal, {goal:.0%}, is {met}.

    PYTHONPATH=src python benchmarks/step_cost.py

{table}

vLLM's scheduler and ours take turns, without a model; `survival`, learning in a process of its
own. *vLLM*: processor time of a step of the stock scheduler. *Ours*: processor time inside our
calls. The shares are of all steps (mean) and of the median step. Rounds: {runs}, of which the
median is shown; each of {steps} steps ({steps_tight} where memory is short: the pool holds seven
tenths of what all sequences need), the first quarter left out.{breakers}

How events are batched: [a running engine](../explanation/live-engine.md#what-it-costs).
"""


def page(rounds, running, made):
    """Return the page of ``docs/lab`` from the costs of each round."""
    by = {}
    for cost in (cost for each in rounds for cost in each):
        by.setdefault((cost.length, cost.tight, cost.mode), []).append(cost)

    def middle(key, value):
        return median(getattr(cost, value) for cost in by[key])

    rows = [
        [
            f"{length:,} tokens{', memory short' if tight else ''}",
            mode,
            f"{middle((length, tight, mode), 'vllm_us'):,.0f}",
            f"{middle((length, tight, mode), 'mean_us'):.0f}",
            f"{middle((length, tight, mode), 'mean'):.1%}",
            f"{middle((length, tight, mode), 'median'):.1%}",
        ]
        for length, tight, mode in by
    ]
    over = [
        f"{row[0]} in `{row[1]}`"
        for row, key in zip(rows, by, strict=True)
        if middle(key, "mean") > GOAL
    ]
    opened = [key for key, costs in by.items() if any(cost.breaker != "closed" for cost in costs)]
    shares = {
        f"{mode}{'_tight' if tight else ''}": f"{middle((400, tight, mode), 'mean'):.1%}"
        for mode in ("shadow", "act")
        for tight in (False, True)
    }
    return PAGE.format(
        made=made,
        running=running,
        goal=GOAL,
        met=f"missed by {'; '.join(over)}" if over else "met everywhere",
        table=table(["answers", "mode", "vLLM, µs", "ours, µs", "mean", "median step"], rows),
        runs=len(rounds),
        steps=STEPS,
        steps_tight=f"{STEPS_TIGHT:,}",
        breakers=f" The circuit breaker opened in {opened}." if opened else "",
        **shares,
    )


def write(args):
    """Measure the settings of the page and write it."""
    made, rounds = code(), []
    for number in range(args.runs):
        rounds.append([])
        for length, tight in LENGTHS:
            for mode in MODES:
                say(f"round {number + 1}: {length} tokens{', memory short' * tight}, {mode}")
                args.length, args.tight, args.parts = length, tight, True
                args.steps = STEPS_TIGHT if tight else STEPS
                rounds[-1].append(cost_of(args, mode))
    write_page(args.output, page(rounds, args.running, made))


def main():
    """Write the page, or print one setting if options name one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="the page to write")
    parser.add_argument("--runs", type=int, default=3, help="rounds of the page")
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--length", type=int, help="of an answer, mean; print this setting only")
    parser.add_argument("--predictor", nargs="*", default=["survival"])
    parser.add_argument("--mode", nargs="*", default=list(MODES))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tight", action="store_true", help="a pool that is too small")
    parser.add_argument("--parts", action="store_true", help="measure inside our calls")
    parser.add_argument("--learning", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    if args.length is None:
        write(args)
    else:
        show(args)


def show(args):
    """Print one setting: all steps, those with arrivals and the quiet ones."""
    rate = args.running / args.length
    print(f"{args.running} sequences, {args.length} tokens each: {rate:.2f} arrivals a step")
    print("predictor  mode    steps           n  vLLM µs  ours +µs   mean    median  breaker")
    for predictor in args.predictor:
        for mode in args.mode:
            stock, ours, breaker = measure(args, predictor, mode)
            start = args.steps // 4
            theirs = 1e6 * np.array(stock.costs[start:])
            extra = 1e6 * np.array(ours.costs[start:]) - theirs
            if args.parts:
                extra = 1e6 * np.array(ours.inside[start:])
            eventful = np.array(ours.eventful[start:])
            kinds = {"all": eventful | True, "quiet": ~eventful, "with arrivals": eventful}
            for kind, rows in kinds.items():
                if not rows.any():
                    continue
                base, more = theirs[rows], extra[rows]
                print(
                    f"{predictor:10} {mode:7} {kind:13} {len(base):4} {base.mean():7.0f} "
                    f"{more.mean():+8.0f} {more.mean() / base.mean():+7.1%} "
                    f"{np.median(more) / np.median(base):+8.1%}  {breaker}"
                )
            steps = len(ours.costs) - 1
            for name, spent in ours.parts.total.most_common():
                calls = ours.parts.calls[name]
                print(
                    f"  {name:14} {1e6 * spent / steps:6.1f} µs a step, "
                    f"{calls / steps:4.2f} calls of {1e6 * spent / calls:.0f} µs"
                )
            scheduled = [np.mean(turn.scheduled[start:]) for turn in (stock, ours)]
            if args.tight:
                print("  sequences in a step: {:.0f} of vLLM's, {:.0f} of ours".format(*scheduled))


if __name__ == "__main__":
    main()
