"""Hierarchical Kaplan–Meier residual life, learned instantly and online.

A tree of nodes (all requests → model → client → max_length → prompt length → finer prompt length),
and the session across it, count per bin of the length grid how many sequences ended there and how
many were last seen alive there. A node corrects the hazard ``p`` of the node above it twice, each
time by as much as its counts can carry:

1. a smooth ratio: ended over expected (the standardised mortality ratio of actuaries; Breslow & Day
   1987), summed over a window of an octave and shrunk towards 1 by ``k1`` sequences,
       ratio = (sum ended + k1) / (sum alive * p + k1),   q = 1 - (1 - p) ** ratio
2. its own actuarial estimate (Kaplan & Meier 1958), shrunk towards ``q`` by ``k2`` sequences,
       h = (ended + k2 * q) / (alive + k2)
   the posterior mean under a beta prior.

The ratio carries what is thin (the tail, a new client), the estimate what is plentiful (the habits
of a busy client). How much to trust a level differs from trace to trace, so each level chooses its
``(k1, k2)`` online, infinity (leave it out) included, by the likelihood of the completions it was
about to see (prequential, Dawid 1984).
"""

from __future__ import annotations

from collections import OrderedDict
from math import log2
from typing import Final

import numpy as np

from sagellm_lifetime.core.grid import BINS, bin_of, bins_of
from sagellm_lifetime.core.hazard import log_logistic
from sagellm_lifetime.features.request import RequestFeatures

LEVELS: Final = ("all", "model", "client", "cap", "prompt", "fine", "session")
_RATIO: Final = np.array([4.0, 30.0, np.inf])
_OWN: Final = np.array([3.0, 20.0, 100.0, np.inf])
_K1, _K2 = (grid.ravel() for grid in np.meshgrid(_RATIO, _OWN, indexing="ij"))
_START: Final = (1, 7, 7, 7, 7, 7, 1)
"""Index into ``(_K1, _K2)`` with which each level starts. The root has all the data and nothing but
the prior above it, so it trusts itself: (4, 20), and so does a session; the others start cautious:
(30, infinity)."""
_WINDOW: Final = 8
"""Bins on either side over which the ratio is taken: two thirds of an octave."""
_SPREAD: Final = 8
"""Bins (two thirds of an octave) over which one completion of a session is smoothed: a session has
few completions, and the next one is near them, not equal to them."""
_SESSION: Final = len(LEVELS) - 1
_CERTAIN: Final = 1.0 - 1e-6
_FORGET: Final = 1.0 - 1.0 / 2000.0
_REFRESH: Final = 16
"""A node's hazards are computed anew when its counts have grown by one part in so many."""
_FINE: Final = 16.0
"""Finer prompt lengths per octave: 4 %."""
_MASK: Final = (1 << 62) - 1
_KERNEL: Final = (1.0 - np.abs(np.arange(-_SPREAD, _SPREAD + 1)) / (_SPREAD + 1)).astype(np.float32)

NodeKey = tuple[int, int]
"""Level, and a hash of the path from the root."""


def prior_hazards(median: float = 200.0, log_sd: float = 1.6) -> np.ndarray:
    """Discrete hazards, shape ``(BINS,)``, of a wide log-logistic: what is believed before data.

    Public traces have medians from 28 to 516 tokens and standard deviations of the logarithm
    from 0.9 to 1.9; the prior is as wide as all of them together.
    """
    return -np.expm1(-np.diff(log_logistic(median, log_sd).astype(np.float64)))


