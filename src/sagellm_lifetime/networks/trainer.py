"""Gradient descent on the censored likelihood (PyTorch), in bulk and a few steps at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sagellm_lifetime.core.errors import MissingExtraError
from sagellm_lifetime.networks.graphs import Weights
from sagellm_lifetime.networks.samples import Sample

if TYPE_CHECKING:
    import torch

_BATCH: Final = 256
_LEAST_STEPS: Final = 32
"""Least number of steps per pass, by smaller batches of at least 32. With 6 steps, for a history of
2000 rows, training of an LSTM ended before it had left its first plateau."""
_ROUND: Final = 64
"""Gradient steps between two evaluations of the held-out loss."""
_PATIENCE: Final = 5
"""Evaluations without an improvement after which training ends, though not in its first third,
where the loss may have a plateau."""
_NOISE: Final = 0.003
"""Nats by which a trained network may be worse than the table and still be kept: the error of a
held-out loss."""

Log = Callable[[str, float, int], None]
"""Function of name, value and step, as TensorBoard's ``add_scalar``."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread in the block.

    These networks are small, and with other processes on the cores, as beside an engine, two
    spinning threads were measured 30 times slower than one.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Trainer:
    """Network in training.

    Args:
        build: function that makes the PyTorch network; called under the seed.
        weights: weights to start from, or ``None`` for random ones.
        seed: seed of the initial weights, the order of samples and the dropout.
        learning_rate: learning rate of AdamW.

    Raises:
        MissingExtraError: PyTorch is not installed.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        weights: Weights | None,
        *,
        seed: int = 0,
        learning_rate: float = 2e-3,
    ) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError("training a network", "train") from error
        self._rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = build()
        if weights is not None:
            state = {k: torch.from_numpy(np.array(v)) for k, v in weights.items()}
            self.network.load_state_dict(state)
        self._seed = seed
        self._steps = 0
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=learning_rate, weight_decay=1e-2
        )

    def weights(self) -> Weights:
        """Return a copy of the weights."""
        return {k: v.detach().numpy().copy() for k, v in self.network.state_dict().items()}

    def step(self, samples: Sequence[Sample]) -> float:
        """Take one gradient step; return the loss before it in nats per sequence."""
        import torch

        self._steps += 1
        self.network.train()
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed * 1_000_003 + self._steps)
            loss, cost = self._loss(samples)
            self._optimizer.zero_grad()
            (loss + cost).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self._optimizer.step()
        return float(loss.detach())

    def fit(
        self,
        samples: Sequence[Sample],
        held_out: Sequence[Sample],
        *,
        epochs: int,
        progress: Callable[[str, float], None] | None = None,
        log: Log | None = None,
    ) -> dict[str, float]:
        """Train until the held-out loss stops falling, and keep the best weights.

        Args:
            samples: samples to train on.
            held_out: samples to evaluate; if there are none, the training samples are used.
            epochs: maximum number of passes.
            progress: called with the name of the step and the share done; ``None`` for no calls.
            log: called with the losses; ``None`` for no calls.

        Returns:
            ``loss_before`` and ``loss``: held-out nats per sequence, without and with training.
        """
        held_out = held_out or samples
        initial, before = self.weights(), self.evaluate(held_out)
        kept, best, waited = initial, float("inf"), 0
        size = min(_BATCH, max(len(samples) // _LEAST_STEPS, 32))
        batches = max(1, len(samples) // size)
        total = epochs * batches
        order, losses = self._rng.permutation(len(samples)), []
        for i in range(total):
            self._set_rate(i / total)
            at = i % batches
            if at == 0:
                order = self._rng.permutation(len(samples))
            batch = [samples[j] for j in order[at * size : (at + 1) * size]]
            losses.append(self.step(batch))
            if progress:
                progress("training", (i + 1) / total)
            if (i + 1) % min(_ROUND, batches) and i + 1 < total:
                continue
            loss = self.evaluate(held_out)
            if log:
                log("loss/train", float(np.mean(losses)), i + 1)
                log("loss/held_out", loss, i + 1)
            losses.clear()
            waited += 1
            if loss < best - 1e-4:
                best, kept, waited = loss, self.weights(), 0
            if waited >= _PATIENCE and 3 * (i + 1) >= total:
                break
        is_worse = best > before + _NOISE
        self._load(initial if is_worse else kept)
        return {"loss_before": before, "loss": before if is_worse else best}

    def evaluate(self, samples: Sequence[Sample]) -> float:
        """Return the loss in nats per sequence, without training."""
        import torch

        self.network.eval()
        total = 0.0
        with one_thread(), torch.no_grad():
            for i in range(0, len(samples), 1024):
                part = samples[i : i + 1024]
                total += float(self._loss(part)[0]) * len(part)
        return total / max(len(samples), 1)

    def _loss(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the negative log-likelihood, and the penalty on the corrections."""
        import torch

        from sagellm_lifetime.networks.loss import Targets, negative_log_likelihood, penalty
        from sagellm_lifetime.networks.modules import Batch

        outputs = self.network(Batch([sample.steps for sample in samples]))
        base = torch.from_numpy(np.stack([sample.base for sample in samples]).astype(np.float32))
        targets = Targets(
            np.array([sample.age for sample in samples]),
            np.array([sample.length for sample in samples]),
            np.array([sample.censored for sample in samples]),
        )
        return negative_log_likelihood(outputs, base, targets), penalty(outputs)

    def _set_rate(self, done: float) -> None:
        """Set the learning rate by cosine decay (Loshchilov & Hutter 2017)."""
        for group in self._optimizer.param_groups:
            top = group.setdefault("initial_lr", group["lr"])
            group["lr"] = top * 0.5 * (1 + np.cos(np.pi * done))

    def _load(self, weights: Weights) -> None:
        import torch

        self.network.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
