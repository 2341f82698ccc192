"""Hierarchical Kaplan–Meier residual life, learned instantly and online.

A tree of nodes (all requests → model → client → max_length → prompt length → finer prompt length),
and the session across it, count per bin of the length grid how many sequences ended there and how
many were last seen alive there. A node corrects the hazards of the node above it, shrunk by
``(k1, k2)`` sequences; see :mod:`~sagellm_lifetime.learning.shrinkage`.

How much to trust a level differs from trace to trace, so each level chooses its ``(k1, k2)``
online, infinity (leave it out) included, by the likelihood of the completions it was about to see
(prequential, Dawid 1984): of every one at first, of a sample of one in eight later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from math import log2
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.checked import MOST, checked, checked_count, count_array
from sagellm_lifetime.core.grid import BINS, bin_of, bins_of
from sagellm_lifetime.core.hazard import log_logistic
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.learning.arrays import Arrays
from sagellm_lifetime.learning.breath import breathe
from sagellm_lifetime.learning.shrinkage import (
    INSIDE,
    OPTIONS,
    PADDED,
    Hazards,
    corrected,
    losses,
    padded,
)

LEVELS: Final = ("all", "model", "client", "cap", "prompt", "fine", "session")
_START: Final = (1, 7, 7, 7, 7, 7, 1)
"""Index into ``OPTIONS`` with which each level starts. The root has all the data and nothing but
the prior above it, so it trusts itself: (4, 20), and so does a session; the others start cautious:
(30, infinity)."""
_SPREAD: Final = 8
"""Bins (two thirds of an octave) over which one completion of a session is smoothed: a session has
few completions, and the next one is near them, not equal to them."""
_SESSION: Final = len(LEVELS) - 1
_ALWAYS: Final = 2000
"""Completions of which every one is scored to choose the weights; then a sample, for its cost."""
_SAMPLED: Final = (1 << 32) // 8
_GOLDEN: Final = 2_654_435_769
"""``2**32`` over the golden ratio: its multiples are spread evenly and follow no period, so the
sample of the counts below ``_SAMPLED`` cannot fall in step with clients that take turns."""
_FORGET: Final = 1.0 - 1.0 / 2000.0
_REFRESH: Final = 16
"""A node's hazards are computed anew when its counts have grown by one part in so many."""
_FIRST: Final[int] = INSIDE.start
_FINE: Final = 16.0
"""Finer prompt lengths per octave: 4 %."""
_LEVEL_BITS: Final = 3
_LEVEL: Final = (1 << _LEVEL_BITS) - 1
_MASK: Final = (1 << 59) - 1
_LARGEST_KEY: Final = _MASK << _LEVEL_BITS | _LEVEL
_STORED: Final[dict[str, tuple[Any, tuple[int, ...], float, float]]] = {
    "ended": (np.float32, (BINS,), 0.0, MOST),
    "left": (np.float32, (BINS,), 0.0, MOST),
    "cached": (np.float64, (BINS,), 0.0, 1.0 + 1e-6),  # a hazard, but for rounding
    "counted": (np.int64, (), 0, MOST),
    "fresh": (np.int64, (2,), -1, 4 * MOST),
}
"""What is stored of each node: type, shape, smallest and largest value."""
_PIECE: Final = 4096
"""Nodes taken over between two breaths."""
_FREED: Final = 512
"""Nodes freed between two breaths: those that were made are large."""
_NO_KEY: Final = -1
_NEVER: Final = (-1, -1)
_NOTHING: Final = Hazards(np.zeros(PADDED))
"""Those of a node that was :data:`_NEVER` fresh; nobody reads them."""

NodeKey = int
"""A hash of the path from the root, and the level in the lowest bits; 62 bits in all.

Not a pair: thousands of small tuples would keep the garbage collector busy, inside ``update``.
"""


