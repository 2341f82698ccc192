"""What live prediction adds to a step of vLLM's scheduler, without a model.

    python benchmarks/step_cost.py [--running 256] [--predictor survival lstm] [--steps 600]

A step here is ``schedule`` and ``update_from_output``; ``--running`` sequences decode, one in a
hundred steps ends and another takes its place. Two schedulers, vLLM's own and ours, take turns step
by step, so that a busy machine slows both down; times are processor time of the thread.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

from sagellm_lifetime import create_predictor
from sagellm_lifetime.engines.vllm.settings import LiveSettings
from sagellm_lifetime.replay.engine import STOP, EngineSettings, build_scheduler

MODEL_LENGTH = 4096
PROMPT = 128
LENGTH = 400
SETTINGS = EngineSettings(blocks=60_000, max_num_seqs=512, max_num_batched_tokens=65_536)


class Turn:
    """One scheduler that is stepped."""

    def __init__(self, cls, settings, running):
        self.scheduler = build_scheduler(settings, MODEL_LENGTH, cls)
        self.rng = np.random.default_rng(0)
        self.running = running
        self.lengths = {}
        self.costs = []
        self.admissions = []

    def fill(self):
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        while len(self.scheduler.requests) < self.running:
            name = f"r{len(self.lengths)}"
            self.lengths[name] = int(self.rng.exponential(LENGTH)) + 2
            params = SamplingParams(max_tokens=2048, stop_token_ids=[STOP], detokenize=False)
            request = Request(name, [5] * PROMPT, params, None, arrival_time=time.time())
            started = time.thread_time()
            self.scheduler.add_request(request)
            self.admissions.append(time.thread_time() - started)

    def step(self):
        from vllm.v1.outputs import ModelRunnerOutput

        self.fill()
        scheduler = self.scheduler
        arrived = sum(self.admissions)
        self.admissions.clear()
        started = time.thread_time()
        out = scheduler.schedule()
        cost = time.thread_time() - started
        names = list(out.num_scheduled_tokens)
        tokens = [
            [STOP] if scheduler.requests[n].num_output_tokens + 1 >= self.lengths[n] else [7]
            for n in names
        ]
        output = ModelRunnerOutput(names, {n: i for i, n in enumerate(names)}, tokens)
        started = time.thread_time()
        scheduler.update_from_output(out, output)
        self.costs.append(cost + arrived + time.thread_time() - started)


def measure(running, predictor, mode, steps, *, tight):
    """Microseconds a step of vLLM's scheduler and of ours."""
    from sagellm_lifetime.engines.vllm import build
    from sagellm_lifetime.engines.vllm.live import LiveScheduler, Scheduler

    settings = SETTINGS
    if tight:  # about as many blocks as the running ones need on average
        settings = replace(SETTINGS, blocks=int(running * (PROMPT + LENGTH) / 16 * 0.7))
    stock, ours = (Turn(cls, settings, running) for cls in (Scheduler, LiveScheduler))
    made = create_predictor(predictor)
    build.make_predictor = lambda *_: made
    ours.scheduler.switch_on(LiveSettings(mode=mode, learn=True))
    for _ in range(steps):
        stock.step()
        ours.step()
    half = steps // 4  # after the start
    theirs, both = np.array(stock.costs[half:]), np.array(ours.costs[half:])
    state = ours.scheduler.lifetime.breaker
    return theirs.mean() * 1e6, both.mean() * 1e6, np.median(both - theirs) * 1e6, state.state


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--predictor", nargs="*", default=["survival"])
    parser.add_argument("--mode", nargs="*", default=["off", "shadow", "act"])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--tight", action="store_true", help="a pool that is too small")
    args = parser.parse_args()
    print("predictor  mode    vLLM µs  ours µs   mean +%  median +µs  breaker")
    for predictor in args.predictor:
        for mode in args.mode:
            stock, ours, typical, state = measure(
                args.running, predictor, mode, args.steps, tight=args.tight
            )
            print(
                f"{predictor:10} {mode:7} {stock:7.0f} {ours:8.0f} {ours / stock - 1:8.1%} "
                f"{typical:11.0f}  {state}"
            )


if __name__ == "__main__":
    main()
