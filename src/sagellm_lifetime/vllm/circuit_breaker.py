"""A circuit breaker around every call into predictor and policies, which protects the engine.
    closed ──fault──▶ open ──pause──▶ trial ──32 good steps──▶ closed
                        ▲               │
                        └────fault──────┘   (the pause doubles)

An exception, an invalid answer or slowness opens it for a while. After a hang it stays open, since
the hanging call may hold a lock, and the next may hang too.

If the calls exceed the budget by the clock on average, a second check follows: they must exceed it
in most steps, or in processor time. Otherwise the machine is busy, and any call takes milliseconds
now and then.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar

from sagellm_lifetime.policies.advisor import AdviceError
from sagellm_lifetime.policies.step_pace import OUTLIER
from sagellm_lifetime.vllm.time_budget import (
    Hang,
    LimitMethod,
    TimeLimit,
    from_signal_handler,
)

LOG: Final = logging.getLogger("vllm.sagellm_lifetime")
"""A child of vLLM's logger, so that its lines go to the engine's log."""
FAULTS: Final = ("exception", "hang", "nonsense", "slow")
State = Literal["closed", "trial", "open", "stuck"]
T = TypeVar("T")

_WARM: Final = 32
"""Steps before the averages count, and the length of a trial."""
_WEIGHT: Final = 1.0 / 32.0
"""Weight of the newest step in the averages."""
_MOST: Final = 0.5
"""Largest share of steps over the budget by the clock."""
_LONGEST_PAUSE_S: Final = 600.0


def named(error: Exception) -> str:
    """Return the text of an error for the log: its type, or the message of an ``OSError``.

    Other messages may quote a client's input, such as a prompt.
    """
    if isinstance(error, OSError):
        return str(error)
    LOG.debug("what was raised", exc_info=error)
    return type(error).__name__


class CircuitBreaker:
    """A caller of functions that stops calling after a fault.

    Args:
        limit_s: seconds after which a call counts as hung.
        share: share of a step's duration that all calls of a step may take, on average.
        floor_s: seconds of a step that are always allowed.
        pause_s: seconds for which it stays open the first time.
        clock: seconds.
    """

    is_transparent = False
    """True if errors go through to the caller."""

    def __init__(
        self,
        *,
        limit_s: float = 1.0,
        share: float = 0.05,
        floor_s: float = 0.002,
        pause_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state: State = "closed"
        self.reason = ""
        """Reason of the last opening."""
        self.faults = dict.fromkeys(FAULTS, 0)
        self.spent = 0.0
        """Seconds of calls in the present step."""
        self._cpu_s = 0.0
        """Processor seconds of calls in the present step."""
        self.spent_total = 0.0
        self._share = share
        self._floor = floor_s
        self._first_pause = self._pause = pause_s
        self._clock = clock
        self._until = 0.0
        self._limit = TimeLimit(limit_s)
        # Averages over the steps, in seconds: cost of the calls by the clock and in processor time,
        # duration of a step; and the share of the steps over the budget.
        self._cost = self._busy = self._pace = self._over = 0.0
        self._steps = 0
        self._steps_over = 0
        """Steps since the average cost by the clock exceeded the budget; 0 while it does not."""

    @property
    def allows(self) -> bool:
        """Return True if calls are made."""
        return self.state in ("closed", "trial")

    @property
    def time_limit(self) -> LimitMethod:
        """Return the means that ends a call at the time limit."""
        return self._limit.method

    def call(self, fallback: T, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``, or ``fallback`` if it is not called or fails.

        An error of a signal handler during the call (Ctrl-C, say) is not a fault of the call, and
        raised again. Any other is, also the ``SystemExit`` of a library that calls ``sys.exit()``.
        """
        if not self.allows:
            return fallback
        started = time.perf_counter()
        cpu_s = self._limit.thread_time() if self._steps_over else 0.0
        try:
            return self._limit(function, *args)
        except Hang:
            self._open("hang", f"took longer than {self._limit.seconds:g} s")
        except AdviceError as error:
            self._open("nonsense", str(error))
        except BaseException as error:  # any error, as the engine must go on
            if from_signal_handler(error):
                raise
            self._open_for(error)
        finally:
            self.spent += time.perf_counter() - started
            if self._steps_over:
                self._cpu_s += self._limit.thread_time() - cpu_s
        return fallback

    def fault(self, error: Exception) -> None:
        """Open it for an error outside its calls; log the error if it was closed."""
        if self.allows:
            self._open_for(error)
        else:
            self.faults["exception"] += 1
            LOG.debug("what was raised", exc_info=error)

    def record_steps(self, count: int, seconds: float) -> None:
        """Record ``count`` steps that took ``seconds`` together.

        Only the last of them can have made calls.
        """
        spent, cpu_s = self.spent, self._cpu_s
        self.exclude_step()
        if not self.allows:
            return
        self._steps += count
        weight = max(_weight(count), count / self._steps)
        pace = seconds / count
        if self._steps > _WARM and self._pace:
            pace = min(pace, OUTLIER * self._pace)
        self._pace += weight * (pace - self._pace)
        self._cost += weight * (spent / count - self._cost)
        budget = max(self._floor, self._share * self._pace)
        if self._steps < _WARM:
            return
        if self._cost > budget:
            self._check_cost(count, spent, cpu_s, budget)
        else:
            self._steps_over = 0
            if self.state == "trial":
                self.state, self._pause = "closed", self._first_pause
                LOG.warning("lifetime prediction is back")

    def _check_cost(self, count: int, spent: float, cpu_s: float, budget: float) -> None:
        """Open it if the cost exceeds the budget in most steps, or in processor time too."""
        if not self._steps_over:  # processor time is measured from the next step on
            self._steps_over = 1
            self._busy = self._over = 0.0
            return
        self._steps_over += count
        weight = max(_weight(count), count / (self._steps_over - 1))
        self._busy += weight * (cpu_s / count - self._busy)
        self._over += weight * ((spent > budget) / count - self._over)  # all calls are in one step
        if self._steps_over > _WARM:
            if self._busy > budget:
                self._open("slow", f"{_ms(self._busy)} a step on average, of {_ms(budget)}")
            elif self._over > _MOST:
                self._open("slow", f"over {_ms(budget)} in {self._over:.0%} of the steps")

    def ready(self) -> bool:
        """Return True if calls are made from now on; begin a trial after the pause."""
        if self.state == "open" and self._clock() >= self._until:
            self.state = "trial"
            self._forget()
        return self.allows

    def exclude_step(self) -> None:
        """Leave the cost of this step so far out of the averages (a start, say)."""
        self.spent_total += self.spent
        self.spent = self._cpu_s = 0.0

    def close(self) -> None:
        """Release the worker thread of the time limit."""
        self._limit.close()

    def _forget(self) -> None:
        self._steps = self._steps_over = 0
        self._cost = self._busy = self._pace = self._over = 0.0

    def _open_for(self, error: BaseException) -> None:
        # Only its type, as the reason is also in metrics, which need no API key.
        self._open("exception", type(error).__name__)
        LOG.debug("what was raised", exc_info=error)

    def _open(self, kind: str, reason: str) -> None:
        again = self.state == "trial"
        self.faults[kind] += 1
        self.reason = " ".join(f"{kind}: {reason}".split())
        if kind == "hang":
            self.state = "stuck"
            LOG.error("lifetime prediction is off until restart (%s)", self.reason)
            return
        self.state = "open"
        longest = max(_LONGEST_PAUSE_S, self._first_pause)
        self._pause = min(2.0 * self._pause, longest) if again else self._first_pause
        self._until = self._clock() + self._pause
        LOG.error("lifetime prediction is off for %.0f s (%s)", self._pause, self.reason)


class TransparentBreaker(CircuitBreaker):
    """A breaker that lets every error through, without a time limit.

    A fault must end a replay, whose result would otherwise be that of another policy.
    """

    is_transparent = True

    def __init__(self) -> None:
        super().__init__(share=math.inf)

    def call(self, fallback: T, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``."""
        return function(*args)

    def record_steps(self, count: int, seconds: float) -> None:
        """Do nothing: simulated steps are no measure of cost."""


def _weight(steps: int) -> float:
    """Return the weight of the newest ``steps`` in the averages."""
    return 1.0 - (1.0 - _WEIGHT) ** steps


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