def prior_hazards(median: float = 200.0, log_sd: float = 1.6) -> np.ndarray:
    """Discrete hazards, shape ``(BINS,)``, of a wide log-logistic: what is believed before data.

    Public traces have medians from 28 to 516 tokens and standard deviations of the logarithm
    from 0.9 to 1.9; the prior is as wide as all of them together.
    """
    return -np.expm1(-np.diff(log_logistic(median, log_sd).astype(np.float64)))


def _smooth() -> np.ndarray:
    """One completion in each bin, spread over the bins around it: ``(BINS, 2 * _SPREAD + 1)``."""
    around = np.arange(-_SPREAD, _SPREAD + 1)
    kernel = (1.0 - np.abs(around) / (_SPREAD + 1)).astype(np.float32)
    place = np.arange(BINS)[:, None] + around
    rows = np.where((place >= 0) & (place < BINS), kernel, np.float32(0.0))
    return rows / rows.sum(axis=1, keepdims=True)


_SMOOTH: Final = _smooth()


class _Node:
    """What is known of one group of requests.

    Attributes:
        ended: completions by bin of their length, float32, padded.
        left: the same of sequences last seen alive, by bin of the next token; ``None`` for none.
        counted: completions in both.
        hazards: those that followed from the counts a while ago.
        fresh_until: ``counted`` of this node, and ``count`` of all, up to which they still hold.
    """

    __slots__ = ("counted", "ended", "fresh_until", "hazards", "left")

    def __init__(self) -> None:
        self.ended = np.zeros(PADDED, dtype=np.float32)
        self.left: np.ndarray | None = None
        self.counted = 0
        self.hazards = _NOTHING
        self.fresh_until = _NEVER


