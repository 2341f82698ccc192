"""Hierarchical Kaplan–Meier residual life, learned online.

Nodes count, per bin of the length grid, the sequences of a group that ended there and those last
seen alive there. A node corrects the hazards of the node above it, shrunk by ``(k1, k2)``
sequences; see :mod:`~sagellm_lifetime.models.shrinkage`. There are two kinds of groups:

* groups by one feature (a *piece* of the request), its main effect: model, client, cap, prompt
  length, finer prompt length;
* groups by crossed pieces, one after another: all requests → model → client → cap → prompt length →
  finer prompt length; and the session as the last node.

A crossed node corrects the hazards of the crossed node before it, to which the main effect of its
piece has been applied. So a new combination is predicted from its pieces, and a piece that has
never been seen is left out.

The best weights of a level and of an effect differ from trace to trace. So each level chooses its
``(k1, k2)`` and the weight of its effect online, by the likelihood of completions before they are
counted (prequential, Dawid 1984): of every completion at first, of one in eight later. Infinity,
which leaves a correction out, is among the choices.
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
from sagellm_lifetime.models.fair_share import FairShares, lightest_of, steady_majority
from sagellm_lifetime.models.level_weights import LevelWeights, restored_weights, weights_state
from sagellm_lifetime.models.recent_prompts import LARGEST_PROMPT, RecentPrompts
from sagellm_lifetime.models.recurring_lengths import Habits, Place, atoms_of
from sagellm_lifetime.models.regimes import KEPT, MOST_MODELS, Regimes
from sagellm_lifetime.models.shrinkage import (
    INSIDE,
    OPTIONS,
    PADDED,
    TRUST,
    Hazards,
    corrected,
    effect_losses,
    interpolated,
    laid_over,
    losses,
    padded,
    weight,
)

LEVELS: Final = (
    *("all", "model", "client", "cap", "score", "prompt", "fine", "session"),
    *("client main", "cap main", "score main", "prompt main", "fine main"),
    "generation",
)
_CLIENT, _CAP, _SCORE, _PROMPT, _FINE, _SESSION = 2, 3, 4, 5, 6, 7
_GENERATION: Final = 13
"""Level of the root of a later generation of a model."""
_MAIN: Final = 6
"""Difference between the level of a main effect and that of the same piece crossed with others."""
_OF_PROMPT: Final = frozenset(range(_SCORE, _SESSION)) | frozenset(
    range(_SCORE + _MAIN, _SESSION + _MAIN)
)
"""Levels that tell one prompt from another."""
_OF_SCORE: Final = frozenset((_SCORE, _SCORE + _MAIN))
_ALL_LEVELS: Final = frozenset(range(len(LEVELS)))
START: Final = tuple(1 if name in ("all", "session", "generation") else 7 for name in LEVELS)
"""Index into ``OPTIONS`` with which each level starts. The root has all the data and only the prior
above it, so it starts with weak shrinkage, (4, 20), and so does a session; the other levels start
with strong shrinkage, (30, infinity)."""
_HABITS: Final = {0: 64, _GENERATION: 64, 1: 16, _CLIENT: 8, _CLIENT + _MAIN: 8}
"""Number of single lengths that a node counts, by level: all requests, a model, a client."""
_LEAST_LIKELY: Final = 6e-6
"""Least probability of a bin, so that one completion cannot decide."""
_NEGLIGIBLE: Final = 0.02
"""Weight of an effect below which it is left out."""
_SPREAD: Final = 8
"""Bins (two thirds of an octave) over which one completion of a session is smoothed: a session has
few completions, and the next one is near them but not equal to them."""
_ALWAYS: Final = 2000
"""Number of first completions that are all scored to choose the weights; then only a sample is,
because of the cost."""
_SAMPLED: Final = (1 << 32) // 8
_GOLDEN: Final = 2_654_435_769
"""``2**32`` over the golden ratio: its multiples are spread evenly without a period, so the sample
is independent of clients that take turns."""
_REFRESH: Final = 16
"""Inverse of the growth of a node's counts after which its hazards are computed anew."""
_FIRST: Final[int] = INSIDE.start
_SCORES_PER_OCTAVE: Final = 3.0
"""Prompt scores per octave of the length that they suggest."""
_SCORES_PER_NAT: Final = _SCORES_PER_OCTAVE / log(2.0)
_SCORES: Final = 96
"""Number of prompt scores that are told apart."""
_FILLED: Final = 20
"""Completions of a prompt score from which on it is used; a rarer one borrows a neighbour's."""
_NEAR: Final = 6
"""Scores within which a neighbour is looked for: two octaves."""
_PER_OCTAVE: Final = 16.0
"""Finer prompt lengths per octave; each is 4 % wide."""
LEAST_NODES: Final = 64
"""Nodes that a tree may always have."""
_LEVEL_BITS: Final = 4
_LEVEL: Final = (1 << _LEVEL_BITS) - 1
_MASK: Final = (1 << 58) - 1
MOST_WEIGHTS: Final = MOST_MODELS * (KEPT + 1)
_LARGEST_KEY: Final = _MASK << _LEVEL_BITS | _LEVEL
_STORED: Final[dict[str, tuple[Any, tuple[int, ...], float, float]]] = {
    "ended": (np.float32, (BINS,), 0.0, MOST),
    "left": (np.float32, (BINS,), 0.0, MOST),
    "cached": (np.float64, (BINS,), 0.0, 1.0 + 1e-6),  # a hazard, but for rounding
    "counted": (np.int64, (), 0, MOST),
    "fresh": (np.int64, (2,), -1, 4 * MOST),
    "above": (np.int64, (), -2, _LARGEST_KEY),
    "main": (np.int64, (), -2, _LARGEST_KEY),
}
"""Stored values of each node: type, shape, smallest and largest value."""
_UNKNOWN: Final = -2
"""Key of a neighbour that is not known, in checkpoints of before there were ``_NEIGHBOURS``."""
_NEIGHBOURS: Final = ("above", "main")
"""Keys of the node above each node, and of the node of its main effect; -1 for none. With them all
nodes can be computed anew after a merge, though their keys are hashes."""
_RAGGED: Final = ("habits", "habits_until", "atoms", "atom_shares", "atoms_until")
"""Arrays of single lengths of all nodes one after another, and of the ends of each node in them."""
_ONCE_SHARE: Final = 0.25
"""Maximum share of nodes with one completion when the table is full."""
_PIECE: Final = 4096
"""Nodes restored between two releases of the GIL."""
_FREED: Final = 512
"""Nodes freed between two releases of the GIL; fewer, since freeing a used node is slow."""
_NEVER: Final = (-1, -1)
"""``fresh_until`` of a node whose hazards were never computed."""
_NOTHING: Final = Hazards(np.zeros(PADDED))
"""Placeholder for the hazards of such a node; it is never read."""

