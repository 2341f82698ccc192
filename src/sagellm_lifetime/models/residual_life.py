"""Hierarchical Kaplan–Meier residual life, learned instantly and online.

Nodes count, per bin of the length grid, how many sequences of a group ended there and how many were
last seen alive there. A node corrects the hazards of the node above it, shrunk by ``(k1, k2)``
sequences; see :mod:`~sagellm_lifetime.models.shrinkage`. There are two kinds of groups:

* each piece of what is said alone: model, client, cap, prompt length, finer prompt length;
* the pieces crossed, one after another: all requests → model → client → cap → prompt length → finer
  prompt length; and the session across it all.

Above a crossed node stand the hazards of the crossed node before it, with the effect of the piece
alone laid over them. So what was never seen together is put together from its parts; what nobody
has seen at all is left out, and hides nothing.

How much to trust a level, and an effect, differs from trace to trace, so each level chooses its
``(k1, k2)`` and its weight online, infinity (leave it out) included, by the likelihood of the
completions it was about to see (prequential, Dawid 1984): of every one at first, of a sample of one
in eight later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from math import log, log2
from typing import Any, Final, NamedTuple

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.checked import MOST, checked, checked_count, count_array
from sagellm_lifetime.core.grid import BINS, bin_of, bins_of
from sagellm_lifetime.core.hazard import MOST_ATOMS, log_logistic
from sagellm_lifetime.core.yield_gil import yield_gil
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.models.fair_share import FairShares, lightest_of
from sagellm_lifetime.models.recurring_lengths import Habits, Place, atoms_of
from sagellm_lifetime.models.regimes import Regimes
from sagellm_lifetime.models.shrinkage import (
    INSIDE,
    OPTIONS,
    PADDED,
    TRUST,
    Hazards,
    corrected,
    effect_losses,
    laid_over,
    losses,
    padded,
    weight,
)

LEVELS: Final = (
    *("all", "model", "client", "cap", "prompt", "fine", "session"),
    *("client alone", "cap alone", "prompt alone", "fine alone"),
    "generation",
)
_CLIENT, _CAP, _PROMPT, _FINE, _SESSION = 2, 3, 4, 5, 6
_GENERATION: Final = 11
"""A later generation of a model: the root of all that is said there."""
_ALONE: Final = 5
"""From the level of a piece crossed with others to that of the piece alone."""
_START: Final = tuple(1 if name in ("all", "session", "generation") else 7 for name in LEVELS)
"""Index into ``OPTIONS`` with which each level starts. The root has all the data and nothing but
the prior above it, so it trusts itself: (4, 20), and so does a session; the others start cautious:
(30, infinity)."""
_START_TRUST: Final = 1
"""Index into ``TRUST`` with which each level starts."""
_HABITS: Final = {0: 64, _GENERATION: 64, 1: 16, _CLIENT: 8, _CLIENT + _ALONE: 8}
"""How many single lengths a node counts: of all requests, of a model, of a client."""
_LEAST_LIKELY: Final = 6e-6
"""Probability of a bin, at least: one completion alone proves nothing."""
_NEGLIGIBLE: Final = 0.02
"""Weight of an effect below which it is left out."""
_SPREAD: Final = 8
"""Bins (two thirds of an octave) over which one completion of a session is smoothed: a session has
few completions, and the next one is near them, not equal to them."""
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
_PER_OCTAVE: Final = 16.0
"""Finer prompt lengths per octave: 4 %."""
_LEVEL_BITS: Final = 4
_LEVEL: Final = (1 << _LEVEL_BITS) - 1
_MASK: Final = (1 << 58) - 1
_LARGEST_KEY: Final = _MASK << _LEVEL_BITS | _LEVEL
_STORED: Final[dict[str, tuple[Any, tuple[int, ...], float, float]]] = {
    "ended": (np.float32, (BINS,), 0.0, MOST),
    "left": (np.float32, (BINS,), 0.0, MOST),
    "cached": (np.float64, (BINS,), 0.0, 1.0 + 1e-6),  # a hazard, but for rounding
    "counted": (np.int64, (), 0, MOST),
    "fresh": (np.int64, (2,), -1, 4 * MOST),
}
"""What is stored of each node: type, shape, smallest and largest value."""
_RAGGED: Final = ("habits", "habits_until", "atoms", "atom_shares", "atoms_until")
"""Stored of all nodes in a row: single lengths, and how many up to the end of each node."""
_ONCE_SHARE: Final = 0.25
"""Of all nodes, how many may have come once only where there are as many as may be kept."""
_PIECE: Final = 4096
"""Nodes taken over between two breaths."""
_FREED: Final = 512
"""Nodes freed between two breaths: those that were made are large."""
_NEVER: Final = (-1, -1)
_NOTHING: Final = Hazards(np.zeros(PADDED))
"""Those of a node that was :data:`_NEVER` fresh; nobody reads them."""

NodeKey = int
"""A hash of the path from the root, and the level in the lowest bits; 62 bits in all.

