"""The loop of a router or an engine: ask about all running sequences at once, at every step.

python examples/step_loop.py
"""

import time

import numpy as np

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.workloads import generate

BATCH, STEPS = 64, 2000
log = generate("chat", 3000, seed=2, capped_share=0.0, abort_share=0.0)
predictor = create_predictor("survival", capacity=4 * BATCH).fit(log.head(1500))
requests = iter(log.tail(1500).iter_rows(named=True))
generated: dict[str, int] = {}  # the running sequences, by id: tokens generated so far
length: dict[str, int] = {}  # what a real engine does not know
spent, missed, finished, asked = 0.0, 0, 0, 0
promised: dict[str, int] = {}  # 90 % quantile of the total, said at admission

for _ in range(STEPS):
    while len(generated) < BATCH:  # admit: one request object for each new sequence, once
        row = next(requests)
        name = f"request-{finished + len(generated)}"
        features = {"client_id": row["client_id"], "prompt_length": row["prompt_length"]}
        result = predictor.predict(PredictionRequest(name, [], 0, row["max_length"], features))
        generated[name], length[name] = 0, max(row["actual_length"], 1)
        promised[name] = result.distribution.quantile(0.9)

    began = time.thread_time()  # every step: arrays in, arrays out, no objects
    ids, ages = list(generated), np.fromiter(generated.values(), np.int64)
    median, high = predictor.quantiles(ids, ages, [0.5, 0.9]).T
    spent, asked = spent + time.thread_time() - began, asked + len(ids)

    for name in ids:  # the model generates one token of each
        generated[name] += 1
        if generated[name] >= length[name]:
            predictor.update(name, length[name], actual_time=0.02 * length[name])
            missed += length[name] > promised[name]
            finished += 1
            del generated[name], length[name], promised[name]

print(f"{STEPS:,} steps with {BATCH} running sequences, {finished} finished")
print(f"{1e6 * spent / asked:.2f} µs for each sequence and step")
print(f"{100 * missed / finished:.0f} % were longer than their 90 % quantile said at admission")
print(f"Now running: {median.sum():,} tokens to come (sum of medians),")
print(f"{high.sum():,} if each were as long as its 90 % quantile")
