"""The settings of a live engine: ``--additional-config '{"lifetime": {...}}'``, as JSON."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Self, get_args

from sagellm_lifetime.core.errors import RequestError, UnknownNameError
from sagellm_lifetime.core.values import is_path
from sagellm_lifetime.policies.plan import PLANS
from sagellm_lifetime.predictor.fleet.store import StoreError, check_place
from sagellm_lifetime.predictor.registry import DEFAULT, predictor_names
from sagellm_lifetime.vllm.client_source import SOURCES, is_source

KEY: Final = "lifetime"
"""Key of the settings in vLLM's ``additional_config``."""
Mode = Literal["off", "shadow", "act"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
SWITCHBACK: Final = "switchback"
"""A start mode that alternates ``off`` and ``act`` (:mod:`~sagellm_lifetime.vllm.switchback`)."""
StartMode = Literal["off", "shadow", "act", "switchback"]
START_MODES: Final[tuple[StartMode, ...]] = get_args(StartMode)
WIDEST: Final = 2048
"""Largest width of a network's hidden layer, as a checkpoint has a size limit."""


class Range(NamedTuple):
    """The valid numbers of a setting: from ``least`` to ``most``, both included."""

    least: float
    most: float
    is_whole: bool = False

    def __contains__(self, value: object) -> bool:
        kinds = int if self.is_whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        return self.least <= value <= self.most  # false for NaN

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        return f"{kind} from {self.least:g} to {self.most:g}"


FLAGS: Final = ("predict", "learn", "signals", "hidden", "content")
"""Settings that are ``true`` or ``false``."""
NAMES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"mode": START_MODES, "policy": tuple(PLANS), "predictor": predictor_names()}
)
"""Settings that are one of some names."""
PATHS: Final = ("checkpoint", "state", "record")
"""Settings that are a path, or empty."""
PLACES: Final = ("fleet",)
"""Settings that are the place of a fleet's store, or empty."""
SOURCED: Final = ("client_from",)
"""Settings that name where the client of a request is taken from, or are empty."""
RANGES: Final[Mapping[str, Range]] = MappingProxyType(
    {
        "min_confidence": Range(0.0, 1.0),
        "width": Range(0, WIDEST, is_whole=True),
        "learn_every_s": Range(0.01, 86_400.0),
        "fleet_every_s": Range(0.1, 86_400.0),
        # More would leave no memory for admissions.
        "watermark": Range(0.0, 0.9),
        "limit_s": Range(0.001, 3600.0),
        "share": Range(0.0, 1.0),
        "floor_s": Range(0.0, 3600.0),
        "pause_s": Range(0.01, 86_400.0),
        "switchback_period_s": Range(1.0, 86_400.0),
    }
)
"""Settings that are a number."""
_LONGEST: Final = 60
"""Characters of a value in an error."""


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """The settings of prediction in an engine.

    Attributes:
        predict: True to use a predictor; without, completions are only recorded.
        mode: initial mode, which can be switched while the engine runs; ``switchback`` alternates
            ``off`` and ``act``, and measures the difference.
        policy: a key of ``policies.plan.PLANS``.
        min_confidence: confidence below which the engine's own rule decides.
        predictor: a registered name; unused with a checkpoint.
        width: hidden size of a network, 0 for its own.
        checkpoint: directory or exported file; empty for none.
        learn: True to learn from completions, in a process of its own.
        learn_every_s: smallest number of seconds between two updates of the state in use.
        fleet: place of the store through which replicas share what they learn: an address of Redis,
            or a folder; empty to learn alone.
        fleet_every_s: smallest number of seconds between two exchanges with it.
        signals: True to give the predictor the model's EOS log-probability and entropy.
        hidden: True to give the predictor the model's hidden state.
        watermark: smallest share of the KV pool that ``act`` leaves free at admission while
            sequences wait, unless the plan reserves memory itself or the engine's own is larger.
        state: folder for statistics, mode switch and learned state; empty for none.
        record: folder for completions; empty for none.
        content: True to record token ids.
        client_from: what names the client of a request: ``api-key``, ``user``, ``header:NAME``, or
            empty for ``vllm_xargs`` in its body.
        limit_s: seconds of one call, after which prediction is off until a restart.
        share: share of a step's duration that prediction may take on average.
        floor_s: seconds per step that prediction may always take.
        pause_s: seconds for which prediction is off after a fault.
        switchback_period_s: seconds of a block of ``switchback``.
    """

    predict: bool = True
    mode: StartMode = "shadow"
    policy: str = "lifetime"
    min_confidence: float = 0.0
    predictor: str = DEFAULT
    width: int = 0
    checkpoint: str = ""
    learn: bool = False
    learn_every_s: float = 5.0
    fleet: str = ""
    fleet_every_s: float = 30.0
    signals: bool = False
    hidden: bool = False
    watermark: float = 0.05
    state: str = ""
    record: str = ""
    content: bool = False
    client_from: str = ""
    limit_s: float = 1.0
    share: float = 0.05
    floor_s: float = 0.002
    pause_s: float = 30.0
    switchback_period_s: float = 600.0

    def __post_init__(self) -> None:
        """Raise :class:`RequestError` for the first setting of a wrong type or range."""
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "true or false")
        for name in (*NAMES, *PATHS, *PLACES, *SOURCED):
            if not isinstance(getattr(self, name), str):
                raise _wrong(name, getattr(self, name), "text")
        for name, allowed in RANGES.items():
            if getattr(self, name) not in allowed:
                raise _wrong(name, getattr(self, name), str(allowed))
        for name, known in NAMES.items():
            value = getattr(self, name)
            # A checkpoint names its predictor, so the setting may be empty.
            if value not in known and not (name == "predictor" and not value and self._needs_none):
                raise UnknownNameError(name, _bounded(value), list(known))
        for name in PATHS:
            if getattr(self, name) and not is_path(getattr(self, name)):
                raise _wrong(name, getattr(self, name), "a path")
        for name in SOURCED:
            if not is_source(getattr(self, name)):
                raise _wrong(name, getattr(self, name), SOURCES)
        self._check_fleet()
        self._check_together()

    def _check_fleet(self) -> None:
        """Refuse a place that is no store, and a fleet that learns nothing."""
        if not self.fleet:
            return
        try:
            check_place(self.fleet)
        except StoreError as error:
            raise RequestError(f"lifetime settings: fleet: {error}") from None
        if not self.learn:
            raise RequestError("lifetime settings: fleet needs learn: true")

    @property
    def _needs_none(self) -> bool:
        return bool(self.checkpoint) or not self.predict

    def _check_together(self) -> None:
        """Refuse combinations in which a setting would have no effect."""
        for name, is_set in (("mode", self.mode in ("act", SWITCHBACK)), ("learn", self.learn)):
            if is_set and not self.predict:
                value = shown_value(getattr(self, name))
                raise RequestError(f"lifetime settings: {name} {value} needs predict: true")
        for name in ("signals", "hidden"):
            if getattr(self, name) and not (self.predict or self.record):
                raise RequestError(
                    f"lifetime settings: {name} true needs predict: true, or record: a folder"
                )
        if self.mode == SWITCHBACK and not self.state:
            raise RequestError("lifetime settings: mode switchback needs state: a folder")
        if self.content and not self.record:
            raise RequestError("lifetime settings: content needs record: a folder")

    @classmethod
    def of(cls, data: object) -> Self:
        """Return the settings of a JSON object, missing ones by their defaults.

        Raises:
            RequestError: if it is no object, a key is unknown, or a value is of a wrong type or
                range.
            UnknownNameError: if there is no such mode, policy or predictor.
        """
        if not isinstance(data, Mapping):
            raise RequestError(
                f"lifetime settings: must be an object of names and values, got {shown_value(data)}"
            )
        check_keys(data)
        return cls(**data)

    def json(self) -> dict[str, Any]:
        """Return the settings for ``additional_config``: non-default values, and the mode."""
        default = type(self)()
        return {
            name: value
            for name, value in asdict(self).items()
            if name == "mode" or value != getattr(default, name)
        }


def check_keys(values: Mapping[Any, Any]) -> None:
    """Raise :class:`RequestError` for the first key that is no setting, naming the nearest."""
    names = [field.name for field in fields(LiveSettings)]
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(str(key)[:_LONGEST], names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
            raise RequestError(f"lifetime settings: unknown key {shown_value(key)}: {hint}")


def _wrong(name: str, value: object, allowed: str) -> RequestError:
    return RequestError(f"lifetime settings: {name} must be {allowed}, got {shown_value(value)}")


def shown_value(value: object) -> str:
    """Return a value as Python writes it, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return repr(_bounded(value))
    try:
        return _bounded(repr(value))
    except ValueError:  # an integer of thousands of digits has no text
        return f"a {type(value).__name__} that is too long to show"


def _bounded(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def cannot_act(policy: str) -> str:
    """Return why ``act`` is impossible under a scheduling policy of vLLM; empty if possible."""
    if policy == "fcfs":
        return ""
    return f"--scheduling-policy {policy} keeps an order of its own: use fcfs to act"
