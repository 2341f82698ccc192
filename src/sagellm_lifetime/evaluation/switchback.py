"""Switchback experiment: two rules alternate in random blocks of time; the difference, with bounds.

Two consecutive blocks are a pair: one of each rule, and a coin for each pair decides which comes
first. The estimate is the mean difference within the pairs. The interval inverts the randomization
test that flips the sign of each pair's difference (Fisher 1935): the coins are the only randomness
that it assumes, so a load with any trend or autocorrelation leaves its coverage as it is. The
beginning of each block, in which the rule before still has an effect, is left out (Bojinov,
Simchi-Levi & Zhao 2023, "Design and analysis of switchback experiments"; a burn-in as in Hu & Wager
2022); so are the arrivals at its end, most of whose life lies in the next block.

>>> import numpy as np
>>> off = np.array([4.0, 5.0, 4.5, 6.0, 5.5, 4.2, 5.1, 4.8])
>>> effect = estimate(off, off - np.array([0.9, 1.1, 1.0, 1.2, 0.8, 1.0, 0.9, 1.1]))
>>> effect.difference, effect.low < -0.9 < effect.high < 0.0, effect.p_value < 0.01
(-1.0, True, True)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import RequestError

FEWEST_PAIRS: Final = 6
"""Least number of pairs with an interval of 95 %: with fewer, 2 of the 2^pairs ways in which the
coins may fall are more than 5 %."""
_ALL: Final = 12
"""Largest number of pairs for which all ways in which the coins may fall are computed."""
_DRAWS: Final = 4095
"""Ways drawn for more pairs; with the actual one 4,096."""


@dataclass(frozen=True, slots=True)
class Design:
    """When which rule is in force.

    The coin of a pair is a hash of its number, so that every engine and replica with the same
    period and a common clock switches at the same moment, also after a restart.

    Attributes:
        period_s: seconds of a block.
        washout: share of a block, at its beginning, that is left out.
        tail: share of a block, at its end, whose arrivals are left out.

    >>> design = Design(period_s=600.0)
    >>> sorted([design.acts(6), design.acts(7)])
    [False, True]
    >>> design.block(1250.0), design.is_measured(1250.0), design.is_measured(1400.0)
    (2, False, True)
    """

    period_s: float = 600.0
    washout: float = 0.2
    tail: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.period_s < math.inf:
            raise RequestError(f"period_s must be positive, got {self.period_s}")
        if not (self.washout >= 0.0 and self.tail >= 0.0 and self.washout + self.tail < 1.0):
            raise RequestError(
                f"washout and tail must be shares that leave something, got {self.washout}, "
                f"{self.tail}"
            )

    def block(self, at: float) -> int:
        """Return the number of the block at a time, seconds."""
        return math.floor(at / self.period_s)

    def acts(self, block: int) -> bool:
        """Return True if the new rule is in force in a block."""
        coin = hashlib.sha256(f"switchback {block // 2}".encode()).digest()[0] & 1
        return bool(coin) != bool(block % 2)

    def ends(self, block: int) -> float:
        """Return the end of a block, seconds."""
        return (block + 1) * self.period_s

    @property
    def measured_s(self) -> float:
        """Return the seconds of a block that are not left out at its beginning."""
        return self.period_s * (1.0 - self.washout)

    def is_measured(self, at: float) -> bool:
        """Return True outside the washout."""
        return at / self.period_s - self.block(at) >= self.washout

    def counts_arrival(self, at: float) -> bool:
        """Return True for an arrival that counts: in the measured time, and not in the tail."""
        return self.washout <= at / self.period_s - self.block(at) < 1.0 - self.tail


@dataclass(slots=True)
class Block:
    """The sums over the measured part of one block.

    Attributes:
        number: of the block.
        seconds: of its measured part.
        requests: that arrived in it and ended by themselves or at their cap.
        latency_s: sum of their seconds from arrival to end.
        first_tokens: requests that arrived in it and have a first token.
        first_token_s: sum of their seconds from arrival to the first token.
        tokens: generated in it.
        preemptions: in it.
    """

    number: int
    seconds: float = 0.0
    requests: int = 0
    latency_s: float = 0.0
    first_tokens: int = 0
    first_token_s: float = 0.0
    tokens: int = 0
    preemptions: int = 0

    def add(self, other: Block) -> None:
        """Add the sums of the same block in another engine; its seconds are the same ones."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def numbers(self) -> list[float]:
        """Return all values in the order of the attributes."""
        return list(asdict(self).values())

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Block:
        """Return the block of :meth:`numbers`.

        Raises:
            ValueError: if they are no numbers of a block.
        """
        if len(numbers) != len(fields(cls)) or not all(
            isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < _LARGEST
            for n in numbers
        ):
            raise ValueError("no numbers of a block")
        return cls(int(numbers[0]), *numbers[1:])  # type: ignore[arg-type]  # counts are whole


