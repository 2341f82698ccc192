"""Censored likelihood of discrete-time hazards, conditioned on the age (PyTorch).

Each bin adds ``s[k] = -log(1 - h[k])`` to the cumulative hazard (Tutz & Schmid 2016, ch. 3). A
sequence predicted at age ``a`` has survived up to it, so only the part of its bin after ``a`` and
the bins beyond count: -log P(L in bin | L > a), or -log P(L > c | L > a) for a sequence last seen
alive at ``c``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sagellm_lifetime.core.grid import EDGES, WIDTHS, bins_of
from sagellm_lifetime.networks.head import (
    ABSOLUTE,
    BASIS,
    LOG_MIDDLE,
    RELATIVE_KNOTS,
    interpolation,
)


class Targets:
    """Outcomes of ``B`` sequences, as exposure per bin.

    Args:
        ages: ages at the prediction, tokens, shape ``(B,)``.
        lengths: total lengths or last lengths seen alive, tokens, shape ``(B,)``.
        censored: True where a length is only a lower bound, shape ``(B,)``.
    """

    def __init__(self, ages: np.ndarray, lengths: np.ndarray, censored: np.ndarray) -> None:
        lengths = np.maximum(lengths, np.where(censored, 0, ages + 1))
        event = bins_of(lengths)
        start = np.maximum(ages[:, None], EDGES[None, :-1])
        # A censored sequence was alive up to its length, an ended one up to the edge before.
        stop = np.where(censored, lengths, EDGES[event])[:, None]
        alive = np.clip(np.minimum(stop, EDGES[None, 1:]) - start, 0, None) / WIDTHS
        last = np.clip(EDGES[event + 1] - np.maximum(ages, EDGES[event]), 1, None) / WIDTHS[event]
        self.survived = torch.from_numpy(alive.astype(np.float32))
        self.event = torch.from_numpy(event)
        self.share = torch.from_numpy(last.astype(np.float32))
        self.ended = torch.from_numpy(~censored)
        left, share = interpolation(
            LOG_MIDDLE - np.log(np.maximum(ages, 1))[:, None], RELATIVE_KNOTS
        )
        self.left = torch.from_numpy(left)
        self.right_share = torch.from_numpy(share.astype(np.float32))
        self.is_late = torch.from_numpy((ages > 0).astype(np.float32))[:, None]


SHRINKAGE = 0.01
"""Weight of the squared corrections, nats each: a Gaussian prior around the table's hazards."""


def negative_log_likelihood(outputs: Tensor, base: Tensor, targets: Targets) -> Tensor:
    """Return the mean loss in nats per sequence.

    Args:
        outputs: outputs of the network, shape ``(B, OUTPUTS)``.
        base: logits of the residual-life table, shape ``(B, BINS)``.
        targets: outcomes of the sequences.
    """
    absolute = outputs[:, :ABSOLUTE] @ torch.from_numpy(BASIS)
    curve = outputs[:, ABSOLUTE:]
    low, high = curve.gather(1, targets.left), curve.gather(1, targets.left + 1)
    relative = (low + (high - low) * targets.right_share) * targets.is_late
    steps = functional.softplus((absolute + base + relative).clamp(-14.0, 14.0))
    survived = (steps * targets.survived).sum(dim=1)
    last = steps.gather(1, targets.event[:, None])[:, 0] * targets.share
    ended = -torch.log(-torch.expm1(-last) + 1e-9)
    return (survived + torch.where(targets.ended, ended, torch.zeros_like(ended))).mean()


def penalty(outputs: Tensor) -> Tensor:
    """Return the penalty on corrections, nats per sequence; it keeps them at 0 in unseen tails."""
    return SHRINKAGE * outputs.square().sum(dim=1).mean()
