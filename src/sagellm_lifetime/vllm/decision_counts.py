"""Counts of what ``act`` changes in the engine, and of what the engine's own decisions cost.

The engine's order is arrival order, with preempted sequences in front, the latest first; its victim
is the sequence that was admitted last. Every event takes constant time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sagellm_lifetime.policies.events import Arrived, Event, Finished


@dataclass(slots=True)
class ActCounts:
    """What was decided in ``act``; no count ever falls.

    Attributes:
        admissions: sequences that were admitted.
        admissions_reordered: of them, those that went before one that came earlier.
        overtaken: sequences that a later one went before, each once per wait.
        overtaken_seconds: sum of their waits from the first such moment on.
        longest_overtaken_seconds: the longest of these waits.
        preemptions: sequences that were preempted.
        preemptions_differing: of them, those that the engine would not have chosen.
        recomputed_tokens: tokens computed again after these preemptions.
        held_back_block_seconds: blocks kept free at admission beyond the engine's own watermark
            while sequences waited, summed over time.
    """

    admissions: int = 0
    admissions_reordered: int = 0
    overtaken: int = 0
    overtaken_seconds: float = 0.0
    longest_overtaken_seconds: float = 0.0
    preemptions: int = 0
    preemptions_differing: int = 0
    recomputed_tokens: int = 0
    held_back_block_seconds: float = 0.0


@dataclass(slots=True)
class ShadowCounts:
    """What the engine's own decisions cost in ``shadow``, and what would have been held back.

    Attributes:
        recomputed_tokens: tokens computed again after the engine's preemptions.
        held_back_block_seconds: block-seconds that ``act`` would have kept free.
    """

    recomputed_tokens: int = 0
    held_back_block_seconds: float = 0.0


class DecisionCounts:
    """The counts of one engine core; its thread writes, any thread reads.

    Attributes:
        act: counts of ``act``.
        shadow: counts of ``shadow``.
        held_blocks: blocks held back in the present step.

    >>> from types import SimpleNamespace
    >>> counts = DecisionCounts()
    >>> counts.restart([], [], acts=True)
    >>> for name in ("first", "second"):
    ...     counts.on_events([Arrived(SimpleNamespace(id=name, arrival=0.0, preemptions=0), 0.0)])
    >>> counts.admitted(["second"], 1.0)
    >>> counts.admitted(["first"], 3.5)
    >>> counts.act.admissions_reordered, counts.act.overtaken, counts.act.overtaken_seconds
    (1, 1, 2.5)
    """

    def __init__(self) -> None:
        self.act = ActCounts()
        self.shadow = ShadowCounts()
        self.held_blocks = 0
        self._mode: ActCounts | ShadowCounts | None = None
        self._clear()

    def _clear(self) -> None:
        self._next = 0
        self._first = 0
        self._waiting: OrderedDict[str, int] = OrderedDict()
        """Arrival numbers of the waiting sequences, in this order."""
        self._fresh: OrderedDict[str, int] = OrderedDict()
        """Of them, those that were not overtaken."""
        self._returned: dict[str, int] = {}
        """Negative numbers of the preempted sequences that wait, lower for later ones."""
        self._overtaken: dict[str, float] = {}
        """Time at which a waiting sequence was first overtaken."""
        self._running: OrderedDict[str, None] = OrderedDict()
        """Running sequences in the order of admission."""
        self._lost: dict[str, tuple[int, ActCounts | ShadowCounts]] = {}
        """Tokens that a waiting preempted sequence had computed, and where they count."""

    # -- the switch --------------------------------------------------------------------------

    def restart(self, arrived: Sequence[Event], running: Iterable[str], *, acts: bool) -> None:
        """Begin to count with the present sequences.

        Args:
            arrived: arrivals of all present sequences.
            running: ids of the running ones, in the order of admission.
            acts: True in ``act``, False in ``shadow``.
        """
        self._clear()
        self.held_blocks = 0
        self._mode = self.act if acts else self.shadow
        self._running.update(dict.fromkeys(running))
        queue = [event.sequence for event in arrived if isinstance(event, Arrived)]
        for view in sorted(queue, key=lambda view: (not view.preemptions, view.arrival)):
            if view.id not in self._running:
                self._arrive(view.id)

    def stop(self) -> None:
        """Count nothing until :meth:`restart`."""
        self._mode, self.held_blocks = None, 0
        self._clear()

    # -- events ------------------------------------------------------------------------------

    def on_events(self, events: Sequence[Event]) -> None:
        """Record arrivals and ends; the engine reports the other events with more detail."""
        if self._mode is None:
            return
        for event in events:
            if isinstance(event, Arrived):
                self._leave(event.sequence.id, event.at)  # the next turn of a session
                self._running.pop(event.sequence.id, None)
                self._arrive(event.sequence.id)
            elif isinstance(event, Finished):
                name = event.sequence_id
                self._running.pop(name, None)
                self._leave(name, event.at)
                self._lost.pop(name, None)

    def admitted(
        self,
        names: Sequence[str],
        at: float,
        *,
        cached: Mapping[str, int] | None = None,
        deferred: Collection[str] = (),
    ) -> None:
        """Record the admissions of one step.

        Args:
            names: ids of the sequences, in the order of admission.
            at: seconds on the engine's clock.
            cached: tokens that were still cached, of those that were preempted before.
            deferred: ids of waiting sequences that the engine itself passes over.
        """
        if self._mode is None:
            return
        numbers = []
        for name in names:
            number = self._leave(name, at)
            self._running[name] = None
            if number is not None:
                numbers.append(number)
            tokens, lost_in = self._lost.pop(name, (0, None))
            if lost_in is not None:
                lost_in.recomputed_tokens += max(tokens - (cached or {}).get(name, 0), 0)
        if self._mode is not self.act:
            return
        self.act.admissions += len(names)
        if not numbers or not (self._waiting or self._returned):
            return
        earliest = self._earliest(deferred)
        self.act.admissions_reordered += sum(number > earliest for number in numbers)
        self._overtake(max(numbers), at, deferred)

    def preempted(self, name: str, computed: int) -> None:
        """Record a preemption.

        Args:
            name: id of the sequence.
            computed: tokens whose KV it had.
        """
        if self._mode is None:
            return
        if self._mode is self.act:
            self.act.preemptions += 1
            last = next(reversed(self._running), name)
            self.act.preemptions_differing += last != name
        self._running.pop(name, None)
        self._lost[name] = computed, self._mode
        self._first -= 1
        self._returned[name] = self._first

    def step(self, seconds: float | None) -> None:
        """Record the duration of the step in which ``held_blocks`` were held back."""
        if self._mode is not None and seconds is not None and seconds > 0.0:
            self._mode.held_back_block_seconds += self.held_blocks * seconds
        self.held_blocks = 0

    def snapshot(self) -> dict[str, Any]:
        """Return the counts by mode: ``{"act": {…}, "shadow": {…}}``."""
        return {"act": asdict(self.act), "shadow": asdict(self.shadow)}

    # -- the queue ---------------------------------------------------------------------------

    def _arrive(self, name: str) -> None:
        self._next += 1
        self._waiting[name] = self._fresh[name] = self._next

    def _leave(self, name: str, at: float) -> int | None:
        """Remove a sequence from the queue; return its number, or None if it was not there."""
        number = self._waiting.pop(name, None)
        if number is None:
            number = self._returned.pop(name, None)
        self._fresh.pop(name, None)
        since = self._overtaken.pop(name, None)
        if since is not None:
            seconds = max(at - since, 0.0)
            self.act.overtaken_seconds += seconds
            longest = self.act.longest_overtaken_seconds
            self.act.longest_overtaken_seconds = max(longest, seconds)
        return number

    def _earliest(self, deferred: Collection[str]) -> float:
        """Return the least number of the sequences that could have been admitted."""
        for numbers in (self._returned, self._waiting):
            present = (number for name, number in numbers.items() if name not in deferred)
            # Arrivals are in their order, so the first one is the least.
            least = min(present, default=None) if numbers is self._returned else next(present, None)
            if least is not None:
                return least
        return float("inf")

    def _overtake(self, last: int, at: float, deferred: Collection[str]) -> None:
        """Mark the waiting sequences before number ``last`` as overtaken."""
        names = [name for name, number in self._returned.items() if number < last]
        for name, number in self._fresh.items():
            if number > last:
                break
            names.append(name)
        for name in names:
            if name in deferred:
                continue
            self._fresh.pop(name, None)
            if name not in self._overtaken:
                self._overtaken[name] = at
                self.act.overtaken += 1