NodeKey = int
"""A hash of the path from the root, and the level in the lowest bits; 62 bits in all.

It is no pair, since the garbage collector would visit thousands of small tuples inside ``update``.
"""


class Step(NamedTuple):
    """Node of a path.

    Attributes:
        key: key of the node.
        level: index into ``LEVELS``.
        above: key of the node above, whose hazards it corrects; -1 for the root.
        main: path of the main effect of the piece, the root first; empty for a main effect.
        before: path down to the node above, the root first.
    """

    key: NodeKey
    level: int
    above: NodeKey
    main: tuple[Step, ...]
    before: tuple[Step, ...]


class Path(NamedTuple):
    """Nodes of one request.

    Attributes:
        crossed: nodes from the root to the finest, then the session.
        every: all nodes, those of main effects too, each after the nodes that it depends on.
        own: nodes of ``every`` that belong to one client or one session.
    """

    crossed: tuple[Step, ...]
    every: tuple[Step, ...]
    own: tuple[Step, ...]


def prior_hazards(median: float = 200.0, log_sd: float = 1.6) -> np.ndarray:
    """Return the prior: discrete hazards of a wide log-logistic, shape ``(BINS,)``.

    Public traces have medians from 28 to 516 tokens and standard deviations of the logarithm
    from 0.9 to 1.9; the prior is as wide as all of them together.
    """
    return -np.expm1(-np.diff(log_logistic(median, log_sd).astype(np.float64)))


def _smooth() -> np.ndarray:
    """Return one completion of each bin, smoothed; shape ``(BINS, 2 * _SPREAD + 1)``."""
    around = np.arange(-_SPREAD, _SPREAD + 1)
    kernel = (1.0 - np.abs(around) / (_SPREAD + 1)).astype(np.float32)
    place = np.arange(BINS)[:, None] + around
    rows = np.where((place >= 0) & (place < BINS), kernel, np.float32(0.0))
    return rows / rows.sum(axis=1, keepdims=True)


_SMOOTH: Final = _smooth()


Reached = tuple[Hazards, int, tuple[Step, ...] | None]
"""Prediction at the finest known node of a path: its hazards; the number of sequences that weigh
against an effect, 0 for all requests; and the path of the one piece whose hazards these are, or
``None`` for several pieces. (A plain tuple, since one is made for every node of every answer.)"""


class _Node:
    """Counts and cached hazards of one group of requests.

    Attributes:
        ended: completions by bin of their length, float32, padded.
        left: sequences last seen alive, by bin of the next token, padded; ``None`` for none.
        counted: sequences in ``ended`` and ``left``.
        habits: counts of single lengths; ``None`` at levels without them.
        above: key of the node above, -1 for none.
        main: key of the node of its main effect, -1 for none.
        hazards: hazards computed from earlier counts.
        fresh_until: ``counted`` of this node, and ``count`` of all, up to which ``hazards`` is
            still used.
    """

    __slots__ = (
        *("above", "main", "counted", "ended", "fresh_until", "habits", "hazards"),
        "left",
    )

    def __init__(self, level: int) -> None:
        self.ended = np.zeros(PADDED, dtype=np.float32)
        self.left: np.ndarray | None = None
        self.counted = 0
        self.habits = Habits(_HABITS[level]) if level in _HABITS else None
        self.hazards = _NOTHING
        self.fresh_until = _NEVER
        self.above = self.main = _UNKNOWN


def most_single_lengths(key: NodeKey) -> int:
    """Return how many single lengths the node of a key counts, 0 for none."""
    return _HABITS.get(key & _LEVEL, 0)


def _left(node: _Node) -> np.ndarray:
    """Return the counts of sequences last seen alive, made if there are none yet."""
    if node.left is None:
        node.left = np.zeros(PADDED, dtype=np.float32)
    return node.left


