"""When it is time to send: by the clock on the wall, or by what the engine has done."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sagellm_lifetime.replay.cost import StepCost

_LOOK_S = 0.004
"""How often a log is looked at; a step takes some fifty milliseconds."""


class Clock(Protocol):
    """Seconds since the load began."""

    async def reach(self, arrival: float, idle: Callable[[], bool]) -> None:
        """Wait for this moment; ``idle`` says whether the engine has nothing to do."""


class WallClock:
    """As it passes; it begins when it is first asked."""

    def __init__(self) -> None:
        self._began: float | None = None

    async def reach(self, arrival: float, idle: Callable[[], bool]) -> None:
        """Wait for this moment."""
        if self._began is None:
            self._began = time.monotonic() + 0.2
        await asyncio.sleep(max(self._began + arrival - time.monotonic(), 0.0))


class EngineClock:
    """Advances with every step by what such a step costs, and at once where nothing is to be done.

    So every arm is asked at the same moments of its own work: on a machine that is slower now than
    an hour ago, a load by the wall is a heavier load.

    Args:
        log: what ``accounts.py`` writes; steps that are there already do not count.
        cost: of a step.
    """

    def __init__(self, log: Path, cost: StepCost) -> None:
        self._file = log.open(encoding="utf-8")
        self._file.seek(0, 2)
        self._cost = cost
        self._torn = ""
        self.now = 0.0
        self._ahead = 0.0
        """What the step costs that is on its way: about as much as the last one."""

    async def reach(self, arrival: float, idle: Callable[[], bool]) -> None:
        """Wait until the step in which this moment lies has begun."""
        while True:
            self._read()
            if self.now + self._ahead >= arrival:
                return
            if idle():
                self.now, self._ahead = arrival, 0.0
                return
            await asyncio.sleep(_LOOK_S)

    def _read(self) -> None:
        *lines, self._torn = (self._torn + self._file.read()).split("\n")
        for line in map(json.loads, lines):
            if "step" in line:
                self._ahead = self._cost.seconds(line["decodes"], line["prefill"], line["context"])
                self.now += self._ahead

    def close(self) -> None:
        """Look no more."""
        self._file.close()