class ResidualLife:
    """The counts of all nodes, bounded; the least recently used node makes room.

    Args:
        max_nodes: nodes kept at most, about 3 kB each.
    """

    def __init__(self, max_nodes: int = 20_000) -> None:
        self._max_nodes = max(max_nodes, 64)
        self._nodes: OrderedDict[NodeKey, _Node | int] = OrderedDict()
        self._stored: Arrays = {}
        """Of a restored state: a node nobody has touched yet is its row there."""
        self._losses = np.zeros((len(LEVELS), len(OPTIONS)))
        self._choice = list(_START)
        self._scored = 0
        self._prior = Hazards(padded(prior_hazards()))
        self.count = 0

    # -- predicting --------------------------------------------------------------------------

    def hazards(self, features: RequestFeatures, session: int) -> np.ndarray:
        """Discrete hazards of the finest node known, shape ``(BINS,)``."""
        return self._finest(node_keys(features, session)).padded[INSIDE]

    def row(self, features: RequestFeatures, session: int) -> np.ndarray:
        """The same as cumulative hazards, shape ``(BINS + 1,)``, not to be written to."""
        return self._finest(node_keys(features, session)).row

    def _found(self, key: NodeKey) -> _Node:
        """A node that is there; its place among the least recently used stays."""
        node = self._nodes[key]
        if isinstance(node, int):
            node = self._nodes[key] = _restored(self._stored, node)
        return node

    def _finest(self, keys: Sequence[NodeKey]) -> Hazards:
        """Hazards of a path's finest node, from the cache while its counts have hardly changed.

        The cache belongs to what is learned, so only a lesson fills it: were it filled here, later
        answers would depend on what was asked before.
        """
        nodes = self._nodes
        stale = []
        hazards = self._prior
        for key in reversed(keys):
            if key in nodes:
                node = self._found(key)
                if self._is_fresh(node):
                    hazards = node.hazards
                    break
                stale.append((key & _LEVEL, node))
        for level, node in reversed(stale):
            hazards = self._corrected(level, node, hazards)
        return hazards

    def _is_fresh(self, node: _Node) -> bool:
        counted, total = node.fresh_until
        return node.counted <= counted and self.count <= total

    def _corrected(self, level: int, node: _Node, above: Hazards) -> Hazards:
        k1, k2 = OPTIONS[self._choice[level]]
        return corrected(above, node.ended, node.left, k1, k2)

    # -- learning ----------------------------------------------------------------------------

    def learn(
        self, features: RequestFeatures, session: int, length: int, *, censored: bool
    ) -> None:
        """Count one completion (``length`` tokens, or at least so many if censored)."""
        if censored and length < 1:
            return
        keys = node_keys(features, session)
        if self._scored < _ALWAYS or self.count * _GOLDEN % (1 << 32) < _SAMPLED:
            self._choose(keys, length, censored=censored)
        self.count += 1
        # Not counted as alive in the bin of the first token that nobody saw: exact where it
        # matters, at caps, which are powers of two and so edges of the grid.
        place = _FIRST + bin_of(length + 1 if censored else length)
        hazards = self._prior
        for key in keys:
            node = self._node(key)
            node.counted += 1
            level = key & _LEVEL
            if censored:
                if node.left is None:
                    node.left = np.zeros(PADDED, dtype=np.float32)
                node.left[place] += 1.0
            elif level == _SESSION:
                near = node.ended[place - _SPREAD : place + _SPREAD + 1]
                near += _SMOOTH[place - _FIRST]
            else:
                node.ended[place] += 1.0
            if level != _SESSION:
                if not self._is_fresh(node):
                    self._settle(level, node, hazards)
                hazards = node.hazards

    def _settle(self, level: int, node: _Node, above: Hazards) -> None:
        """Keep the hazards of a node until its counts have changed."""
        node.hazards = self._corrected(level, node, above)
        node.fresh_until = (node.counted + node.counted // _REFRESH, 2 * self.count)

    def _choose(self, keys: Sequence[NodeKey], length: int, *, censored: bool) -> None:
        """Score every ``(k1, k2)`` of one level, in turn, on a completion not yet counted."""
        known = [key for key in keys if key in self._nodes]
        if not known:
            return
        # Completions of one session are alike, and so are their prompts: what the levels above seem
        # to tell about the next turn they do not tell about the next session. So a session scores
        # its own level alone, and only requests without one score the others.
        turn = self._scored % len(known)
        if keys[-1] & _LEVEL == _SESSION:
            turn = len(known) - 1
            if known[-1] & _LEVEL != _SESSION:
                return
        self._scored += 1
        level, node = known[turn] & _LEVEL, self._found(known[turn])
        above = self._finest(known[:turn])
        found = losses(above, node.ended, node.left, bin_of(length), censored=censored)
        self._losses[level] = self._losses[level] * _FORGET + found
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
        above: dict[NodeKey, NodeKey] = {}
        for i, (each, session) in enumerate(zip(features, sessions, strict=True)):
            if censored[i] or session:
                self.learn(each, session, int(lengths[i]), censored=bool(censored[i]))
                continue
            self.count += 1
            coarser = _NO_KEY
            for key in node_keys(each, session):
                node = self._node(key)
                node.counted += 1
                node.ended[_FIRST + bins[i]] += 1.0
                above[key] = coarser
                coarser = key
        for key, coarser in sorted(above.items(), key=lambda item: item[0] & _LEVEL):
            # Where there are more nodes than may be kept, some have gone by now.
            if key in self._nodes:
                over = self._found(coarser).hazards if coarser in self._nodes else self._prior
                self._settle(key & _LEVEL, self._found(key), over)

    def _node(self, key: NodeKey) -> _Node:
        if key in self._nodes:
            self._nodes.move_to_end(key)
            return self._found(key)
        if len(self._nodes) >= self._max_nodes:
            self._nodes.popitem(last=False)
        node = self._nodes[key] = _Node()
        return node

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """What was learned, as arrays."""
        count = len(self._nodes)
        ended, left = (np.zeros((count, BINS), dtype=np.float32) for _ in range(2))
        cached = np.zeros((count, BINS))
        counted, fresh = np.zeros(count, dtype=np.int64), np.zeros((count, 2), dtype=np.int64)
        for i, key in enumerate(self._nodes):
            node = self._found(key)
            ended[i] = node.ended[INSIDE]
            if node.left is not None:
                left[i] = node.left[INSIDE]
            if node.fresh_until != _NEVER:
                cached[i] = node.hazards.padded[INSIDE]
            counted[i], fresh[i] = min(node.counted, MOST), node.fresh_until
        self._stored = {}
        return {
            "keys": np.array(list(self._nodes), dtype=np.int64),
            "ended": ended,
            "left": left,
            "cached": cached,
            "counted": counted,
            "fresh": fresh,
            "losses": self._losses,
            "choice": np.array(self._choice),
            "scored": count_array(self._scored),
            "count": count_array(self.count),
        }

    def restore(self, state: Arrays) -> None:
        """Replace what was learned with a :meth:`state`, whose arrays are kept, not copied.

        Nodes are made when they are first asked for: an engine takes over thousands of them every
        few seconds and asks for a few.

        Raises:
            ValueError: arrays that do not fit.
        """
        found = checked(state, "keys", np.int64, (None,), 0, _LARGEST_KEY)
        keys = found.tolist()
        if (found & _LEVEL > _SESSION).any():
            raise ValueError("'keys' names a node of a level that is none")
        self._stored = {}
        for name, (dtype, shape, low, high) in _STORED.items():
            self._stored[name] = checked(state, name, dtype, (len(keys), *shape), low, high)
            breathe()
        self._nodes = OrderedDict()
        for start in range(0, len(keys), _PIECE):
            some = keys[start : start + _PIECE]
            self._nodes.update(zip(some, range(start, start + len(some)), strict=True))
            breathe()
        if len(self._nodes) < len(keys):
            raise ValueError("'keys' names a node twice")
        self._max_nodes = max(self._max_nodes, len(self._nodes))
        scores = (len(LEVELS), len(OPTIONS))
        self._losses = checked(state, "losses", np.float64, scores).copy()
        last = len(OPTIONS) - 1
        self._choice = checked(state, "choice", np.int64, (len(LEVELS),), 0, last).tolist()
        self._scored, self.count = checked_count(state, "scored"), checked_count(state, "count")

    def dissolve(self) -> None:
        """Free the nodes with a breath after each piece; all at once it is 15 ms under the GIL."""
        while self._nodes:
            for _ in range(min(_FREED, len(self._nodes))):
                self._nodes.popitem()
            breathe()


def _restored(stored: Arrays, row: int) -> _Node:
    node = _Node()
    node.counted = stored["counted"].item(row)
    node.fresh_until = (stored["fresh"].item(row, 0), stored["fresh"].item(row, 1))
    node.ended[INSIDE] = stored["ended"][row]
    if stored["left"][row].any():
        node.left = padded(stored["left"][row])
    if node.fresh_until != _NEVER:
        node.hazards = Hazards(padded(stored["cached"][row]))
    return node


def node_keys(features: RequestFeatures, session: int) -> tuple[NodeKey, ...]:
    """Path of one request from the root, then its session; what is not said is left out."""
    return _path(
        features.model_key,
        features.client_key,
        features.max_length or 0,
        features.prompt_length,
        session,
    )


@lru_cache(maxsize=4096)
def _path(
    model: int, client: int, cap: int, prompt: int | None, session: int
) -> tuple[NodeKey, ...]:
    """Asked for when a sequence arrives and again when it ends, hence the cache."""
    path = 0
    keys = [0]
    values = [(1, model), (2, client)]
    if cap:
        values.append((3, 1 + int(4.0 * log2(cap))))
    if prompt is not None:
        octaves = log2(prompt + 1)
        values.append((4, 1 + int(2.0 * octaves)))
        values.append((5, 1 + int(_FINE * octaves)))
    for level, value in values:
        if value:
            path = (path * 1_000_003 + value * 8 + level) & _MASK
            keys.append(path << _LEVEL_BITS | level)
    if session:
        keys.append(session << _LEVEL_BITS | _SESSION)
    return tuple(keys)