class ResidualLife:
    """Tree of counts with a bounded number of nodes; those with few completions are evicted.

    Args:
        max_nodes: maximum number of nodes, about 3 kB each; at least 64 are kept.
    """

    def __init__(self, max_nodes: int = 20_000) -> None:
        self._max_nodes = max(max_nodes, LEAST_NODES)
        self._nodes: OrderedDict[NodeKey, _Node | int] = OrderedDict()
        self._once: OrderedDict[NodeKey, None] = OrderedDict()
        """Nodes with one completion, the oldest first."""
        self._stored: Arrays = {}
        """Arrays of a restored state; a node that has not been used yet is the index of its row."""
        self._weights = LevelWeights(START)
        self._later: dict[NodeKey, LevelWeights] = {}
        """Weights of later generations, by the key of their root."""
        self._tried: dict[NodeKey, dict[NodeKey, None]] = {}
        """Nodes of candidate generations, by the key of their root."""
        self._scores = [0] * _SCORES
        """Completions by the bin of their prompt score."""
        self._prompts = RecentPrompts()
        self.shares = FairShares()
        self.regimes = Regimes()
        self._prior = Hazards(padded(prior_hazards()), is_shared=True)
        self.count = 0

    # -- predicting --------------------------------------------------------------------------

    def hazards(self, features: RequestFeatures, session: int) -> np.ndarray:
        """Return the discrete hazards of a request, shape ``(BINS,)``."""
        return self.known(features, session).padded[INSIDE]

    def known(self, features: RequestFeatures, session: int) -> Hazards:
        """Return the hazards of a request (``session``: the key of its session, 0 for none).

        With a prompt score they are interpolated between the two nearest bins of it, before they
        are corrected by the session.
        """
        if features.prompt_score is None:
            return self._finest(self._path(features, session).crossed)[0]
        present = self.regimes.present(features.model_key)
        position = _SCORES_PER_NAT * max(features.prompt_score, 0.0) + 0.5
        low = max(min(int(position), _SCORES - 2), 1)
        share = min(max(position - low, 0.0), 1.0)
        paths = [node_path(features, 0, present, self._filled(score)) for score in (low, low + 1)]
        below, above = (self._finest(path.crossed)[0] for path in paths)
        hazards = below if above is below else interpolated(below, above, share)
        if session:
            step = _with_session(paths[0], session).crossed[-1]
            if step.key in self._nodes:
                return self._corrected(step, self._existing(step.key), hazards)
        return hazards

    def row(self, features: RequestFeatures, session: int) -> np.ndarray:
        """Return the cumulative hazards of a request, read-only.

        Shape ``(BINS + 1,)``, or a wide row if lengths recur.
        """
        return self.known(features, session).row

    def _path(self, features: RequestFeatures, session: int) -> Path:
        """Return the nodes of one request in the present generation of its model."""
        return node_path(features, session, self.regimes.present(features.model_key))

    def _filled(self, score: int) -> int:
        """Return the nearest bin of the prompt score with enough completions, or the same."""
        scores = self._scores
        if scores[score] < _FILLED:
            for step in range(1, _NEAR + 1):
                for near in (score - step, score + step):
                    if 0 < near < _SCORES and scores[near] >= _FILLED:
                        return near
        return score

    def _weights_of(self, step: Step) -> LevelWeights:
        """Return the weights of the generation of a node."""
        if not self._later:
            return self._weights
        return self._later.get((step.before[0] if step.before else step).key, self._weights)

    def _existing(self, key: NodeKey) -> _Node:
        """Return a node that exists, without marking it as recently used."""
        node = self._nodes[key]
        if isinstance(node, int):
            node = self._nodes[key] = _restored(self._stored, node, key & _LEVEL)
        return node

    def _finest(self, steps: Sequence[Step]) -> Reached:
        """Return the hazards at the end of a path, cached ones while counts have hardly changed.

        The cache is part of the learned state, so only a completion fills it: if a prediction did,
        later answers would depend on earlier predictions.
        """
        nodes, count = self._nodes, self.count
        stale: list[tuple[Step, _Node | None]] = []
        reached: Reached = self._prior, 0, ()
        for step in reversed(steps):
            key = step[0]
            node = nodes.get(key)
            if node is not None:
                if type(node) is not _Node:
                    node = self._existing(key)
                until, total = node.fresh_until
                if node.counted <= until and count <= total:
                    reached = _reached(step, node, node.hazards)
                    break
                stale.append((step, node))
            elif step[3]:
                stale.append((step, None))
        effect: np.ndarray | None = None
        for step, stale_node in reversed(stale):
            if step.main:
                reached, effect = self._with_effect(step, reached, effect)
            if stale_node is not None:
                hazards = self._corrected(step, stale_node, _laid(reached, effect))
                reached, effect = _reached(step, stale_node, hazards), None
        return reached if effect is None else (_laid(reached, effect), reached[1], None)

    def _with_effect(
        self, step: Step, above: Reached, so_far: np.ndarray | None = None
    ) -> tuple[Reached, np.ndarray | None]:
        """Add a main effect to the effects that are to be applied to hazards.

        Args:
            step: node whose piece has the effect.
            above: prediction of the nodes before it.
            so_far: sum of the effects of earlier pieces, shape ``(BINS,)``; ``None`` for none.

        Returns:
            The prediction to apply effects to, and the sum of the effects. If no other piece is
            known, that prediction is the one of the main effect, without effects, whatever its
            weight beside other pieces.
        """
        is_alone = so_far is None and _is_alone(step, above)
        share = weight(TRUST[self._weights_of(step).trust[step.level]], above[1])
        pair = self._main_hazards(step) if is_alone or share >= _NEGLIGIBLE else None
        if pair is None:
            return above, so_far
        main, over = pair
        if is_alone:
            return (main, 0, step.main), None
        effect = main.effect(over) * share
        return above, effect if so_far is None else so_far + effect

    def _main_hazards(self, step: Step) -> tuple[Hazards, Hazards] | None:
        """Return the hazards of a main effect and of the node above it; ``None`` if unknown."""
        last = step.main[-1]
        main = self._nodes.get(last.key)
        if main is None:
            return None
        over = self._nodes.get(last.above)
        # Both were nearly always settled by the last completion.
        if (
            isinstance(main, _Node)
            and isinstance(over, _Node)
            and self._is_fresh(main)
            and self._is_fresh(over)
        ):
            return main.hazards, over.hazards
        return self._finest(step.main)[0], self._finest(last.before)[0]

    def _is_fresh(self, node: _Node) -> bool:
        counted, total = node.fresh_until
        return node.counted <= counted and self.count <= total

    def _corrected(self, step: Step, node: _Node, above: Hazards) -> Hazards:
        k1, k2 = OPTIONS[self._weights_of(step).choice[step.level]]
        hazards = corrected(above, node.ended, node.left, k1, k2)
        if node.habits is None:
            return hazards
        recurring = node.habits.recurring()
        if not recurring and not above.atoms:
            return hazards
        return hazards.having(atoms_of(above.atoms, recurring, node.ended[INSIDE]))

    # -- learning ----------------------------------------------------------------------------

    def learn(
        self, features: RequestFeatures, session: int, length: int, *, censored: bool
    ) -> bool:
        """Count one completion.

        Args:
            features: features of its request.
            session: key of its session or conversation, 0 for none.
            length: generated tokens; a lower bound if censored.
            censored: True if the length is only a lower bound.

        Returns:
            True if it was counted at common nodes, too (:mod:`.fair_share`); False if only at
            those of its client, or not at all.
        """
        if censored and length < 1:
            return False
        is_fair = self.shares.count(features.client_key)
        path = self._path(features, session)
        if is_fair and not censored:
            path = self._watch(features, session, path, length)
        is_new = self._prompts.add(features.prompt_key)
        if is_fair and (
            self._weights_of(path.crossed[0]).scored < _ALWAYS
            or self.count * _GOLDEN % (1 << 32) < _SAMPLED
        ):
            self._choose(path, length, censored, is_new=is_new)
        steps = path.every if is_fair else path.own
        if is_fair and features.prompt_score is not None:
            self._scores[score_bin(features.prompt_score)] += 1
        for candidate in self.regimes.candidates(features.model_key):
            steps += self._in_trial(features, session, candidate, length, is_fair, censored)
        self._count(steps, length, censored=censored)
        return is_fair

    def _watch(self, features: RequestFeatures, session: int, path: Path, length: int) -> Path:
        """Compare a completion, before it is counted, with the prediction of its generation.

        Only the first completion of a session is compared, since turns of one session are alike and
        a long session would count as a change.

        Args:
            features: features of its request.
            session: key of its session, 0 for none.
            path: nodes of its request.
            length: generated tokens.

        Returns:
            The path of the request in the present generation, which may be a new one.
        """
        if session and path.crossed[-1].key in self._nodes:
            return path
        k = bin_of(length)
        predicted = self._cached_prediction(path, k)
        if predicted is None:
            return path
        alive, ended = predicted
        client, model, regimes = features.client_key, features.model_key, self.regimes
        rivals, gains, has_one_client = regimes.rivals(model), [], False
        if rivals:
            has_one_client = self.shares.has_one_client
            present = log(max(ended, _LEAST_LIKELY))
            for generation in rivals:
                other = self._cached_prediction(node_path(features, 0, generation), k)
                gains.append(log(max(other[1] if other else 0.0, _LEAST_LIKELY)) - present)
        if not self.shares.is_established(client):
            client = 0
        # The middle of the bin's share, so that a constant length has ``u`` of 0.5.
        u = 1.0 - alive + 0.5 * ended
        switched = regimes.watch(model, client, u, gains, has_one_client=has_one_client)
        if regimes.dropped:
            for dropped in regimes.dropped:
                self._drop(*dropped)
            regimes.dropped.clear()
        if not switched:
            return path
        self._tried.pop(_generation_root(model, regimes.present(model)).key, None)
        return self._path(features, session)

    def _drop(self, model: int, generation: int) -> None:
        """Forget the weights of a generation, and the nodes of a candidate."""
        root = _generation_root(model, generation).key
        self._later.pop(root, None)
        # Nodes of an old generation are evicted in time; those of a candidate are not used again.
        for key in self._tried.pop(root, ()):
            self._nodes.pop(key, None)
            self._once.pop(key, None)

    def _in_trial(
        self,
        features: RequestFeatures,
        session: int,
        candidate: int,
        length: int,
        is_fair: bool,
        censored: bool,
    ) -> tuple[Step, ...]:
        """Return the nodes of the candidate generation at which a completion is counted, too."""
        path = node_path(features, 0, candidate)
        root = path.crossed[0].key
        if root not in self._later:
            self._later[root] = LevelWeights(START)
        if is_fair and not session:
            self._choose(path, length, censored)
        steps = path.every if is_fair else path.own
        self._tried.setdefault(root, {}).update((step.key, None) for step in steps)
        return steps

    def _cached_prediction(self, path: Path, k: int) -> tuple[float, float] | None:
        """Return the probabilities to reach bin ``k`` and to end in it; ``None`` if unknown.

        They are those of the finest node with cached hazards. (A row of all corrections would cost
        six times as much.)
        """
        for step in reversed(path.crossed):
            node = self._nodes.get(step[0])
            if node is not None:
                if type(node) is not _Node:
                    node = self._existing(step[0])
                if node.hazards is not _NOTHING:
                    hazards = node.hazards.padded
                    alive = np.multiply.reduce(1.0 - hazards[_FIRST : _FIRST + k]).item()
                    return alive, alive * hazards.item(_FIRST + k)
        return None

    def _count(self, steps: Sequence[Step], length: int, *, censored: bool) -> None:
        """Count a completion at some nodes, each after the nodes that it depends on."""
        self.count += 1
        # A censored sequence is not at risk in the bin of its next token. This is exact at caps,
        # which are powers of two and so edges of the grid.
        place = _FIRST + bin_of(length + 1 if censored else length)
        nodes, count = self._nodes, self.count
        for step in steps:
            key, level = step[0], step[1]
            node = nodes.get(key)
            if type(node) is _Node:
                nodes.move_to_end(key)
            else:
                node = self._node(step)
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
        """Compute and cache the hazards of a node, until its counts have changed."""
        above: Reached = self._prior, 0, None
        # The node above may have been evicted by now.
        if step.above in self._nodes:
            over = self._existing(step.above)
            if over.hazards is not _NOTHING:
                above = over.hazards, over.counted, None
        effect = self._with_effect(step, above)[1] if step.main else None
        node.hazards = self._corrected(step, node, _laid(above, effect)).settled()
        node.fresh_until = (node.counted + node.counted // _REFRESH, self.count + self._seen(step))

    def _seen(self, step: Step) -> int:
        """Return the completions from which the generation of a node has learned."""
        root = step.before[0] if step.before else step
        if root.level != _GENERATION:
            return self.count
        # The root may have been evicted by now.
        node = self._nodes.get(root.key)
        return 0 if node is None else self._counted(node)

    def _choose(
        self, path: Path, length: int, censored: bool, *, is_new: bool = True, every: bool = False
    ) -> None:
        """Score the weights of one level, in turn, on a completion that is not counted yet.

        Args:
            path: nodes of the request.
            length: generated tokens; a lower bound if censored.
            censored: True if the length is only a lower bound.
            is_new: False if the prompt was completed lately, so that this says little of others.
            every: True to score all levels instead of one.
        """
        nodes = self._nodes
        weights = self._weights_of(path.crossed[0])
        last = path.crossed[-1]
        # Turns of one session are alike, and so are their prompts, so the levels above predict
        # the next turn better than the next session. A later turn therefore scores the level of
        # its session alone. A first turn has the prompt length of no other turn, so it scores
        # only the levels of the prompt score.
        if last.level == _SESSION and last.key in nodes:
            known = [last]
        else:
            levels = _OF_SCORE if last.level == _SESSION else _ALL_LEVELS
            if not is_new:
                levels -= _OF_PROMPT
            known = [
                step
                for step in path.every
                if step.level in levels
                and (step.key in nodes or (step.main and step.main[-1].key in nodes))
            ]
        turn = weights.scored % max(len(known), 1)
        for step in (*known[turn:], *known[:turn]):
            weights.scored += (is_scored := self._score(step, bin_of(length), censored=censored))
            if is_scored and not every:
                return

    def _score(self, step: Step, k: int, *, censored: bool) -> bool:
        """Score every weight of one level on an end in bin ``k``, or on survival up to it.

        Returns:
            False if no weight of the level makes a difference.
        """
        above, effects, is_scored = self._finest(step.before), None, False
        weights = self._weights_of(step)
        pair = self._main_hazards(step) if step.main else None
        if pair is not None:
            if not _is_alone(step, above):
                effect = pair[0].effect(pair[1])
                nats = effect_losses(above[0], effect, above[1], k, censored=censored)
                weights.score_effect(step.level, nats)
                is_scored = True
            above, effects = self._with_effect(step, above)
        if step.key in self._nodes:
            node = self._existing(step.key)
            nats = losses(_laid(above, effects), node.ended, node.left, k, censored=censored)
            weights.score(step.level, nats)
            is_scored = True
        return is_scored

    def learn_many(
        self,
        features: list[RequestFeatures],
        sessions: list[int],
        lengths: np.ndarray,
        censored: np.ndarray,
    ) -> None:
        """Count ``N`` completions at once; the newest choose the weights.

        The newest :data:`_ALWAYS` are scored at every level, one after another. A client that has
        most of the history from its beginning to its end counts in full
        (:func:`~sagellm_lifetime.models.fair_share.steady_majority`).

        Args:
            features: features of the requests, in time order, length ``N``.
            sessions: keys of their sessions, 0 for none, length ``N``.
            lengths: generated tokens, shape ``(N,)``.
            censored: True where the length is only a lower bound, shape ``(N,)``.
        """
        bins = bins_of(lengths).tolist()
        counted: dict[NodeKey, Step] = {}
        is_new = [self._prompts.add(request.prompt_key) for request in features]
        older = _older(is_new)
        workload = steady_majority([request.client_key for request in features])
        for i, (request, session) in enumerate(zip(features, sessions, strict=True)):
            if i == older:
                self._settle_all(counted)
            if censored[i] and lengths[i] < 1:
                continue
            is_fair = self.shares.count(request.client_key) or request.client_key == workload
            path = self._path(request, session)
            if is_fair and i >= older and not censored[i]:
                path = self._watch(request, session, path, int(lengths[i]))
            steps = path.every if is_fair else path.own
            if is_fair and (i >= older or (session and self._weights.scored < _ALWAYS)):
                ended = int(lengths[i]), bool(censored[i])
                self._choose(path, *ended, is_new=is_new[i], every=True)
            if is_fair and request.prompt_score is not None:
                self._scores[score_bin(request.prompt_score)] += 1
            for candidate in self.regimes.candidates(request.model_key):
                steps += self._in_trial(
                    request, session, candidate, int(lengths[i]), is_fair, bool(censored[i])
                )
            counted.update((step.key, step) for step in steps)
            if censored[i] or session or i >= older:
                self._count(steps, int(lengths[i]), censored=bool(censored[i]))
                continue
            self.count += 1
            for step in steps:
                node = self._node(step)
                node.counted += 1
                if node.counted == 2:
                    self._once.pop(step.key, None)
                node.ended[_FIRST + bins[i]] += 1.0
        self._settle_all(counted)

    def _settle_all(self, steps: dict[NodeKey, Step]) -> None:
        """Settle nodes with the present weights, each after the nodes that it depends on."""
        for step in sorted(steps.values(), key=lambda step: _ORDER[step.level]):
            # Some may have been evicted by now.
            if step.level != _SESSION and step.key in self._nodes:
                self._settle(step, self._existing(step.key))

    def _node(self, step: Step) -> _Node:
        key = step.key
        if key in self._nodes:
            self._nodes.move_to_end(key)
            node = self._existing(key)
        else:
            if len(self._nodes) >= self._max_nodes:
                self._make_room()
            node = self._nodes[key] = _Node(key & _LEVEL)
            self._once[key] = None
        node.above = step.above
        node.main = step.main[-1].key if step.main else -1
        return node

    def settle_known(self) -> None:
        """Settle all nodes whose neighbours are known, as after a merge of several trees."""
        steps: dict[NodeKey, Step | None] = {}
        for key in self._nodes:
            self._known_step(key, steps)
        self._settle_all({key: step for key, step in steps.items() if step is not None})

    def _known_step(self, key: NodeKey, steps: dict[NodeKey, Step | None]) -> Step | None:
        """Return the step of a node with all that it depends on; ``None`` if some are unknown.

        Args:
            key: key of the node.
            steps: steps found before, by key; those found now are added.
        """
        if key in steps:
            return steps[key]
        steps[key] = None
        if key not in self._nodes:
            return None
        node, rank = self._existing(key), _ORDER[key & _LEVEL]
        around: list[tuple[Step, ...]] = []
        for neighbour in (node.above, node.main):
            # Ranks fall from step to step, so a damaged state cannot hold a circle.
            is_known = neighbour >= 0 and _ORDER[neighbour & _LEVEL] < rank
            step = self._known_step(neighbour, steps) if is_known else None
            if step is None and neighbour != -1:
                return None
            around.append(() if step is None else (*step.before, step))
        before, main = around
        found = steps[key] = Step(key, key & _LEVEL, node.above, main, before)
        return found

    def _make_room(self) -> None:
        """Evict a node with one completion, or the lightest of the least recently used ones.

        So a million names that are used once evict each other, and not nodes with a history.
        """
        if len(self._once) >= self._max_nodes * _ONCE_SHARE:
            evicted, _ = self._once.popitem(last=False)
            del self._nodes[evicted]
            return
        oldest: NodeKey = next(iter(self._nodes))
        if oldest not in self._once:
            oldest = lightest_of(self._nodes, self._counted)
        del self._nodes[oldest]
        self._once.pop(oldest, None)

    def _counted(self, node: _Node | int) -> int:
        """Return the completions of a node, also of one that is still a row of the state."""
        return self._stored["counted"].item(node) if isinstance(node, int) else node.counted

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return the tree, the choices of weights, the fair shares and the regimes as arrays."""
        count = len(self._nodes)
        ended, left = (np.zeros((count, BINS), dtype=np.float32) for _ in range(2))
        cached = np.zeros((count, BINS))
        counted, fresh = np.zeros(count, dtype=np.int64), np.zeros((count, 2), dtype=np.int64)
        neighbours = np.zeros((count, 2), dtype=np.int64)
        habits: list[Place] = []
        atoms: list[tuple[int, float]] = []
        habits_until, atoms_until = [0], [0]
        for i, key in enumerate(self._nodes):
            node = self._existing(key)
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
            neighbours[i] = node.above, node.main
        self._stored = {}
        tried = [(root, key) for root, nodes in self._tried.items() for key in nodes]
        return {
            "keys": np.array(list(self._nodes), dtype=np.int64),
            "ended": ended,
            "left": left,
            "cached": cached,
            "counted": counted,
            "fresh": fresh,
            **{name: neighbours[:, i].copy() for i, name in enumerate(_NEIGHBOURS)},
            "habits": np.array(habits, dtype=np.int64).reshape(len(habits), 3),
            "habits_until": np.array(habits_until, dtype=np.int64),
            "atoms": np.array([length for length, _ in atoms], dtype=np.int64),
            "atom_shares": np.array([share for _, share in atoms], dtype=np.float64),
            "atoms_until": np.array(atoms_until, dtype=np.int64),
            **weights_state([self._weights, *self._later.values()]),
            "later": np.array(list(self._later), dtype=np.int64),
            "tried": np.array(tried, dtype=np.int64).reshape(len(tried), 2),
            "prompts": self._prompts.state(),
            "scores": np.minimum(np.array(self._scores, dtype=np.int64), MOST),
            "count": count_array(self.count),
            **{f"shares.{name}": value for name, value in self.shares.state().items()},
            **{f"regimes.{name}": value for name, value in self.regimes.state().items()},
        }

    def restore(self, state: Arrays) -> None:
        """Replace the learned state with a :meth:`state`, whose arrays are kept, not copied.

        Nodes are made when they are first used: an engine restores thousands of them every few
        seconds and uses a few.

        Raises:
            ValueError: an array is missing, of another type or shape, or holds impossible values.
        """
        if not state.keys() & {"later", "tried", "regimes.suspicion"} or not part(state, "shares."):
            raise ValueError("counts of nodes by another version, train again")
        key_array = checked(state, "keys", np.int64, (None,), 0, _LARGEST_KEY)
        keys = key_array.tolist()
        if (key_array & _LEVEL >= len(LEVELS)).any():
            raise ValueError("'keys' names a node of an unknown level")
        self._stored = {}
        unknown = np.full(len(keys), _UNKNOWN, dtype=np.int64)
        state = {**dict.fromkeys(_NEIGHBOURS, unknown), **state}
        for name, (dtype, shape, low, high) in _STORED.items():
            self._stored[name] = checked(state, name, dtype, (len(keys), *shape), low, high)
            yield_gil()
        _check_habits(state, len(keys))
        self._stored |= {name: state[name] for name in _RAGGED}
        self._nodes = OrderedDict()
        for start in range(0, len(keys), _PIECE):
            piece = keys[start : start + _PIECE]
            self._nodes.update(zip(piece, range(start, start + len(piece)), strict=True))
            yield_gil()
        if len(self._nodes) < len(keys):
            raise ValueError("'keys' names a node twice")
        # The order of the nodes is that of the new ones, too, since they were not used again.
        self._once = OrderedDict.fromkeys(key_array[self._stored["counted"] == 1].tolist())
        self._max_nodes = max(self._max_nodes, len(self._nodes))
        later = checked(state, "later", np.int64, (None,), 0, _LARGEST_KEY).tolist()
        weights = restored_weights(state, 1 + len(later), START)
        self._weights, self._later = weights[0], dict(zip(later, weights[1:], strict=True))
        if not len(self._later) == len(later) <= MOST_WEIGHTS:
            raise ValueError("'later' names a generation twice, or too many")
        self._tried = {}
        for root, key in checked(state, "tried", np.int64, (None, 2), 0, _LARGEST_KEY).tolist():
            self._tried.setdefault(root, {})[key] = None
        self._prompts.restore(checked(state, "prompts", np.int64, (None,), 1, LARGEST_PROMPT))
        self._scores = checked(state, "scores", np.int64, (_SCORES,), 0, MOST).tolist()
        self.count = checked_count(state, "count")
        self.shares.restore(part(state, "shares."))
        self.regimes.restore(part(state, "regimes."))

    def dissolve(self) -> None:
        """Free the nodes in pieces; all at once takes 15 ms with the GIL held."""
        while self._nodes:
            for _ in range(min(_FREED, len(self._nodes))):
                self._nodes.popitem()
            yield_gil()


def _older(is_new: Sequence[bool]) -> int:
    """Return how many of the first rows choose no weights: all but the newest new prompts."""
    new = np.flatnonzero(is_new)
    return max(int(new[-_ALWAYS]) if len(new) > _ALWAYS else 0, len(is_new) // 2)


def _check_habits(state: Arrays, nodes: int) -> None:
    """Raise :class:`ValueError` if the counts of single lengths are impossible."""
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
    node.above, node.main = stored["above"].item(row), stored["main"].item(row)
    node.ended[INSIDE] = stored["ended"][row]
    if stored["left"][row].any():
        node.left = padded(stored["left"][row])
    if node.fresh_until != _NEVER:
        first, last = stored["atoms_until"][row : row + 2].tolist()
        lengths, shares = (stored[name][first:last].tolist() for name in ("atoms", "atom_shares"))
        atoms = tuple(zip(lengths, shares, strict=True))
        node.hazards = Hazards(padded(stored["cached"][row]), atoms, is_shared=True)
    if node.habits is not None:
        first, last = stored["habits_until"][row : row + 2].tolist()
        node.habits = Habits(_HABITS[level], map(tuple, stored["habits"][first:last].tolist()))
    return node


_ORDER: Final = tuple(
    {0: 0, _GENERATION: 1}.get(level, level if level > _SESSION else 20 + level)
    for level in range(len(LEVELS))
)
"""Rank of each level in an order that puts it after the levels that it depends on."""
_ROOT: Final = Step(0, 0, -1, (), ())


def _is_alone(step: Step, above: Reached) -> bool:
    """Return whether no other piece is known than that of a main effect."""
    return above[2] == step.main[-1].before


def _laid(above: Reached, effect: np.ndarray | None) -> Hazards:
    return above[0] if effect is None else laid_over(above[0], effect)


def _reached(step: Step, node: _Node, hazards: Hazards) -> Reached:
    if 0 < step[1] < _GENERATION:
        return hazards, node.counted, None
    return hazards, 0, (*step[4], step)


def score_bin(score: float) -> int:
    """Return the bin of a prompt score, 1 or more.

    >>> score_bin(0.0), score_bin(5.3), score_bin(1e9)
    (1, 23, 95)
    """
    return 1 + int(min(_SCORES_PER_NAT * max(score, 0.0), _SCORES - 2))


def node_path(features: RequestFeatures, session: int, generation: int = 0, score: int = 0) -> Path:
    """Return the nodes of one request; features that are not given are left out.

    A later generation of a model (:mod:`~sagellm_lifetime.models.regimes`) has its own root and
    nodes; only the nodes of sessions are those of all generations.

    Args:
        features: features of the request.
        session: key of its session, 0 for none.
        generation: number of the generation of its model.
        score: bin of the prompt score that is used for its own, 0 for its own.
    """
    cap, prompt = features.max_length, features.prompt_length
    if not score and features.prompt_score is not None:
        score = score_bin(features.prompt_score)
    octaves = log2(prompt + 1) if prompt is not None else -1.0
    path = _path(
        features.model_key,
        features.client_key,
        1 + int(4.0 * log2(cap)) if cap else 0,
        score,
        1 + int(2.0 * octaves) if octaves >= 0.0 else 0,
        1 + int(_PER_OCTAVE * octaves) if octaves >= 0.0 else 0,
        generation,
    )
    return _with_session(path, session) if session else path


@lru_cache(maxsize=4096)
def _path(
    model: int, client: int, cap: int, score: int, prompt: int, fine: int, generation: int
) -> Path:
    """Return :func:`node_path` without the session; all but the generation 0 for not given.

    Cached by bins, since requests of one client often fall into the same ones.
    """
    base: tuple[Step, ...] = (_ROOT,)
    pieces = [(1, model), (_CLIENT, client)]
    if generation:
        base = (_generation_root(model, generation),)
        del pieces[0]
    pieces += [(_CAP, cap), (_SCORE, score), (_PROMPT, prompt), (_FINE, fine)]
    crossed, main = list(base), list(base)
    extra: list[Step] = []
    first = 0
    """Level of the first piece that is given."""
    for level, value in pieces:
        if not value:
            continue
        if level != _FINE:
            main = list(base)
        main_level = level if level == 1 else level + _MAIN
        main.append(_below(tuple(main), main_level, value, ()))
        if first in (0, level) or (level == _FINE and first == _PROMPT):
            crossed.append(main[-1])
            first = first or level
            continue
        extra.append(main[-1])
        crossed.append(_below(tuple(crossed), level, value, tuple(main)))
    every = (base[0], *extra, *crossed[1:])
    return Path(tuple(crossed), every, tuple(step for step in every if _is_own(step)))


def _with_session(path: Path, session: int) -> Path:
    """Return a path with the node of a session at its end."""
    key = (session & _MASK) << _LEVEL_BITS | _SESSION
    step = Step(key, _SESSION, path.crossed[-1].key, (), path.crossed)
    return Path((*path.crossed, step), (*path.every, step), (*path.own, step))


def _generation_root(model: int, generation: int) -> Step:
    """Return the root of a later generation.

    It has no node above it, since the node of all requests would shrink it towards the old
    workload.
    """
    path = (model * _GOLDEN + generation) * 1_000_003 & _MASK
    return Step(path << _LEVEL_BITS | _GENERATION, _GENERATION, -1, (), ())


def _is_own(step: Step) -> bool:
    """Return True if a node belongs to one client or session, and not to all."""
    levels = (step.level, *(node.level for node in step.before))
    return step.level == _SESSION or _CLIENT in levels or _CLIENT + _MAIN in levels


def _below(before: tuple[Step, ...], level: int, value: int, main: tuple[Step, ...]) -> Step:
    """Return the node of one more piece.

    Args:
        before: path down to the node above, the root first.
        level: level of the new node.
        value: value of the piece, above 0.
        main: path of the main effect of the piece; empty if the new node is a main effect.
    """
    above = before[-1].key
    path = ((above >> _LEVEL_BITS) * 1_000_003 + value * 16 + level) & _MASK
    return Step(path << _LEVEL_BITS | level, level, above, main, before)