_LARGEST: Final = 1e18
_SUMS: Final = tuple(
    field.name for field in fields(Block) if field.name not in ("number", "seconds")
)


@dataclass(frozen=True, slots=True)
class Effect:
    """Effect of acting on one quantity.

    Attributes:
        off: mean over the blocks without.
        act: mean over the blocks with.
        difference: ``act - off``.
        low: lower bound of the difference; ``None`` with fewer than six pairs.
        high: upper bound.
        p_value: of the randomization test that nothing changed.
        pairs: number of pairs of blocks.
    """

    off: float
    act: float
    difference: float
    low: float | None
    high: float | None
    p_value: float
    pairs: int


def estimate(off: np.ndarray, act: np.ndarray, level: float = 0.95, seed: int = 0) -> Effect:
    """Return the effect in a quantity, with the interval that inverts the sign-flip test.

    Under every true difference ``x`` the signs of ``act - off - x`` were decided by coins. So ``x``
    is in the interval unless fewer than ``1 - level`` of the ways in which the coins may fall give
    a mean as far from 0. Each way excludes all ``x`` beyond two roots of a quadratic, so that the
    bounds are order statistics of these roots.

    Args:
        off: a value of each pair without, shape ``(K,)``.
        act: a value of each pair with, shape ``(K,)``.
        level: of the interval.
        seed: of the drawn ways, for more than 12 pairs.

    Raises:
        RequestError: if there is no pair, or the shapes differ.
    """
    if off.shape != act.shape or off.ndim != 1 or not len(off):
        raise RequestError(f"values of pairs are needed, got shapes {off.shape} and {act.shape}")
    differences = np.asarray(act - off, dtype=np.float64)
    mean = float(differences.mean())
    signs = _signs(len(differences), seed)
    flipped, balance = signs @ differences / len(differences), signs.mean(axis=1)
    tolerance = 1e-12 * max(float(np.abs(differences).max()), 1e-300)
    p_value = float((np.abs(flipped) >= abs(mean) - tolerance).mean())
    # |flipped - x balance| >= |mean - x| holds between these two x.
    with np.errstate(divide="ignore", invalid="ignore"):
        one = (mean - flipped) / (1.0 - balance)
        other = (mean + flipped) / (1.0 + balance)
    never_excludes = np.abs(balance) > 1.0 - 1e-12
    highs = np.where(never_excludes, np.inf, np.maximum(one, other))
    lows = np.where(never_excludes, -np.inf, np.minimum(one, other))
    place = math.floor((1.0 - level) * len(signs) + 1e-9)
    high, low = float(np.sort(highs)[::-1][place]), float(np.sort(lows)[place])
    return Effect(
        float(off.mean()),
        float(act.mean()),
        mean,
        low if math.isfinite(low) else None,
        high if math.isfinite(high) else None,
        p_value,
        len(differences),
    )


def _signs(pairs: int, seed: int) -> np.ndarray:
    """Return ways in which the coins may fall, shape ``(B, pairs)``, the actual one first."""
    if pairs <= _ALL:
        ways = np.arange(1 << pairs)[:, None] >> np.arange(pairs) & 1
        return 1.0 - 2.0 * ways
    drawn = np.random.default_rng(seed).integers(0, 2, (_DRAWS, pairs), dtype=np.int8)
    return np.concatenate([np.ones((1, pairs)), 1.0 - 2.0 * drawn])


def _ratio(part: float, whole: float, scale: float = 1.0) -> float | None:
    return scale * part / whole if whole else None


QUANTITIES: Final[Mapping[str, tuple[str, Callable[[Block], float | None]]]] = MappingProxyType(
    {
        "latency": ("s", lambda block: _ratio(block.latency_s, block.requests)),
        "first_token": ("s", lambda block: _ratio(block.first_token_s, block.first_tokens)),
        "throughput": ("tokens/s", lambda block: _ratio(block.tokens, block.seconds)),
        "preemptions": ("1/min", lambda block: _ratio(block.preemptions, block.seconds, 60.0)),
    }
)
"""Quantities by name: the unit, and the value in a block (None where it has none)."""


def effects(blocks: Iterable[Block], design: Design) -> dict[str, dict[str, Any]]:
    """Return the effect in each quantity, by name, over the pairs with both blocks.

    A quantity without a pair is left out.

    Args:
        blocks: complete ones, in any order, each number once.
        design: of the experiment.
    """
    by_number = {block.number: block for block in blocks}
    answer: dict[str, dict[str, Any]] = {}
    for name, (unit, value) in QUANTITIES.items():
        pairs = []
        for number in sorted(by_number):
            if number % 2 or number + 1 not in by_number:
                continue
            values = [value(by_number[number]), value(by_number[number + 1])]
            if None not in values:
                pairs.append(values[::-1] if design.acts(number) else values)
        if pairs:
            off, act = np.array(pairs, dtype=np.float64).T
            answer[name] = {"unit": unit, **asdict(estimate(off, act))}
    return answer
