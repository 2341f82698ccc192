"""Predict how long an answer will be, and learn from how long it was.

python examples/predict_and_learn.py
"""

import numpy as np

from sagellm_lifetime import PredictionRequest, create_predictor

rng = np.random.default_rng(0)
TYPICAL = {"classifier": 12, "summaries": 300, "agent": 1500}  # tokens: what nobody told us


def asked_by(client: str, sequence_id: int | str, generated: int = 0) -> PredictionRequest:
    return PredictionRequest(sequence_id, [], generated, 4096, {"client_id": client})


def show(client: str, sequence_id: int | str, generated: int = 0) -> None:
    result = predictor.predict(asked_by(client, sequence_id, generated))
    left = result.estimated_remaining_tokens
    low, high = result.distribution.interval(0.9)
    print(
        f"{client:>10}, {generated:4} generated: about {left:4} to go, "
        f"90 % interval {low}-{high}, confidence {result.confidence:.2f}"
    )


predictor = create_predictor("survival")
print("Before anything was learned, every client looks the same:")
for client in TYPICAL:
    show(client, f"first-{client}")

# A server would do this: ask when a request is admitted, tell when it has finished.
for number in range(600):
    client = list(TYPICAL)[number % 3]
    predictor.predict(asked_by(client, number))
    length = max(1, round(TYPICAL[client] * rng.lognormal(0.0, 0.3)))
    predictor.update(number, length, actual_time=0.02 * length)

print("After 200 finished requests of each:")
for client in TYPICAL:
    show(client, f"second-{client}")
print("The same agent, later: what it has generated already is no longer to come.")
for generated in (500, 1500, 2500):
    show("agent", "second-agent", generated)
