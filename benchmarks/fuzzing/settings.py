"""Settings of a live engine, as ``--additional-config`` brings them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import need, refused
from fuzzing.values import anything, as_json
from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.vllm.settings import LiveSettings


def setup(folder: Path) -> dict[str, Any]:
    """Return the defaults."""
    return dataclasses.asdict(LiveSettings())


def attempt(usual: dict[str, Any], rng: Random) -> str:
    """Make settings with some values of any kind."""
    said: Any = {name: usual[name] for name in rng.sample(list(usual), rng.randrange(4))}
    for name in rng.sample([*usual, "oops", ""], rng.choice([1, 1, 2])):
        said[name] = rng.choice([as_json, anything])(rng)
    if rng.random() < 0.05:
        said = as_json(rng)
    try:
        made = LiveSettings.of(said)
    except LifetimeError as error:
        return refused(error)
    for field in dataclasses.fields(made):
        value, default = getattr(made, field.name), usual[field.name]
        if isinstance(default, bool):
            need(isinstance(value, bool), f"{field.name} is {value!r}")
        elif isinstance(default, int | float):
            need(isinstance(value, int | float) and math.isfinite(value), f"{field.name}={value!r}")
            need(value >= 0, f"{field.name}={value!r}")
        elif isinstance(default, str):
            need(isinstance(value, str), f"{field.name} is {value!r}")
    return "taken"