Not a pair: thousands of small tuples would keep the garbage collector busy, inside ``update``.
"""


class Step(NamedTuple):
    """One node of a path.

    Attributes:
        key: of the node.
        level: index into ``LEVELS``.
        above: key of the node that it corrects; -1 for the root.
        alone: path of the same piece alone, the root first; empty where the node is that itself.
        before: the path down to the node above, the root first.
    """

    key: NodeKey
    level: int
    above: NodeKey
    alone: tuple[Step, ...]
    before: tuple[Step, ...]


class Path(NamedTuple):
    """The nodes of one request.

    Attributes:
        crossed: from the root to the finest, then the session.
        every: all nodes, the pieces alone too, each after those it rests on.
        own: those of them that are the client's or the session's own.
    """

    crossed: tuple[Step, ...]
    every: tuple[Step, ...]
    own: tuple[Step, ...]


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


Reached = tuple[Hazards, int, tuple[Step, ...] | None]
"""How far a path is known: the hazards of the finest node that is; how many sequences it speaks
for, 0 for all requests, which nothing contradicts; and the path of one piece whose hazards these
are, ``None`` where several speak. (A plain tuple: one is made for every node of every answer.)"""


class _Node:
    """What is known of one group of requests.

    Attributes:
        ended: completions by bin of their length, float32, padded.
        left: the same of sequences last seen alive, by bin of the next token; ``None`` for none.
        counted: completions in both.
        habits: counts of single lengths; ``None`` at levels without.
        hazards: those that followed from the counts a while ago.
        fresh_until: ``counted`` of this node, and ``count`` of all, up to which they still hold.
    """

    __slots__ = ("counted", "ended", "fresh_until", "habits", "hazards", "left")

    def __init__(self, level: int) -> None:
        self.ended = np.zeros(PADDED, dtype=np.float32)
        self.left: np.ndarray | None = None
        self.counted = 0
        self.habits = Habits(_HABITS[level]) if level in _HABITS else None
        self.hazards = _NOTHING
        self.fresh_until = _NEVER


def _left(node: _Node) -> np.ndarray:
    """Counts of sequences last seen alive; made when there are any."""
    if node.left is None:
        node.left = np.zeros(PADDED, dtype=np.float32)
    return node.left


class ResidualLife:
    """The counts of all nodes, bounded; a node that came once, or has little history, makes room.

    Args:
        max_nodes: nodes kept at most, about 3 kB each.
    """

    def __init__(self, max_nodes: int = 20_000) -> None:
        self._max_nodes = max(max_nodes, 64)
        self._nodes: OrderedDict[NodeKey, _Node | int] = OrderedDict()
        self._once: OrderedDict[NodeKey, None] = OrderedDict()
        """Nodes that one completion came to, the oldest first."""
        self._stored: Arrays = {}
        """Of a restored state: a node nobody has touched yet is its row there."""
        self._losses = np.zeros((len(LEVELS), len(OPTIONS)))
        self._choice = list(_START)
        self._effect_losses = np.zeros((len(LEVELS), len(TRUST)))
        self._trust = [_START_TRUST] * len(LEVELS)
        self._scored = 0
        self.shares = FairShares()
        self.regimes = Regimes()
        self._prior = Hazards(padded(prior_hazards()))
        self.count = 0

    # -- predicting --------------------------------------------------------------------------

    def hazards(self, features: RequestFeatures, session: int) -> np.ndarray:
        """Return the discrete hazards of all that is known, shape ``(BINS,)``."""
        return self._finest(self._path(features, session).crossed)[0].padded[INSIDE]

    def known(self, features: RequestFeatures, session: int) -> Hazards:
        """Return all that is known."""
        return self._finest(self._path(features, session).crossed)[0]

    def row(self, features: RequestFeatures, session: int) -> np.ndarray:
        """Return the same as cumulative hazards, not to be written to.

        Shape ``(BINS + 1,)``, or a wide row where values recur.
        """
        return self._finest(self._path(features, session).crossed)[0].row

    def _path(self, features: RequestFeatures, session: int) -> Path:
        """Return the nodes of one request in the present generation of its model."""
        return node_path(features, session, self.regimes.present(features.model_key))

    def _found(self, key: NodeKey) -> _Node:
        """A node that is there; its place among the least recently used stays."""
        node = self._nodes[key]
        if isinstance(node, int):
            node = self._nodes[key] = _restored(self._stored, node, key & _LEVEL)
        return node

    def _finest(self, steps: Sequence[Step]) -> Reached:
        """Hazards at the end of a path.

        From the cache while the counts have hardly changed. The cache belongs to what is learned,
        so only a lesson fills it: were it filled here, later answers would depend on what was asked
        before.
        """
        nodes, count = self._nodes, self.count
        stale: list[tuple[Step, _Node | None]] = []
        reached: Reached = self._prior, 0, ()
        for step in reversed(steps):
            key = step[0]
            node = nodes.get(key)
            if node is not None:
                if type(node) is not _Node:
                    node = self._found(key)
                until, total = node.fresh_until
                if node.counted <= until and count <= total:
                    reached = _reached(step, node, node.hazards)
                    break
                stale.append((step, node))
            elif step[3]:
                stale.append((step, None))
        effect: np.ndarray | None = None
        for step, known in reversed(stale):
            if step.alone:
                reached, effect = self._with_effect(step, reached, effect)
            if known is not None:
                hazards = self._corrected(step.level, known, _laid(reached, effect))
                reached, effect = _reached(step, known, hazards), None
        return reached if effect is None else (_laid(reached, effect), reached[1], None)

    def _with_effect(
        self, step: Step, above: Reached, so_far: np.ndarray | None = None
    ) -> tuple[Reached, np.ndarray | None]:
        """Add the effect of a piece alone to those that are to be laid over hazards.

        Returns:
            The hazards and the effects to be laid over them; the hazards of the piece alone where
            nothing else is known.
        """
        share = weight(TRUST[self._trust[step.level]], above[1])
        pair = self._alone(step) if share >= _NEGLIGIBLE else None
        if pair is None:
            return above, so_far
        alone, over = pair
        if so_far is None and above[2] == step.alone[-1].before:
            return (alone, 0, step.alone), None
        effect = alone.effect(over) * share
        return above, effect if so_far is None else so_far + effect

    def _alone(self, step: Step) -> tuple[Hazards, Hazards] | None:
        """Hazards of the piece alone, and of what stands above it; ``None`` if it is not known."""
        last = step.alone[-1]
        alone = self._nodes.get(last.key)
        if alone is None:
            return None
        over = self._nodes.get(last.above)
        # Both were settled when the last lesson came, nearly always.
        if (
            isinstance(alone, _Node)
            and isinstance(over, _Node)
            and self._is_fresh(alone)
            and self._is_fresh(over)
        ):
            return alone.hazards, over.hazards
        return self._finest(step.alone)[0], self._finest(last.before)[0]

    def _is_fresh(self, node: _Node) -> bool:
        counted, total = node.fresh_until
        return node.counted <= counted and self.count <= total

    def _corrected(self, level: int, node: _Node, above: Hazards) -> Hazards:
        k1, k2 = OPTIONS[self._choice[level]]
        found = corrected(above, node.ended, node.left, k1, k2)
        if node.habits is None:
            return found
        recurring = node.habits.recurring()
        if not recurring and not above.atoms:
            return found
        return found.having(atoms_of(above.atoms, recurring, node.ended[INSIDE]))

    # -- learning ----------------------------------------------------------------------------

    def learn(
        self, features: RequestFeatures, session: int, length: int, *, censored: bool
    ) -> bool:
        """Count one completion (``length`` tokens, or at least so many if censored).

        Returns:
            Whether it counted for all, and not for its client alone (:mod:`.fair_share`).
        """
        if censored and length < 1:
            return False
        fair = self.shares.count(features.client_key)
        path = self._path(features, session)
        if fair and not session and not censored:
            path = self._watch(features, path, length)
        if fair and (self._scored < _ALWAYS or self.count * _GOLDEN % (1 << 32) < _SAMPLED):
            self._choose(path, length, censored=censored)
        self._count(path.every if fair else path.own, length, censored=censored)
        return fair

    def _watch(self, features: RequestFeatures, path: Path, length: int) -> Path:
        """Compare a completion that is not counted yet with what its generation had said.

        Turns of one session are alike, so that a long one would pass for a change; and who is new
        is not yet known well enough to have changed.

        Returns:
            The path of the request in what is the present generation now.
        """
        client, model = features.client_key, features.model_key
        if not self.shares.is_old(client):
            return path
        k = bin_of(length)
        said = self._said(path, k)
        if said is None:
            return path
        alive, ended = said
        older, gains = self.regimes.older(model), []
        if older:
            present = log(max(ended, _LEAST_LIKELY))
            for each in older:
                other = self._said(node_path(features, 0, each), k)
                gains.append(log(max(other[1] if other else 0.0, _LEAST_LIKELY)) - present)
        # The middle of the bin's share: who always answers the same is right in the middle, too.
        if not self.regimes.watch(model, 1.0 - alive + 0.5 * ended, gains):
            return path
        return self._path(features, 0)

    def _said(self, path: Path, k: int) -> tuple[float, float] | None:
        """Probability to get to bin ``k``, and to end in it, by the finest hazards that were kept.

        (Not by the row, which costs six times as much to make.)
        """
        for step in reversed(path.crossed):
            node = self._nodes.get(step[0])
            if node is not None:
                if type(node) is not _Node:
                    node = self._found(step[0])
                if node.hazards is not _NOTHING:
                    hazards = node.hazards.padded
                    alive = np.multiply.reduce(1.0 - hazards[_FIRST : _FIRST + k]).item()
                    return alive, alive * hazards.item(_FIRST + k)
        return None

    def _count(self, steps: Sequence[Step], length: int, *, censored: bool) -> None:
        """Count a completion at some nodes, each after those it rests on."""
        self.count += 1
        # Not counted as alive in the bin of the first token that nobody saw: exact where it
        # matters, at caps, which are powers of two and so edges of the grid.
        place = _FIRST + bin_of(length + 1 if censored else length)
        nodes, count = self._nodes, self.count
        for step in steps:
            key, level = step[0], step[1]
            node = nodes.get(key)
            if type(node) is _Node:
                nodes.move_to_end(key)
            else:
                node = self._node(key)
            node.counted += 1
            if node.counted == 2:
                self._once.pop(key, None)
            if level == _SESSION:
                if censored:
                    _left(node)[place] += 1.0
                else:
                    near = node.ended[place - _SPREAD : place + _SPREAD + 1]
                    near += _SMOOTH[place - _FIRST]
                continue
            if censored:
                _left(node)[place] += 1.0
            else:
                node.ended[place] += 1.0
                if node.habits is not None:
                    node.habits.count(length)
            until, total = node.fresh_until
            if node.counted > until or count > total:
                self._settle(step, node)

    def _settle(self, step: Step, node: _Node) -> None:
        """Keep the hazards of a node until its counts have changed."""
        above: Reached = self._prior, 0, None
        # Where there are more nodes than may be kept, the one above may have gone by now.
        if step.above in self._nodes:
            over = self._found(step.above)
            above = over.hazards, over.counted, None
        effect = self._with_effect(step, above)[1] if step.alone else None
        node.hazards = self._corrected(step.level, node, _laid(above, effect))
        node.fresh_until = (node.counted + node.counted // _REFRESH, 2 * self.count)

    def _choose(self, path: Path, length: int, *, censored: bool, every: bool = False) -> None:
        """Score the weights of one level, in turn, or of all, on a completion not yet counted."""
        nodes = self._nodes
        last = path.crossed[-1]
        # Completions of one session are alike, and so are their prompts: what the levels above seem
        # to tell about the next turn they do not tell about the next session. So a session scores
        # its own level alone, and only requests without one score the others.
        if last.level == _SESSION:
            known = [last] if last.key in nodes else []
        else:
            known = [
                step
                for step in path.every
                if step.key in nodes or (step.alone and step.alone[-1].key in nodes)
            ]
        if not known:
            return
        if not every:
            known = [known[self._scored % len(known)]]
        for step in known:
            self._score(step, bin_of(length), censored=censored)
        self._scored += len(known)

    def _score(self, step: Step, k: int, *, censored: bool) -> None:
        """Score every weight of one level on an end in bin ``k``."""
        above, effects = self._finest(step.before), None
        level = step.level
        pair = self._alone(step) if step.alone else None
        if pair is not None:
            effect = pair[0].effect(pair[1])
            found = effect_losses(above[0], effect, above[1], k, censored=censored)
            self._effect_losses[level] = self._effect_losses[level] * _FORGET + found
            self._trust[level] = int(self._effect_losses[level].argmin())
            above, effects = self._with_effect(step, above)
        if step.key in self._nodes:
            node = self._found(step.key)
            found = losses(_laid(above, effects), node.ended, node.left, k, censored=censored)
            self._losses[level] = self._losses[level] * _FORGET + found
            self._choice[level] = int(self._losses[level].argmin())

    def learn_many(
        self,
        features: list[RequestFeatures],
        sessions: list[int],
        lengths: np.ndarray,
        censored: np.ndarray,
    ) -> None:
        """Count many completions at once; the newest choose the weights.

        The newest :data:`_ALWAYS` score every level, one after another, as if they came now.
        """
        bins = bins_of(lengths).tolist()
        counted: dict[NodeKey, Step] = {}
        older = max(len(features) - _ALWAYS, len(features) // 2)
        for i, (each, session) in enumerate(zip(features, sessions, strict=True)):
            if i == older:
                self._settle_all(counted)
            if censored[i] and lengths[i] < 1:
                continue
            fair = self.shares.count(each.client_key)
            path = self._path(each, session)
            if fair and i >= older and not session and not censored[i]:
                path = self._watch(each, path, int(lengths[i]))
            steps = path.every if fair else path.own
            counted.update((step.key, step) for step in steps)
            if fair and (i >= older or (session and self._scored < _ALWAYS)):
                self._choose(path, int(lengths[i]), censored=bool(censored[i]), every=True)
            if censored[i] or session or i >= older:
                self._count(steps, int(lengths[i]), censored=bool(censored[i]))
                continue
            self.count += 1
            for step in steps:
                node = self._node(step.key)
                node.counted += 1
                if node.counted == 2:
                    self._once.pop(step.key, None)
                node.ended[_FIRST + bins[i]] += 1.0
        self._settle_all(counted)

    def _settle_all(self, steps: dict[NodeKey, Step]) -> None:
        """Settle nodes with the weights of now, those that others rest on first."""
        for step in sorted(steps.values(), key=lambda step: _ORDER[step.level]):
            # Where there are more nodes than may be kept, some have gone by now.
            if step.level != _SESSION and step.key in self._nodes:
                self._settle(step, self._found(step.key))

    def _node(self, key: NodeKey) -> _Node:
        if key in self._nodes:
            self._nodes.move_to_end(key)
            return self._found(key)
        if len(self._nodes) >= self._max_nodes:
            self._make_room()
        node = self._nodes[key] = _Node(key & _LEVEL)
        self._once[key] = None
        return node

    def _make_room(self) -> None:
        """Evict a node: one that came once, or one with little history of those unused longest.

        So a million names that come once evict each other, and not those with a history.
        """
        if len(self._once) >= self._max_nodes * _ONCE_SHARE:
            gone, _ = self._once.popitem(last=False)
            del self._nodes[gone]
            return
        oldest: NodeKey = next(iter(self._nodes))
        if oldest not in self._once:
            oldest = lightest_of(self._nodes, self._counted)
        del self._nodes[oldest]
        self._once.pop(oldest, None)

    def _counted(self, node: _Node | int) -> int:
        """Completions of a node, also of one that nobody has asked for yet."""
        return self._stored["counted"].item(node) if isinstance(node, int) else node.counted

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """What was learned, as arrays."""
        count = len(self._nodes)
        ended, left = (np.zeros((count, BINS), dtype=np.float32) for _ in range(2))
        cached = np.zeros((count, BINS))
        counted, fresh = np.zeros(count, dtype=np.int64), np.zeros((count, 2), dtype=np.int64)
        habits: list[Place] = []
        atoms: list[tuple[int, float]] = []
        habits_until, atoms_until = [0], [0]
        for i, key in enumerate(self._nodes):
            node = self._found(key)
            ended[i] = node.ended[INSIDE]
            if node.left is not None:
                left[i] = node.left[INSIDE]
            if node.fresh_until != _NEVER:
                cached[i] = node.hazards.padded[INSIDE]
                atoms += node.hazards.atoms
            if node.habits is not None:
                habits += node.habits.places()
            habits_until.append(len(habits))
            atoms_until.append(len(atoms))
            counted[i], fresh[i] = min(node.counted, MOST), node.fresh_until
        self._stored = {}
        return {
            "keys": np.array(list(self._nodes), dtype=np.int64),
            "ended": ended,
            "left": left,
            "cached": cached,
            "counted": counted,
            "fresh": fresh,
            "habits": np.array(habits, dtype=np.int64).reshape(len(habits), 3),
            "habits_until": np.array(habits_until, dtype=np.int64),
            "atoms": np.array([length for length, _ in atoms], dtype=np.int64),
            "atom_shares": np.array([share for _, share in atoms], dtype=np.float64),
            "atoms_until": np.array(atoms_until, dtype=np.int64),
            "losses": self._losses,
            "choice": np.array(self._choice),
            "effect_losses": self._effect_losses,
            "trust": np.array(self._trust),
            "scored": count_array(self._scored),
            "count": count_array(self.count),
            **{f"shares.{name}": value for name, value in self.shares.state().items()},
            **{f"regimes.{name}": value for name, value in self.regimes.state().items()},
        }

    def restore(self, state: Arrays) -> None:
        """Replace what was learned with a :meth:`state`, whose arrays are kept, not copied.

        Nodes are made when they are first asked for: an engine takes over thousands of them every
        few seconds and asks for a few.

        Raises:
            ValueError: arrays that do not fit.
        """
        if not state.keys() & {*_RAGGED, "effect_losses", "trust"} or not part(state, "shares."):
            raise ValueError("counts of nodes by another version, train again")
        found = checked(state, "keys", np.int64, (None,), 0, _LARGEST_KEY)
        keys = found.tolist()
        if (found & _LEVEL >= len(LEVELS)).any():
            raise ValueError("'keys' names a node of a level that is none")
        self._stored = {}
        for name, (dtype, shape, low, high) in _STORED.items():
            self._stored[name] = checked(state, name, dtype, (len(keys), *shape), low, high)
            yield_gil()
        _check_habits(state, len(keys))
        self._stored |= {name: state[name] for name in _RAGGED}
        self._nodes = OrderedDict()
        for start in range(0, len(keys), _PIECE):
            some = keys[start : start + _PIECE]
            self._nodes.update(zip(some, range(start, start + len(some)), strict=True))
            yield_gil()
        if len(self._nodes) < len(keys):
            raise ValueError("'keys' names a node twice")
        # In the order of the nodes, which is theirs: they have not been used again.
        self._once = OrderedDict.fromkeys(found[self._stored["counted"] == 1].tolist())
        self._max_nodes = max(self._max_nodes, len(self._nodes))
        scores = (len(LEVELS), len(OPTIONS))
        self._losses = checked(state, "losses", np.float64, scores).copy()
        last = len(OPTIONS) - 1
        self._choice = checked(state, "choice", np.int64, (len(LEVELS),), 0, last).tolist()
        effects = (len(LEVELS), len(TRUST))
        self._effect_losses = checked(state, "effect_losses", np.float64, effects).copy()
        last = len(TRUST) - 1
        self._trust = checked(state, "trust", np.int64, (len(LEVELS),), 0, last).tolist()
        self._scored, self.count = checked_count(state, "scored"), checked_count(state, "count")
        self.shares.restore(part(state, "shares."))
        self.regimes.restore(part(state, "regimes."))

    def dissolve(self) -> None:
        """Free the nodes with a breath after each piece; all at once it is 15 ms under the GIL."""
        while self._nodes:
            for _ in range(min(_FREED, len(self._nodes))):
                self._nodes.popitem()
            yield_gil()


def _check_habits(state: Arrays, nodes: int) -> None:
    """Raise ``ValueError`` for single lengths that nobody can have counted."""
    sizes = {
        "habits": len(checked(state, "habits", np.int64, (None, 3), 0, MOST)),
        "atoms": len(checked(state, "atoms", np.int64, (None,), 1, MOST)),
    }
    for name, size in sizes.items():
        until = f"{name}_until"
        ends = checked(state, until, np.int64, (nodes + 1,), 0, size)
        if ends[0] != 0 or ends[-1] != size or (np.diff(ends) < 0).any():
            raise ValueError(f"{until!r} does not share {size} lengths out among {nodes} nodes")
    shares = checked(state, "atom_shares", np.float64, (sizes["atoms"],), 0.0, 1.0)
    if not shares.all():
        raise ValueError("'atom_shares' with a share of 0")
    if (np.diff(state["atoms_until"]) > MOST_ATOMS).any():
        raise ValueError(f"more than {MOST_ATOMS} exact lengths of a node")


def _restored(stored: Arrays, row: int, level: int) -> _Node:
    node = _Node(level)
    node.counted = stored["counted"].item(row)
    node.fresh_until = (stored["fresh"].item(row, 0), stored["fresh"].item(row, 1))
    node.ended[INSIDE] = stored["ended"][row]
    if stored["left"][row].any():
        node.left = padded(stored["left"][row])
    if node.fresh_until != _NEVER:
        first, last = stored["atoms_until"][row : row + 2].tolist()
        lengths, shares = (stored[name][first:last].tolist() for name in ("atoms", "atom_shares"))
        atoms = tuple(zip(lengths, shares, strict=True))
        node.hazards = Hazards(padded(stored["cached"][row]), atoms)
    if node.habits is not None:
        first, last = stored["habits_until"][row : row + 2].tolist()
        node.habits = Habits(_HABITS[level], map(tuple, stored["habits"][first:last].tolist()))
    return node


_ORDER: Final = tuple(
    {0: 0, _GENERATION: 1}.get(level, level if level > _SESSION else 20 + level)
    for level in range(len(LEVELS))
)
"""Levels in an order in which each comes after those it rests on."""
_ROOT: Final = Step(0, 0, -1, (), ())


def _laid(above: Reached, effect: np.ndarray | None) -> Hazards:
    return above[0] if effect is None else laid_over(above[0], effect)


def _reached(step: Step, node: _Node, hazards: Hazards) -> Reached:
    if 0 < step[1] < _GENERATION:
        return hazards, node.counted, None
    return hazards, 0, (*step[4], step)


def node_path(features: RequestFeatures, session: int, generation: int = 0) -> Path:
    """Return the nodes of one request; what is not said is left out.

    A later generation of a model (:mod:`~sagellm_lifetime.models.regimes`) has a root of its own
    below that of all requests, and its own nodes for all that is said.
    """
    return _path(
        features.model_key,
        features.client_key,
        features.max_length or 0,
        features.prompt_length,
        session,
        generation,
    )


@lru_cache(maxsize=4096)
def _path(
    model: int, client: int, cap: int, prompt: int | None, session: int, generation: int
) -> Path:
    """Asked for when a sequence arrives and again when it ends, hence the cache."""
    base: tuple[Step, ...] = (_ROOT,)
    pieces = [(1, model), (_CLIENT, client)]
    if generation:
        named = (model * _GOLDEN + generation) & _MASK
        base = _ROOT, _below((_ROOT,), _GENERATION, named, ())
        del pieces[0]
    if cap:
        pieces.append((_CAP, 1 + int(4.0 * log2(cap))))
    if prompt is not None:
        octaves = log2(prompt + 1)
        pieces.append((_PROMPT, 1 + int(2.0 * octaves)))
        pieces.append((_FINE, 1 + int(_PER_OCTAVE * octaves)))
    crossed, alone = list(base), list(base)
    extra: list[Step] = []
    first = 0
    """Level of the first piece that is said."""
    for level, value in pieces:
        if not value:
            continue
        if level != _FINE:
            alone = list(base)
        by_itself = level if level == 1 else level + _ALONE
        alone.append(_below(tuple(alone), by_itself, value, ()))
        if first in (0, level) or (level == _FINE and first == _PROMPT):
            crossed.append(alone[-1])
            first = first or level
            continue
        extra.append(alone[-1])
        crossed.append(_below(tuple(crossed), level, value, tuple(alone)))
    if session:
        key = session << _LEVEL_BITS | _SESSION
        crossed.append(Step(key, _SESSION, crossed[-1].key, (), tuple(crossed)))
    # What all requests are is told by the first generations: later ones would be mixed into them.
    every = (base[-1], *extra, *crossed[len(base) :])
    return Path(tuple(crossed), every, tuple(step for step in every if _is_own(step)))


def _is_own(step: Step) -> bool:
    """Whether a node belongs to one client or session, and not to all."""
    levels = (step.level, *(each.level for each in step.before))
    return step.level == _SESSION or _CLIENT in levels or _CLIENT + _ALONE in levels


def _below(before: tuple[Step, ...], level: int, value: int, alone: tuple[Step, ...]) -> Step:
    """The node of one more piece."""
    above = before[-1].key
    path = ((above >> _LEVEL_BITS) * 1_000_003 + value * 16 + level) & _MASK
    return Step(path << _LEVEL_BITS | level, level, above, alone, before)
