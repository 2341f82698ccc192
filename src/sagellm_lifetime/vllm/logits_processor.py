"""A logits processor that records the model's own signals of the end and changes nothing.

Before every token it records the log-probability of an end-of-sequence token and the entropy of the
next token (nats), both of the model's own distribution, before temperature and top-p. vLLM loads
the class by name (``--logits-processors``) or takes it from ``logits_processors`` of ``LLM``. It
watches the requests with ``extra_args={"watch_eos": KEY}``. The notes are in the engine core's
process; :func:`pop` returns them there.
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
"""Log-probability of an end and entropy by age; a recomputed step overwrites its note."""
_notes: dict[str, Notes] = {}


def notes_of(key: str) -> Notes:
    """Return the notes of a request so far: log-probability of an end and entropy by age."""
    return _notes.get(key, [])


def pop(key: str) -> tuple[list[float], list[float]]:
    """Return the notes of a finished request, and forget them.

    Args:
        key: the request's value of ``watch_eos``.

    Returns:
        Log-probabilities of an end, and entropies in nats, before each generated token.
    """
    notes = _notes.pop(key, [])
    return [note[0] for note in notes], [note[1] for note in notes]


def keep(keys: Container[str]) -> None:
    """Forget the notes of all but these requests."""
    for key in [key for key in _notes if key not in keys]:
        del _notes[key]


class EosWatch(LogitsProcessor):  # type: ignore[misc]  # vLLM is untyped here
    """A watcher of one engine core's requests, which stops after an error."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._ends = torch.tensor(ends(vllm_config.model_config), device=device)
        self._watched: dict[int, tuple[str, list[int]]] = {}
        """Row of the batch -> key, tokens generated so far (vLLM's own list, which grows)."""
        self._is_off = False

    def is_argmax_invariant(self) -> bool:
        """Return False, so that vLLM calls it for greedy requests and before temperature."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests through the rows of the batch."""
        if not self._is_off:
            try:
                process_dict_updates(self._watched, batch_update, _watch_key)
            except Exception as error:  # noqa: BLE001  # any error, as the engine must go on
                self._stop(error)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Record the signals and return ``logits`` unchanged, shape (rows, vocabulary)."""
        if self._watched and len(self._ends):
            try:
                self._note(logits)
            except Exception as error:  # noqa: BLE001  # any error, as the engine must go on
                self._stop(error)
        return logits

    def _note(self, logits: torch.Tensor) -> None:
        logs = logits[list(self._watched)].log_softmax(dim=-1)
        end = logs[:, self._ends].logsumexp(dim=-1).tolist()
        entropy = torch.special.entr(logs.exp()).sum(dim=-1).tolist()
        for (key, output), *note in zip(self._watched.values(), end, entropy, strict=True):
            _notes.setdefault(key, [])[len(output) :] = [note]

    def _stop(self, error: Exception) -> None:
        """Stop watching, as the rows of the requests may be unknown after an error."""
        self._is_off = True
        self._watched = {}
        LOG.error("the model's own signals are off until restart (%s)", named(error))


def ends(model_config: Any) -> list[int]:
    """Return the end-of-sequence tokens of the model's two configurations, sorted."""
    configured = (
        getattr(model_config.hf_text_config, "eos_token_id", None),
        (model_config.try_get_generation_config() or {}).get("eos_token_id"),
    )
    tokens: set[int] = set()
    for ids in configured:
        tokens.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return sorted(tokens)


def _watch_key(params: Any, _prompt: Any, output: list[int]) -> tuple[str, list[int]] | None:
    key = (params.extra_args or {}).get(ASK)
    return None if key is None else (str(key), output)
