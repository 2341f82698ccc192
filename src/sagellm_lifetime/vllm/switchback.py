"""Switchback in an engine: which mode is due, the sums of each block, and the file they are in.

STATE/engine-0/switchback.json      complete blocks, written as they come
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from sagellm_lifetime.core.atomic import write_atomically
from sagellm_lifetime.core.errors import CheckpointError, RequestError
from sagellm_lifetime.core.regular_files import read_regular
from sagellm_lifetime.evaluation.switchback import Block, Design, effects
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.engine_state import Published, engine_folders

FILE: Final = "switchback.json"
MOST_BLOCKS: Final = 4096
"""Blocks that are kept, the latest: four weeks of ten minutes."""
_MOST_BYTES: Final = 1 << 20
_ENDED: Final = ("stop", "length")
"""Reasons of ends whose latency counts; a client that hangs up says nothing about the server."""


class Switchback:
    """The experiment of one engine core.

    The engine's thread records; another one starts, stops, advances and saves.

    Args:
        design: when which mode is due.
        file: of the complete blocks; ``None`` to keep them in memory.
        label: what is compared (policy, predictor); blocks under another label are not continued.
        clock: seconds of wall time.

    Attributes:
        is_running: True while the modes alternate.
        is_used: True once it was started.
    """

    def __init__(
        self,
        design: Design,
        file: Path | None = None,
        label: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.design = design
        self.clock = clock
        self.is_running = False
        self.is_used = False
        self._file = file
        self._label = label
        self._done: list[Block] = []
        self._open: dict[int, _OpenBlock] = {}
        """Blocks that are not complete, by number."""
        self._first = 0
        """Number of the first block that counts."""
        self._pending: dict[str, float] = {}
        """Arrival of the requests without a first token."""
        self._arrived: dict[str, int] = {}
        """Block of the requests that count and have not ended."""

    # -- the switch --------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin with the next pair of blocks; continue what the file has.

        Args:
            now: seconds of wall time, the same in all engine cores.
        """
        if self.is_running:
            return
        self._done = _continued(self._file, self.design, self._label)
        block = self.design.block(now)
        self._first = block + 2 - block % 2
        self._clear()
        self.is_running = self.is_used = True
        try:
            self.save()  # so that an earlier experiment is not taken for this one
        except CheckpointError as error:
            LOG.error("%s", error)

    def stop(self) -> None:
        """End it; a pair that is not complete is left out."""
        self.is_running = False
        self._clear()

    def _clear(self) -> None:
        self._open, self._pending, self._arrived = {}, {}, {}

    def mode(self, now: float) -> Literal["off", "act"]:
        """Return the mode that is due."""
        return "act" if self.design.acts(self.design.block(now)) else "off"

    # -- what the engine does ----------------------------------------------------------------

    def arrived(self, request_id: str, at: float) -> None:
        """Record a request that was queued."""
        number = self.design.block(at)
        if number >= self._first and self.design.counts_arrival(at):
            self._block(number).present += 1
            self._pending[request_id] = at
            self._arrived[request_id] = number

    def output(self, tokens: int, request_ids: Iterable[str], now: float) -> None:
        """Record the output of a step.

        Args:
            tokens: generated in it, of all requests.
            request_ids: of the requests that got one or more.
            now: seconds.
        """
        present = self.design.block(now)
        if present >= self._first and self.design.is_measured(now):
            self._block(present).sums.tokens += tokens
        if not self._pending:
            return
        for name in request_ids:
            arrival = self._pending.pop(name, None)
            number = self._arrived.get(name, -1)
            if arrival is not None and number >= self._first:
                sums = self._block(number).sums
                sums.first_tokens += 1
                sums.first_token_s += max(now - arrival, 0.0)

    def preempted(self, now: float) -> None:
        """Record a preemption."""
        number = self.design.block(now)
        if number >= self._first and self.design.is_measured(now):
            self._block(number).sums.preemptions += 1

    def ended(self, request_id: str, seconds: float, reason: str) -> None:
        """Record the end of a request, ``seconds`` after its arrival."""
        number = self._arrived.pop(request_id, None)
        self._pending.pop(request_id, None)
        if number is None or number < self._first:
            return
        block = self._block(number)
        block.present -= 1
        if reason in _ENDED:
            block.sums.requests += 1
            block.sums.latency_s += seconds

    def _block(self, number: int) -> _OpenBlock:
        block = self._open.get(number)
        if block is None:
            block = self._open[number] = _OpenBlock(number)
        return block

    # -- complete blocks ---------------------------------------------------------------------

    def advance(self, now: float) -> bool:
        """Take over the pairs that are complete; return True if there is one more.

        A pair is complete when all its requests have ended, and at the latest two periods after
        its end.
        """
        if not self.is_running:
            return False
        length, before = self.design.period_s, len(self._done)
        number = max(self._first, self._done[-1].number + 1 if self._done else self._first)
        while self.design.ends(number + 1) <= now:
            pair = [self._block(number), self._block(number + 1)]
            waits = any(block.present > 0 for block in pair)
            if waits and now < self.design.ends(number + 1) + 2.0 * length:
                break
            for block in pair:
                block.sums.seconds = self.design.measured_s
                self._done.append(block.sums)
                self._first = block.sums.number + 1  # later ends of its requests do not count
            number += 2
        if len(self._done) == before:
            return False
        for old in [number for number in list(self._open) if number < self._first]:
            self._open.pop(old, None)
        del self._done[:-MOST_BLOCKS]
        return True

    def save(self) -> None:
        """Write the complete blocks.

        Raises:
            CheckpointError: if they cannot be written.
        """
        if self._file is not None:
            content = {
                "design": asdict(self.design),
                "label": self._label,
                "blocks": [block.numbers() for block in self._done],
            }
            write_atomically(
                self._file, json.dumps(content).encode(), private=True, error=CheckpointError
            )

    def status(self, now: float) -> dict[str, Any]:
        """Return what is known without an estimate, for the statistics."""
        block = self.design.block(now)
        return {
            "running": self.is_running,
            **asdict(self.design),
            "arm": self.mode(now) if self.is_running else None,
            "block_ends": self.design.ends(block) if self.is_running else None,
            "pairs": len(self._done) // 2,
        }


