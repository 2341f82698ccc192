"""The policies in an engine of your own: who is admitted next, with and without prediction.

python examples/own_engine.py
"""

from collections import deque

import numpy as np

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.policies.forecast import PredictedLengths
from sagellm_lifetime.policies.ordering import SERVICES, in_line, places
from sagellm_lifetime.policies.state import Sequences
from sagellm_lifetime.workloads import generate

SLOTS, STEP_S = 8, 0.03  # an engine that runs eight sequences, one token of each in a step
log = generate("chat", 1200, seed=3, capped_share=0.0, abort_share=0.0)
history, load = log.head(900), log.tail(300).to_dicts()
rng = np.random.default_rng(0)
mean = np.mean([row["actual_length"] for row in load])
arrivals = np.cumsum(rng.exponential(STEP_S * mean / SLOTS / 1.3, len(load)))  # 1.3 × capacity


def describe(i: int) -> PredictionRequest:
    row = load[i]
    features = {"client_id": row["client_id"], "prompt_length": row["prompt_length"]}
    return PredictionRequest(i, [], 0, row["max_length"], features)


def serve(order: str) -> np.ndarray:
    """Return the latency of every request in seconds."""
    ahead = PredictedLengths(create_predictor("survival", seed=0).fit(history))
    waiting, running, latency = [], {}, np.zeros(len(load))
    coming, now = deque(range(len(load))), 0.0
    while coming or waiting or running:
        while coming and arrivals[coming[0]] <= now:
            ahead.arrived(describe(coming[0]))
            waiting.append(coming.popleft())
        if waiting and len(running) < SLOTS:
            zeros = np.zeros(len(waiting), dtype=np.int64)
            prompts = np.array([load[i]["prompt_length"] for i in waiting])
            queue = Sequences(prompts, zeros, prompts, arrivals[waiting], zeros, zeros, zeros > 0)
            forecast = ahead.forecast(waiting, zeros)
            line = places(queue, forecast, service=SERVICES[order], patience=0.1, horizon=120.0)
            chosen = [waiting[i] for i in in_line(queue, line)][: SLOTS - len(running)]
            running |= dict.fromkeys(chosen, 0)
            waiting = [i for i in waiting if i not in running]
        now += STEP_S
        for i in list(running):
            running[i] += 1
            if running[i] >= load[i]["actual_length"]:
                latency[i] = now - arrivals[i]
                ahead.finished(i, running.pop(i), latency[i], "stop")
    return latency


for order, name in (("fcfs", "arrival"), ("length", "shortest predicted")):
    seconds = serve(order)
    print(f"{name:>18} first: mean {seconds.mean():5.1f} s, longest {seconds.max():5.1f} s")
