"""How near its end the model itself sees a sequence: a logits processor that changes nothing.

Before every token it notes the log-probability of an end-of-sequence token and the entropy of the
next token (nats), both of the model's own distribution, before temperature and top-p. vLLM loads
the class by name (``--logits-processors``) or takes it from ``logits_processors`` of ``LLM``, and
watches the requests that ask for it: ``extra_args={"watch_eos": KEY}``. The notes lie in the engine
core's process; :func:`taken` hands them over there.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

from sagellm_lifetime.vllm.circuit_breaker import LOG, named
from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

ready_for_vllm()  # before anything of vLLM is imported

import torch  # noqa: E402
from vllm.v1.sample.logits_processor import (  # noqa: E402
    BatchUpdate,
    LogitsProcessor,
    process_dict_updates,
)

ASK: Final = "watch_eos"

Notes = list[list[float]]
"""By age: log-probability of an end, entropy. A step that is computed again is noted again."""
_notes: dict[str, Notes] = {}


def noted(key: str) -> Notes:
    """The notes of a request so far: log-probability of an end and entropy by age."""
    return _notes.get(key, [])


def taken(key: str) -> tuple[list[float], list[float]]:
    """The notes of a finished request, which are forgotten here.

    Args:
        key: what the request gave as ``watch_eos``.

    Returns:
        Log-probabilities of an end and entropies, before each generated token.
    """
    notes = _notes.pop(key, [])
    return [note[0] for note in notes], [note[1] for note in notes]


def keep(keys: Container[str]) -> None:
    """Forget the notes of all but these requests."""
    for key in [key for key in _notes if key not in keys]:
        del _notes[key]


class EosWatch(LogitsProcessor):  # type: ignore[misc]  # vLLM is untyped here
    """Watches the requests of one engine core; after an error it stops, and the engine goes on."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._ends = torch.tensor(ends(vllm_config.model_config), device=device)
        self._watched: dict[int, tuple[str, list[int]]] = {}
        """Row of the batch -> key, tokens generated so far (vLLM's own list, which grows)."""
        self._is_off = False

    def is_argmax_invariant(self) -> bool:
        """No: those that are see the logits after temperature, and greedy requests skip them."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests through the rows of the batch."""
        if not self._is_off:
            try:
                process_dict_updates(self._watched, batch_update, _asked)
            except Exception as error:  # noqa: BLE001  # whatever it is, the engine goes on
                self._stop(error)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Look, and give back what came; ``logits`` has shape (rows, vocabulary)."""
        if self._watched and len(self._ends):
            try:
                self._note(logits)
            except Exception as error:  # noqa: BLE001  # whatever it is, the engine goes on
                self._stop(error)
        return logits

    def _note(self, logits: torch.Tensor) -> None:
        logs = logits[list(self._watched)].log_softmax(dim=-1)
        end = logs[:, self._ends].logsumexp(dim=-1).tolist()
        entropy = torch.special.entr(logs.exp()).sum(dim=-1).tolist()
        for (key, output), *note in zip(self._watched.values(), end, entropy, strict=True):
            _notes.setdefault(key, [])[len(output) :] = [note]

    def _stop(self, error: Exception) -> None:
        """Watch nobody any more: which row is whose may be unknown by now."""
        self._is_off = True
        self._watched = {}
        LOG.error("the model's own signals are off until restart (%s)", named(error))


def ends(model_config: Any) -> list[int]:
    """The tokens that end a sequence, as the model's two configurations name them."""
    said = (
        getattr(model_config.hf_text_config, "eos_token_id", None),
        (model_config.try_get_generation_config() or {}).get("eos_token_id"),
    )
    found: set[int] = set()
    for ids in said:
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return sorted(found)


def _asked(params: Any, _prompt: Any, output: list[int]) -> tuple[str, list[int]] | None:
    key = (params.extra_args or {}).get(ASK)
    return None if key is None else (str(key), output)
