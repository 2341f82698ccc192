"""The three predictors of the specification, in our words, with the faults they have.

They stand here to be timed and to be scored, unchanged: eager PyTorch on one feature vector per
call. Each docstring says what is wrong; none of it is corrected. See ``docs/specification.md`` for
what our predictors of the same names do instead.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from typing import Any

import torch
from torch import Tensor, nn

from sagellm_lifetime import LifetimePredictorProtocol, PredictionRequest, PredictionResult

SECONDS_PER_TOKEN = 0.02
BUFFER = 1000
BATCH = 32
EVERY = 10


class ReferencePredictor(LifetimePredictorProtocol):
    """What the three share: a fixed 0.02 s per token, and metrics that nobody fills.

    Wrong: the time is a constant that nothing corrects; ``update`` keeps no prediction to compare
    with, so the list behind the metrics stays empty and every metric reads 0.
    """

    name = "reference"

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []

    def get_metrics(self) -> dict[str, Any]:
        """Always the empty metrics."""
        n = len(self.history)
        return {"total_predictions": n, "mae": 0.0, "mse": 0.0, "accuracy_within_10_percent": 0.0}

    def update(
        self, sequence_id: Any, actual_length: int, actual_time: float, *, finish_reason: str = ""
    ) -> None:
        """Learn nothing."""

    def _answer(self, remaining: int, confidence: float) -> PredictionResult:
        return PredictionResult(remaining, confidence, remaining * SECONDS_PER_TOKEN)


class ReferenceBaseline(ReferencePredictor):
    """Mean length of the last ``window_size`` sequences in a bucket of ten tokens.

    Wrong: a prediction looks in the bucket of ``max_length``, a completion is filed in the bucket
    of its own ``actual_length``. The two meet only where some other sequence ended near this
    one's cap, so a hit says "as long as its cap" and everything else is the default.
    """

    name = "reference-baseline"

    def __init__(self, window_size: int = 100) -> None:
        super().__init__()
        self._buckets: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=window_size))

    def predict(self, request: PredictionRequest) -> PredictionResult:
        """Moving average of the cap's bucket, else 80 % of the cap."""
        cap = request.max_length or 0
        lengths = self._buckets.get(cap // 10 * 10)
        total = sum(lengths) / len(lengths) if lengths else 0.8 * cap
        return self._answer(int(max(0, total - request.current_length)), 0.5)

    def update(
        self, sequence_id: Any, actual_length: int, actual_time: float, *, finish_reason: str = ""
    ) -> None:
        """File the completion under its own length."""
        self._buckets[actual_length // 10 * 10].append(actual_length)


class ReferenceLSTM(ReferencePredictor):
    """Two layers of LSTM over a sequence of one step, and a linear layer.

    Wrong: with one step there is nothing to recur to, so the recurrent weights (131,072 of 200,321
    parameters) do nothing; the inputs are raw token counts beside a ratio; the optimizer holds the
    LSTM's parameters only, so the output layer stays as it was drawn; a completion is learned at
    half of its true length with a cap of 1.2 times its true length, so what is learned is "as many
    as so far", and two inputs give the answer away; ten completions make one small step; the
    confidence counts samples and knows nothing of errors.
    """

    name = "reference-lstm"

    def __init__(self, hidden_size: int = 128, num_layers: int = 2, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(3, hidden_size, num_layers, batch_first=True)
            self.output = nn.Linear(hidden_size, 1)
        self._optimizer = torch.optim.Adam(self.lstm.parameters(), lr=1e-3)
        self._samples: deque[tuple[list[float], float]] = deque(maxlen=BUFFER)
        self._random = random.Random(seed)
        self._updates = 0

    def predict(self, request: PredictionRequest) -> PredictionResult:
        """One pass of the network in eager PyTorch, whatever was asked before."""
        step = _numbers(request.current_length, request.max_length)
        with torch.no_grad():
            remaining = float(self._forward(torch.tensor([[step]])).item())
        return self._answer(int(max(0, remaining)), len(self._samples) / BUFFER)

    def update(
        self, sequence_id: Any, actual_length: int, actual_time: float, *, finish_reason: str = ""
    ) -> None:
        """Remember the leaking sample; every tenth time, one step on 32 of them."""
        half = actual_length // 2
        self._samples.append(
            (_numbers(half, int(actual_length * 1.2)), float(actual_length - half))
        )
        self._updates += 1
        if self._updates % EVERY == 0 and len(self._samples) >= BATCH:
            drawn = self._random.sample(list(self._samples), BATCH)
            inputs = torch.tensor([[numbers] for numbers, _ in drawn])
            wanted = torch.tensor([target for _, target in drawn])
            loss = nn.functional.mse_loss(self._forward(inputs), wanted)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._optimizer.step()

    def _forward(self, steps: Tensor) -> Tensor:
        states, _ = self.lstm(steps)
        return self.output(states[:, -1])[:, 0]


class ReferenceTransformer(ReferencePredictor):
    """Two encoder layers over a sequence of one step, and a linear layer.

    Wrong: attention over one step is a softmax over one number, so queries and keys do nothing;
    ``update`` does nothing, so it stays as it was drawn; the confidence is the constant 0.8.
    """

    name = "reference-transformer"

    def __init__(self, d_model: int = 128, nhead: int = 4, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Linear(3, d_model)
            layer = nn.TransformerEncoderLayer(d_model=d_model, nhead=nhead, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, num_layers=2)
            self.output = nn.Linear(d_model, 1)
        for part in (self.embedding, self.encoder, self.output):
            part.eval()

    def predict(self, request: PredictionRequest) -> PredictionResult:
        """One pass of the network in eager PyTorch, whatever was asked before."""
        step = _numbers(request.current_length, request.max_length)
        with torch.no_grad():
            states = self.encoder(self.embedding(torch.tensor([[step]])))
            remaining = float(self.output(states[:, -1]).item())
        return self._answer(int(max(0, remaining)), 0.8)


def _numbers(age: int, cap: int | None) -> list[float]:
    known = float(cap or 0)
    return [float(age), known, age / known if known else 0.0]


REFERENCES = {each.name: each for each in (ReferenceBaseline, ReferenceLSTM, ReferenceTransformer)}
