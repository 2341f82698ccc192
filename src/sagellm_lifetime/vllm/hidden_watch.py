"""A logits processor that reads the model's hidden state along the way and changes nothing.

vLLM tells a logits processor which request is in which row of the batch, before the model runs. A
hook on the decoder layer at two thirds of the depth then reads the residual stream there: of the
last prompt token in the step that ends the prefill, and of the input tokens behind which 32 and 64
tokens were generated (the last 16 of each, averaged). Each reading is reduced to
``features.hidden_state.COMPONENTS`` numbers at once. It watches the requests with
``extra_args={"watch_hidden": KEY}``. The readings are in the engine core's process.

Rows are found by position: a chunk of a prefill without the last prompt token is passed over, a
prompt in the prefix cache still runs its last token, and a sequence that is computed again after a
preemption keeps the readings that it has. Hooks need a model that runs in eager mode, and unsplit.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from hashlib import blake2b
from pathlib import PurePath
from typing import Any, Final, NamedTuple

import numpy as np

from sagellm_lifetime.core.hidden_states import READ_AT, WINDOW, layer_of
from sagellm_lifetime.features.hidden_state import reduced
from sagellm_lifetime.vllm.circuit_breaker import LOG, named
from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

ready_for_vllm()  # before anything of vLLM is imported

import torch  # noqa: E402
from vllm.forward_context import get_forward_context, is_forward_context_available  # noqa: E402
from vllm.v1.sample.logits_processor import (  # noqa: E402
    BatchUpdate,
    LogitsProcessor,
    process_dict_updates,
)

ASK: Final = "watch_hidden"
_LATER: Final = READ_AT[1:]
_LAST_AGE: Final = READ_AT[-1]
_READING: Final = [
    0 if i == 0 else next((age for age in _LATER if age - WINDOW <= i < age), None)
    for i in range(_LAST_AGE)
]
"""The reading that an input belongs to, by its number among the generated tokens."""
_LAST_INPUTS: Final = frozenset(age - 1 for age in _LATER)
_MOST_KNOWN: Final = 256
"""Requests that are known beside the running ones before those that have ended are forgotten."""

Readings = dict[int, np.ndarray]
"""Reduced states by the age at which they were read."""


class _Board:
    """Readings of one process, from the model to the scheduler."""

    def __init__(self) -> None:
        self.readings: dict[str, Readings] = {}
        self.fresh: set[str] = set()
        """Keys with a reading since the scheduler last asked."""
        self.source = ""
        """Name of model and layer; empty before a model was found."""
        self.fault: Exception | None = None


_board = _Board()


def readings_of(key: str) -> Readings:
    """Return the readings of a request so far."""
    return _board.readings.get(key, {})


def source() -> str:
    """Return the name of what is read: model, layer and precision."""
    return _board.source


def take_fresh() -> set[str]:
    """Return the keys with readings since the last call.

    Raises:
        Exception: what has failed in the model's process since the last call.
    """
    board = _board
    if board.fault is not None:
        fault, board.fault = board.fault, None
        raise fault
    if not board.fresh:
        return set()
    fresh, board.fresh = board.fresh, set()
    return fresh


def pop(key: str) -> Readings:
    """Return the readings of a finished request, and forget them."""
    _board.fresh.discard(key)
    return _board.readings.pop(key, {})


def keep(keys: Container[str]) -> None:
    """Forget the readings of all but these requests."""
    for key in [key for key in _board.readings if key not in keys]:
        pop(key)


class _Watched:
    """A request in the batch.

    Attributes:
        key: value of ``watch_hidden``.
        prompt: tokens of its prompt.
        output: tokens generated so far (vLLM's own list, which grows).
        rows: states of the window so far.
        position: first position that was not read yet, so that nothing is read twice.
    """

    __slots__ = ("key", "output", "position", "prompt", "rows")

    def __init__(self, key: str, prompt: int, output: list[int]) -> None:
        self.key, self.prompt, self.output = key, prompt, output
        self.rows: list[torch.Tensor] = []
        self.position = 0


class _Read(NamedTuple):
    """A row of the step to read: its request, and the age of the reading it ends or joins."""

    request: _Watched
    age: int
    is_last: bool


class HiddenWatch(LogitsProcessor):  # type: ignore[misc]  # vLLM is untyped here
    """A watcher of one engine core's requests, which stops after an error."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Watched] = {}
        """Requests by their row of the batch."""
        self._known: dict[str, _Watched] = {}
        """Requests by their key, also while they are preempted: a window may be half read then, and
        what the prefix cache holds is not computed again."""
        self._is_off = False
        self._layers = int(vllm_config.model_config.hf_text_config.num_hidden_layers)
        self._layer = layer_of(self._layers)
        _board.source = source_of(vllm_config.model_config, self._layer)
        _board.fault = None
        # The model is built later, and vLLM hands it to nobody: it is found in its first run.
        self._finder = torch.nn.modules.module.register_module_forward_pre_hook(self._find)

    def is_argmax_invariant(self) -> bool:
        """Return True: the logits stay as they are."""
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return ``logits`` unchanged."""
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests through the rows of the batch."""
        if self._is_off or batch_update is None:
            return
        try:
            process_dict_updates(self._rows, batch_update, self._watched)
        except Exception as error:  # noqa: BLE001  # any error, as the engine must go on
            self._stop(error)

    def _watched(self, params: Any, prompt: Any, output: list[int]) -> _Watched | None:
        key = (params.extra_args or {}).get(ASK)
        if key is None or not prompt:  # embeddings have no tokens, and so no known last one
            return None
        request = self._known.get(str(key))
        if request is None or request.prompt != len(prompt):
            if len(self._known) > _MOST_KNOWN + 2 * len(self._rows):
                self._forget()
            request = self._known[str(key)] = _Watched(str(key), len(prompt), output)
        request.output = output
        return request

    def _forget(self) -> None:
        """Forget the requests that have ended: their readings were handed over."""
        running = {request.key for request in self._rows.values()}
        kept = running | _board.readings.keys()
        self._known = {key: one for key, one in self._known.items() if key in kept}

    # -- the model -------------------------------------------------------------------------------

    def _find(self, module: torch.nn.Module, _args: Any) -> None:
        """Hook the layer of the first model that runs with as many layers as are configured."""
        try:
            for part in module.modules():
                layers = getattr(part, "layers", None)
                if isinstance(layers, torch.nn.ModuleList) and len(layers) == self._layers:
                    self._finder.remove()
                    layers[self._layer - 1].register_forward_hook(self._hook)
                    return
        except Exception as error:  # noqa: BLE001  # any error, as the engine must go on
            self._finder.remove()
            self._stop(error)

    def _hook(self, _layer: torch.nn.Module, _args: Any, output: Any) -> None:
        """Read the states of this step."""
        if self._is_off or not self._rows or not is_forward_context_available():
            return
        try:
            metadata = get_forward_context().attn_metadata
            if isinstance(metadata, Mapping) and metadata:  # none where vLLM measures memory
                self._read(output, next(iter(metadata.values())))
        except Exception as error:  # noqa: BLE001  # any error, as the engine must go on
            self._stop(error)

    def _read(self, output: Any, metadata: Any) -> None:
        is_decode = metadata.max_query_len == 1
        places, reads = self._decoded(metadata) if is_decode else self._prefilled(metadata)
        if not places:
            return
        states, residual = output if isinstance(output, tuple) else (output, None)
        index = torch.tensor(places, device=states.device)
        found = states.index_select(0, index).float()
        if residual is not None:
            found += residual.index_select(0, index)
        for state, (request, age, is_last) in zip(found.unbind(0), reads, strict=True):
            if not age:
                self._keep(request, 0, state)
                continue
            request.rows.append(state)
            if is_last:
                self._keep(request, age, torch.stack(request.rows).mean(dim=0))
                request.rows = []

    def _decoded(self, metadata: Any) -> tuple[list[int], list[_Read]]:
        """Return what to read of a step with one token of each request: rows and their use."""
        lengths = metadata.seq_lens.tolist()
        places, reads = [], []
        for row, request in self._rows.items():
            generated = lengths[row] - request.prompt
            """Number of the input among the generated tokens; 0 for the last prompt token."""
            if generated >= _LAST_AGE or generated < 0:
                continue
            age = _READING[generated]
            if age is not None:
                request.position = lengths[row]
                places.append(row)
                reads.append(_Read(request, age, generated in _LAST_INPUTS))
        return places, reads

    def _prefilled(self, metadata: Any) -> tuple[list[int], list[_Read]]:
        """Return what to read of a step that computes prompts or drafts."""
        begins, lengths = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
        places, reads = [], []
        for row, request in self._rows.items():
            begin, end, length = begins[row], begins[row + 1], lengths[row]
            first = length - (end - begin)
            """Position of the first token that is computed."""
            last = request.prompt - 1
            if first <= last < length and 0 not in readings_of(request.key):
                places.append(begin + last - first)
                reads.append(_Read(request, 0, is_last=True))
            known = min(length, request.prompt + len(request.output))
            """Positions from here on hold drafts, which may be refused."""
            for age in _LATER:
                until = request.prompt + age - 1
                start = max(first, until - WINDOW, request.position)
                for position in range(start, min(known, until)):
                    places.append(begin + position - first)
                    reads.append(_Read(request, age, position == until - 1))
                    request.position = position + 1
        return places, reads

    def _keep(self, request: _Watched, age: int, state: torch.Tensor) -> None:
        readings = _board.readings.setdefault(request.key, {})
        if age not in readings:
            readings[age] = reduced(state.cpu().numpy())
            _board.fresh.add(request.key)

    def _stop(self, error: Exception) -> None:
        """Stop reading, as the rows of the requests may be unknown after an error."""
        self._is_off = True
        self._rows, self._known = {}, {}
        _board.fault = error
        LOG.error("the model's hidden state is read no more until restart (%s)", named(error))


def source_of(model_config: Any, layer: int) -> str:
    """Return the name of what is read: another model, layer or precision has another.

    Args:
        model_config: vLLM's.
        layer: layers before the state.
    """
    text = model_config.hf_text_config
    name = PurePath(str(model_config.model)).name
    parts = (
        name,
        *(getattr(model_config, key, None) for key in ("revision", "dtype", "quantization")),
        *(getattr(text, key, None) for key in ("hidden_size", "num_hidden_layers", "vocab_size")),
        PurePath(str(getattr(model_config, "tokenizer", None))).name,
        layer,
    )
    digest = blake2b("|".join(map(str, parts)).encode(), digest_size=6).hexdigest()
    return f"{name} layer {layer} {digest}"