class _OpenBlock:
    """A block that is not complete: its sums, and the number of its requests that are there."""

    __slots__ = ("present", "sums")

    def __init__(self, number: int) -> None:
        self.sums = Block(number)
        self.present = 0


def parse_blocks(data: bytes) -> tuple[Design, str, list[Block]]:
    """Return the design, label and blocks of a file.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        content = json.loads(data)
        design, label = Design(**content["design"]), content["label"]
        blocks = [Block.of(numbers) for numbers in content["blocks"]]
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, RequestError):
        raise ValueError("no blocks of a switchback") from None
    if not isinstance(label, str):
        raise ValueError("no blocks of a switchback")
    return design, label, blocks


def _continued(file: Path | None, design: Design, label: str) -> list[Block]:
    """Return the blocks of an earlier run of the same experiment."""
    if file is None:
        return []
    try:
        before = parse_blocks(read_regular(file, _MOST_BYTES))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        LOG.error("%s is not continued: %s", file, error)
        return []
    if before[:2] != (design, label):
        LOG.info("a switchback of another design or policy is not continued: a new one begins")
        return []
    return before[2]


def summary(folders: Sequence[Path], statuses: Sequence[Any]) -> dict[str, Any] | None:
    """Return the experiment of all engine cores: status, number of pairs, and effects.

    A block counts if every engine core has it.

    Args:
        folders: of the engine cores.
        statuses: ``switchback`` of their statistics, or None.

    Raises:
        ValueError: if a file is damaged.
        OSError: if one cannot be read.
    """
    files = [folder / FILE for folder in folders if (folder / FILE).exists()]
    present = [status for status in statuses if isinstance(status, dict)]
    if not present and not files:
        return None
    found = [parse_blocks(read_regular(file, _MOST_BYTES)) for file in files]
    design = found[0][0] if found else None
    same = [blocks for each, _, blocks in found if each == design]
    answer: dict[str, Any] = dict(present[0]) if present else {"running": False}
    answer |= {"running": any(status.get("running") is True for status in present)}
    answer |= {"pairs": 0, "effects": {}}
    if design is not None:
        numbers = set.intersection(*({block.number for block in blocks} for blocks in same))
        key = tuple(
            tuple(block.numbers()) for blocks in same for block in blocks if block.number in numbers
        )
        answer |= asdict(design)
        answer["effects"] = _effects(design, key)
        answer["pairs"] = len(numbers) // 2
    return answer


def switchback_of(state: Path, published: Published) -> dict[str, Any] | None:
    """Return the switchback of all engine cores, or None if there was none.

    Damaged files are added to the unreadable ones of ``published``.
    """
    statuses = [engine.get("switchback") for engine in published.engines]
    try:
        return summary([folder for folder, _ in engine_folders(state)], statuses)
    except (OSError, ValueError) as error:
        published.unreadable.append(f"switchback: {getattr(error, 'strerror', None) or error}")
        return None


@lru_cache(maxsize=4)
def _effects(design: Design, blocks: tuple[tuple[float, ...], ...]) -> dict[str, dict[str, Any]]:
    """Return the effects over the sums of all engine cores, kept until there are more blocks."""
    sums: dict[int, Block] = {}
    for numbers in blocks:
        block = Block.of(numbers)
        if block.number in sums:
            sums[block.number].add(block)
        else:
            sums[block.number] = block
    return effects(sums.values(), design)
