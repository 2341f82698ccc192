"""Networks in PyTorch: a sequence of evidence in, logits of discrete-time hazards out.

Both networks read the same steps (see ``features.encode``) and have the same head, which corrects
the hazards of the residual-life table (see ``networks.head``).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from sagellm_lifetime.features.encode import WIDTH
from sagellm_lifetime.features.evidence import NAME_BUCKETS
from sagellm_lifetime.features.text import BUCKETS
from sagellm_lifetime.networks.head import NAME_DIM, OUTPUTS, TOKEN_DIM

IN_DIM: Final = WIDTH + TOKEN_DIM + NAME_DIM
_DROP_NAMES: Final = 0.1
_DROP_WORDS: Final = 0.5
_DROP_TOKENS: Final = 0.3
_DROP_STATE: Final = 0.2
_JITTER: Final = 0.05
"""Rates of dropout in training: of the names of a step, single words, all tokens of a sequence and
parts of the state; and the noise on the numbers. Prompts repeat in a history, with several samples
each, and without dropout a network memorizes them."""


class _Evidence(nn.Module):
    """Embedding of steps: numbers, hashed tokens and hashed names of a step, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.EmbeddingBag(BUCKETS, TOKEN_DIM, mode="mean")
        self.names = nn.EmbeddingBag(NAME_BUCKETS, NAME_DIM, mode="sum")
        nn.init.normal_(self.tokens.weight, std=0.02)
        # So a name that training has never seen has the zero vector.
        nn.init.zeros_(self.names.weight)

    def forward(self, batch: Batch) -> Tensor:
        numbers, words, offsets = batch.numbers, batch.tokens, batch.token_offsets
        if self.training:
            words, offsets = _thinned(words, offsets)
            numbers = numbers + _JITTER * torch.randn(numbers.shape) * (numbers != 0)
        tokens = self.tokens(words, offsets)
        names = self.names(batch.names, batch.name_offsets)
        if self.training:
            names = names * (torch.rand(len(names), 1) >= _DROP_NAMES)
            tokens = tokens * (torch.rand(len(batch.lengths), 1) >= _DROP_TOKENS)[batch.row]
        flat = torch.cat([numbers, tokens, names], dim=1)
        padded = flat.new_zeros(len(batch.lengths), int(batch.lengths.max()), IN_DIM)
        padded[batch.row, batch.column] = flat
        return padded


def _thinned(words: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Return bags with some of their words left out: the words, and the offset of each bag."""
    kept = torch.rand(len(words)) >= _DROP_WORDS
    before = torch.cat([torch.zeros(1, dtype=torch.long), kept.cumsum(0)])
    return words[kept], before[offsets]


class Batch:
    """Steps of ``B`` sequences, flattened to ``N`` steps in all.

    Args:
        steps: list of steps per sequence, with numbers, token buckets and name buckets.
    """

    def __init__(self, steps: list[list[Any]]) -> None:
        flat = [step for sequence in steps for step in sequence]
        sizes = np.array([len(sequence) for sequence in steps])
        self.lengths = torch.from_numpy(sizes)
        self.row = torch.from_numpy(np.repeat(np.arange(len(steps)), sizes))
        self.column = torch.from_numpy(np.concatenate([np.arange(n) for n in sizes]))
        self.numbers = torch.from_numpy(np.stack([step.numbers for step in flat]))
        self.tokens, self.token_offsets = _bags([step.tokens for step in flat])
        self.names, self.name_offsets = _bags([step.names for step in flat])


def _bags(bags: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    sizes = np.array([len(bag) for bag in bags])
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return torch.from_numpy(np.concatenate(bags)), torch.from_numpy(offsets)


class _Head(nn.Linear):
    """Linear layer that starts at zero: an untrained network corrects nothing."""

    def __init__(self, width: int) -> None:
        super().__init__(width, OUTPUTS)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, state: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(state, _DROP_STATE, self.training))


class LSTMNetwork(nn.Module):
    """Stacked LSTM over the steps; the head reads the last state."""

    def __init__(self, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.evidence = _Evidence()
        self.lstm = nn.LSTM(IN_DIM, hidden_size, num_layers, batch_first=True)
        self.head = _Head(hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits, shape ``(B, OUTPUTS)``."""
        states, _ = self.lstm(self.evidence(batch))
        last = states[torch.arange(len(batch.lengths)), batch.lengths - 1]
        return self.head(last)


class _Block(nn.Module):
    """Pre-norm encoder block (Vaswani et al. 2017; Xiong et al. 2020)."""

    def __init__(self, d_model: int, nhead: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = nn.MultiheadAttention(d_model, nhead, batch_first=True)
        self.norm2 = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, 2 * d_model)
        self.down = nn.Linear(2 * d_model, d_model)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class TransformerNetwork(nn.Module):
    """Encoder over the steps; the head reads the newest step.

    The kind, the recency and the age of a step are among its numbers, so no positional encoding is
    added.
    """

    def __init__(self, d_model: int, nhead: int, num_layers: int) -> None:
        super().__init__()
        self.evidence = _Evidence()
        self.project = nn.Linear(IN_DIM, d_model)
        self.blocks = nn.ModuleList(_Block(d_model, nhead) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.head = _Head(d_model)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits, shape ``(B, OUTPUTS)``."""
        x = self.project(self.evidence(batch))
        padding = torch.arange(x.shape[1])[None] >= batch.lengths[:, None]
        for block in self.blocks:
            x = block(x, padding)
        last = x[torch.arange(len(batch.lengths)), batch.lengths - 1]
        return self.head(self.norm(last))
