"""What a live engine is told: ``--additional-config '{"lifetime": {...}}'``, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, Self, get_args

from sagellm_lifetime.core.errors import RequestError, UnknownNameError
from sagellm_lifetime.policies.plan import PLANS

KEY: Final = "lifetime"
"""Where vLLM's ``additional_config`` has them."""
Mode = Literal["off", "shadow", "act"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """How prediction is set up in an engine.

    Attributes:
        predict: whether there is a predictor at all; without, completions are only recorded.
        mode: to start in; ``off`` and back is a switch away while the engine runs.
        policy: a key of ``policies.plan.PLANS``.
        min_confidence: below it the engine's own rule decides.
        predictor: a registered name; unused where there is a checkpoint.
        width: hidden size of a network, 0 for its own.
        checkpoint: directory or exported file; empty for none.
        learn: whether the predictor learns from completions, in a process of its own.
        learn_every_s: seconds after which what was learned is saved and served, at least.
        signals: whether the predictor is told the model's EOS log-probability and entropy.
        watermark: share of the KV pool that ``act`` leaves free at admission where others wait,
            at least, unless the plan keeps room itself or the engine was started with more.
        state: folder for statistics, the switch, and what was learned; empty for none.
        record: folder for completions; empty for none.
        content: whether token ids are recorded.
        limit_s: seconds one call may take before the engine gives prediction up.
        share: of a step's duration that prediction may take on average.
        floor_s: seconds of a step that it may take whatever the step's duration.
        pause_s: seconds it stays off after a fault.
    """

    predict: bool = True
    mode: Mode = "shadow"
    policy: str = "lifetime"
    min_confidence: float = 0.0
    predictor: str = "survival"
    width: int = 0
    checkpoint: str = ""
    learn: bool = False
    learn_every_s: float = 5.0
    signals: bool = False
    watermark: float = 0.05
    state: str = ""
    record: str = ""
    content: bool = False
    limit_s: float = 1.0
    share: float = 0.05
    floor_s: float = 0.002
    pause_s: float = 30.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UnknownNameError("mode", self.mode, list(MODES))
        if self.policy not in PLANS:
            raise UnknownNameError("policy", self.policy, list(PLANS))
        replace(PLANS[self.policy], min_confidence=self.min_confidence)  # which checks it

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """From JSON.

        Raises:
            RequestError: a key that is none.
            UnknownNameError: a mode or policy that is none.
        """
        unknown = sorted(set(said) - {field.name for field in fields(cls)})
        if unknown:
            raise RequestError(f"lifetime settings: unknown key {unknown[0]!r}")
        return cls(**said)

    def json(self) -> dict[str, Any]:
        """As ``additional_config`` takes them: what differs from the defaults, and the mode."""
        default = type(self)()
        return {
            name: value
            for name, value in asdict(self).items()
            if name == "mode" or value != getattr(default, name)
        }


def cannot_act(policy: str) -> str:
    """Why our order cannot be kept under a scheduling policy of vLLM, or nothing."""
    if policy == "fcfs":
        return ""
    return f"--scheduling-policy {policy} keeps an order of its own: use fcfs to act"