class ResidualLife:
    """The counts of all nodes, bounded; the least recently used node makes room.

    Args:
        max_nodes: nodes kept at most, 2.7 kB each.
    """

    def __init__(self, max_nodes: int = 20_000) -> None:
        self._max_nodes = max(max_nodes, 64)
        self._index: OrderedDict[NodeKey, int] = OrderedDict()
        self._ended = np.zeros((64, BINS), dtype=np.float32)
        self._left = np.zeros((64, BINS), dtype=np.float32)
        self._cached = np.zeros((64, BINS))
        self._counted: list[int] = []
        self._fresh_until: list[tuple[int, int]] = []
        self._losses = np.zeros((len(LEVELS), len(_K1)))
        self._choice = list(_START)
        self._prior = prior_hazards()
        self.count = 0

    # -- predicting --------------------------------------------------------------------------

    def hazards(self, features: RequestFeatures, session: int) -> np.ndarray:
        """Discrete hazards of the finest node known, shape ``(BINS,)``."""
        hazards = self._prior
        for key in node_keys(features, session):
            node = self._index.get(key)
            if node is not None:
                hazards = self._hazards(key[0], node, hazards)
        return hazards

    def _hazards(self, level: int, node: int, parent: np.ndarray) -> np.ndarray:
        """A node's hazards, from the cache while its counts have hardly changed.

        The cache belongs to what is learned, so only a lesson fills it: were it filled here, later
        answers would depend on what was asked before.
        """
        if self._is_fresh(level, node):
            return self._cached[node]
        k = self._choice[level]
        ended, alive = self._counts(node)
        return _corrected(parent, ended, alive, _K1[k], _K2[k])

    def _is_fresh(self, level: int, node: int) -> bool:
        counted, total = self._fresh_until[node]
        return level != _SESSION and self._counted[node] <= counted and self.count <= total

    def _settle(self, level: int, node: int, parent: np.ndarray) -> np.ndarray:
        """:meth:`_hazards`, kept in the cache."""
        if level == _SESSION or self._is_fresh(level, node):
            return self._cached[node]
        self._cached[node] = self._hazards(level, node, parent)
        counted = self._counted[node]
        self._fresh_until[node] = (counted + counted // _REFRESH, 2 * self.count)
        return self._cached[node]

    def _counts(self, node: int) -> tuple[np.ndarray, np.ndarray]:
        ended, left = self._ended[node], self._left[node]
        return ended, np.cumsum((ended + left)[::-1])[::-1] - left

    # -- learning ----------------------------------------------------------------------------

    def learn(
        self, features: RequestFeatures, session: int, length: int, *, censored: bool
    ) -> None:
        """Count one completion (``length`` tokens, or at least so many if censored)."""
        if censored and length < 1:
            return
        keys = node_keys(features, session)
        self._choose(keys, length, censored=censored)
        self.count += 1
        k = bin_of(length)
        hazards = self._prior
        for key in keys:
            node = self._node(key)
            self._counted[node] += 1
            if censored:
                # Not counted as alive in the bin of the first token that nobody saw: exact where
                # it matters, at caps, which are powers of two and so edges of the grid.
                self._left[node, bin_of(length + 1)] += 1.0
            elif key[0] == _SESSION:
                self._add_smoothed(node, k)
            else:
                self._ended[node, k] += 1.0
            hazards = self._settle(key[0], node, hazards)

    def _add_smoothed(self, node: int, k: int) -> None:
        low, high = max(0, k - _SPREAD), min(BINS, k + _SPREAD + 1)
        kernel = _KERNEL[low - k + _SPREAD : high - k + _SPREAD]
        self._ended[node, low:high] += kernel / kernel.sum()

    def _choose(self, keys: list[NodeKey], length: int, *, censored: bool) -> None:
        """Score every ``(k1, k2)`` of one level, in turn, on a completion not yet counted."""
        known = [(key[0], self._index[key]) for key in keys if key in self._index]
        if not known:
            return
        # Completions of one session are alike, and so are their prompts: what the levels above seem
        # to tell about the next turn they do not tell about the next session. So a session scores
        # its own level alone, and only requests without one score the others.
        turn = self.count % len(known)
        if keys[-1][0] == _SESSION:
            turn = len(known) - 1
            if known[-1][0] != _SESSION:
                return
        parent = self._prior
        for level, node in known[:turn]:
            parent = self._hazards(level, node, parent)
        level, node = known[turn]
        ended, alive = self._counts(node)
        k = bin_of(length)
        options = _corrected(parent, ended, alive, _K1[:, None], _K2[:, None])
        survived = np.log1p(-np.minimum(options[:, :k], _CERTAIN)).sum(axis=1)
        ends = 0.0 if censored else np.log(np.maximum(options[:, k], 1e-9))
        self._losses[level] = self._losses[level] * _FORGET - (survived + ends)
        self._choice[level] = int(self._losses[level].argmin())

    def learn_many(
        self,
        features: list[RequestFeatures],
        sessions: list[int],
        lengths: np.ndarray,
        censored: np.ndarray,
    ) -> None:
        """Count many completions at once, without choosing weights."""
        bins = bins_of(lengths).tolist()
        above: dict[NodeKey, NodeKey | None] = {}
        for i, (each, session) in enumerate(zip(features, sessions, strict=True)):
            if censored[i] or session:
                self.learn(each, session, int(lengths[i]), censored=bool(censored[i]))
                continue
            self.count += 1
            coarser = None
            for key in node_keys(each, session):
                node = self._node(key)
                self._counted[node] += 1
                self._ended[node, bins[i]] += 1.0
                above[key] = coarser
                coarser = key
        for key, coarser in sorted(above.items(), key=lambda item: item[0]):
            # Where there are more nodes than may be kept, some have gone by now.
            if key in self._index:
                node, parent = self._index[key], self._index.get(coarser or key, -1)
                hazards = self._prior if coarser is None or parent < 0 else self._cached[parent]
                self._fresh_until[node] = (-1, -1)
                self._settle(key[0], node, hazards)

    def _node(self, key: NodeKey) -> int:
        node = self._index.get(key)
        if node is not None:
            self._index.move_to_end(key)
            return node
        if len(self._index) >= self._max_nodes:
            _, node = self._index.popitem(last=False)
            self._ended[node] = self._left[node] = 0.0
            self._counted[node], self._fresh_until[node] = 0, (-1, -1)
        else:
            node = len(self._index)
            if node >= len(self._ended):
                self._ended = np.concatenate([self._ended, np.zeros_like(self._ended)])
                self._left = np.concatenate([self._left, np.zeros_like(self._left)])
                self._cached = np.concatenate([self._cached, np.zeros_like(self._cached)])
            self._counted.append(0)
            self._fresh_until.append((-1, -1))
        self._index[key] = node
        return node

    # -- state -------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """What was learned, as arrays."""
        order = list(self._index.values())
        return {
            "keys": np.array(list(self._index), dtype=np.int64).reshape(-1, 2),
            "ended": self._ended[order],
            "left": self._left[order],
            "cached": self._cached[order],
            "counted": np.array([self._counted[node] for node in order], dtype=np.int64),
            "fresh": np.array([self._fresh_until[node] for node in order], dtype=np.int64).reshape(
                -1, 2
            ),
            "losses": self._losses,
            "choice": np.array(self._choice),
            "count": np.array([self.count]),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Replace what was learned with a :meth:`state`."""
        keys = [(int(level), int(path)) for level, path in state["keys"]]
        grown = max(64, len(keys))
        self._max_nodes = max(self._max_nodes, len(keys))
        self._index = OrderedDict((key, i) for i, key in enumerate(keys))
        self._ended, self._left = (np.zeros((grown, BINS), dtype=np.float32) for _ in range(2))
        self._cached = np.zeros((grown, BINS))
        self._ended[: len(keys)] = state["ended"]
        self._left[: len(keys)] = state["left"]
        self._cached[: len(keys)] = state["cached"]
        self._counted = [int(n) for n in state["counted"]]
        self._fresh_until = [(int(a), int(b)) for a, b in state["fresh"]]
        self._losses = np.array(state["losses"], dtype=np.float64)
        self._choice = [int(k) for k in state["choice"]]
        self.count = int(state["count"][0])


def node_keys(features: RequestFeatures, session: int) -> list[NodeKey]:
    """Path of one request from the root, then its session; what is not said is left out."""
    path = 0
    keys = [(0, 0)]
    values = [(1, features.model_key), (2, features.client_key)]
    if features.max_length:
        values.append((3, 1 + int(4.0 * log2(features.max_length))))
    if features.prompt_length is not None:
        octaves = log2(features.prompt_length + 1)
        values.append((4, 1 + int(2.0 * octaves)))
        values.append((5, 1 + int(_FINE * octaves)))
    for level, value in values:
        if value:
            path = (path * 1_000_003 + value * 8 + level) & _MASK
            keys.append((level, path))
    if session:
        keys.append((_SESSION, session))
    return keys


def _corrected(
    parent: np.ndarray,
    ended: np.ndarray,
    alive: np.ndarray,
    k1: np.ndarray | float,
    k2: np.ndarray | float,
) -> np.ndarray:
    """Hazards of a level from those of the level above; broadcasts over ``k1`` and ``k2``."""
    weight1, weight2 = 1.0 / k1, 1.0 / k2
    hazards = parent
    if np.any(weight1):
        ratio = (_windowed(ended) * weight1 + 1.0) / (_windowed(alive * parent) * weight1 + 1.0)
        hazards = -np.expm1(np.log1p(-np.minimum(parent, _CERTAIN)) * ratio)
    if np.any(weight2):
        hazards = (ended * weight2 + hazards) / (alive * weight2 + 1.0)
    return hazards


def _windowed(counts: np.ndarray) -> np.ndarray:
    """Sums over ``_WINDOW`` bins on either side along the last axis, shape of ``counts``."""
    sums = np.zeros((*counts.shape[:-1], BINS + 2 * _WINDOW + 1))
    inner = sums[..., _WINDOW + 1 : _WINDOW + 1 + BINS]
    np.cumsum(counts, axis=-1, out=inner)
    sums[..., _WINDOW + 1 + BINS :] = inner[..., -1:]
    return sums[..., 2 * _WINDOW + 1 :] - sums[..., :BINS]
