"""Reading of the model's hidden state in the process where the model runs.

A reading is the residual stream after two thirds of the layers: of the last prompt token in the
step that ends the prefill, and of the inputs behind which 32 and 64 tokens were generated (the last
16 of each, averaged). Each is reduced to ``features.hidden_state.COMPONENTS`` numbers. Requests
with ``extra_args={"watch_hidden": ID}`` are read, which the scheduler sets.

What the scheduler tells its workers in each step, position and number of the tokens that are
computed, says which rows to read. Nothing else of the engine is needed, so that chunked prefill,
prefix caching, preemption, drafts and several ranks are one case. ``vllm.hidden_worker`` connects
this to vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import PurePath
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from sagellm_lifetime.core.hidden_states import READ_AT, WINDOW, layer_of
from sagellm_lifetime.features.hidden_state import reduced
from sagellm_lifetime.vllm.circuit_breaker import LOG, named

ASK: Final = "watch_hidden"

Readings = dict[int, np.ndarray]
"""Reduced states by the age at which they were read."""


class HiddenReport(NamedTuple):
    """Readings of a step, on their way from the worker to the scheduler.

    Attributes:
        readings: by request.
        fault: error that has ended the reading; empty for none.
    """

    readings: dict[str, Readings]
    fault: str = ""


class _Watched:
    """A request that is read.

    Attributes:
        prompt: tokens of its prompt.
        ages: ages of the readings to come.
        following: first position that is still to be read.
        rows: states of the window so far, by position, float32.
    """

    __slots__ = ("ages", "following", "prompt", "rows")

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt
        self.ages = list(READ_AT)
        self.following = prompt - 1
        self.rows: dict[int, np.ndarray] = {}

    def window(self, age: int) -> range:
        """Return the positions of a reading."""
        if not age:
            return range(self.prompt - 1, self.prompt)
        end = self.prompt + age - 1
        return range(end - WINDOW, end)


class _Read(NamedTuple):
    """A state to keep: the request, the row within its tokens of the step, and its position."""

    name: str
    row: int
    request: _Watched
    position: int


class _End(NamedTuple):
    """A reading whose states are complete."""

    name: str
    request: _Watched
    age: int


class ReadStep(NamedTuple):
    """What was read in one step.

    Attributes:
        states: shape ``(reads, width)``, on the host; None without reads.
        copied: event after which ``states`` is filled; None if it is.
        reads: use of each row of ``states``.
        ends: readings that are complete with them.
    """

    states: torch.Tensor | None
    copied: Any
    reads: list[_Read]
    ends: list[_End]


class HiddenReader:
    """The reader of one engine core's requests, which stops after an error.

    In each step :meth:`begin` is called before the model runs, :meth:`capture` while it runs,
    unless the model returns the states itself, :meth:`read` after it, and :meth:`report` with the
    output of the step.
    """

    def __init__(self) -> None:
        self._requests: dict[str, _Watched] = {}
        """Requests with readings to come."""
        self._complete: dict[str, int] = {}
        """Prompt tokens of those that have all readings."""
        self._scheduled: dict[str, int] = {}
        self._reads: list[_Read] = []
        self._ends: list[_End] = []
        self._captured: torch.Tensor | None = None
        self._is_off = False
        self._fault = ""

    @property
    def is_waiting(self) -> bool:
        """Return True if states of the present step are to be read."""
        return bool(self._reads or self._ends)

    @property
    def has_fault(self) -> bool:
        """Return True if an error is still to be reported."""
        return bool(self._fault)

    def begin(self, step: Any) -> None:
        """Find what is to be read in a step.

        Args:
            step: vLLM's ``SchedulerOutput``.
        """
        if self._is_off:
            return
        try:
            self._reads, self._ends, self._captured = [], [], None
            self._begin(step)
        except Exception as error:  # noqa: BLE001  # any error, as the engine must go on
            self.stop(error)

    def _begin(self, step: Any) -> None:
        requests, scheduled = self._requests, step.num_scheduled_tokens
        for name in step.finished_req_ids:
            requests.pop(name, None)
            self._complete.pop(name, None)
        self._scheduled = scheduled
        drafts = step.scheduled_spec_decode_tokens
        for new in step.scheduled_new_reqs:
            if self._is_watched(new):
                self._plan(new.req_id, new.num_computed_tokens, drafts)
        if not requests:
            return
        cached = step.scheduled_cached_reqs
        for name, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            request = requests.get(name)
            if request is not None and computed + scheduled[name] > request.following:
                self._plan(name, computed, drafts)

    def _is_watched(self, new: Any) -> bool:
        """Begin to watch a request that asks for it; one that comes back keeps its readings."""
        params, prompt = new.sampling_params, new.prompt_token_ids
        asked = (params.extra_args or {}).get(ASK) if params is not None else None
        if asked != new.req_id or not prompt:  # embeddings have no tokens
            return False
        if self._complete.get(new.req_id) == len(prompt):
            return False
        known = self._requests.get(new.req_id)
        if known is None or known.prompt != len(prompt):  # a session goes on with a longer prompt
            self._complete.pop(new.req_id, None)
            self._requests[new.req_id] = _Watched(len(prompt))
        return True

    def _plan(self, name: str, start: int, drafts: dict[str, list[int]]) -> None:
        """Add what is to be read of a request, whose positions from ``start`` on are computed."""
        request = self._requests[name]
        end = start + self._scheduled[name]
        # The state of a draft is kept, and computed again in the next step if it is refused.
        known = end - len(drafts.get(name, ()))
        while request.ages:
            window = request.window(request.ages[0])
            for position in range(max(start, window.start), min(end, window.stop)):
                self._reads.append(_Read(name, position - start, request, position))
            if known < window.stop:
                request.following = max(window.start, min(known, window.stop - 1))
                return
            self._ends.append(_End(name, request, request.ages.pop(0)))
        self._complete[name] = self._requests.pop(name).prompt

    def capture(self, _layer: Any, _args: Any, output: Any) -> None:
        """Keep what a layer returns, as its hook: states, or states and a residual to add."""
        if not self._reads or self._is_off:
            return
        try:
            states, residual = output if isinstance(output, tuple) else (output, None)
            # A new tensor, as the next layer writes into these.
            self._captured = states.clone() if residual is None else states + residual
        except Exception as error:  # noqa: BLE001  # any error, as the engine must go on
            self.stop(error)

    def read(self, order: Sequence[str], states: torch.Tensor | None = None) -> ReadStep | None:
        """Return what was read in this step; None for nothing.

        Args:
            order: requests in the order of their rows.
            states: of all tokens, shape ``(tokens, width)``, if the model has returned them.
        """
        if not self.is_waiting or self._is_off:
            return None
        try:
            reads, ends = self._reads, self._ends
            self._reads, self._ends = [], []
            if not reads:
                return ReadStep(None, None, reads, ends)
            states = self._captured if states is None else states
            self._captured = None
            if states is None:
                raise RuntimeError("the layer did not run in this step")
            begins, row = {}, 0
            for name in order:
                begins[name] = row
                row += self._scheduled[name]
            rows = [begins[one.name] + one.row for one in reads]
            return ReadStep(*_on_host(states, rows), reads, ends)
        except Exception as error:  # noqa: BLE001  # any error, as the engine must go on
            self.stop(error)
            return None

    def report(self, step: ReadStep | None) -> HiddenReport | None:
        """Return the readings that are complete, and once a fault; None for neither."""
        readings: dict[str, Readings] = {}
        if step is not None and not self._is_off:
            try:
                self._finish(step, readings)
            except Exception as error:  # noqa: BLE001  # any error, as the engine must go on
                self.stop(error)
        fault, self._fault = self._fault, ""
        return HiddenReport(readings, fault) if readings or fault else None

    @staticmethod
    def _finish(step: ReadStep, readings: dict[str, Readings]) -> None:
        if step.copied is not None:
            step.copied.synchronize()
        if step.states is not None:
            states = step.states.float().numpy()
            for one, state in zip(step.reads, states, strict=True):
                one.request.rows[one.position] = state
        for name, request, age in step.ends:
            kept = request.rows
            rows = [kept.pop(p) for p in request.window(age) if p in kept]
            if rows:
                readings.setdefault(name, {})[age] = reduced(np.mean(rows, axis=0))

    def stop(self, error: Exception) -> None:
        """Read nothing more, and report the error."""
        self._is_off = True
        self._requests, self._complete = {}, {}
        self._reads, self._ends, self._captured = [], [], None
        self._fault = named(error)
        LOG.error("the model's hidden state is read no more until restart (%s)", named(error))


def _on_host(states: torch.Tensor, rows: list[int]) -> tuple[torch.Tensor, Any]:
    """Return rows of a tensor on the host, and the event after which they are there, or None."""
    index = torch.tensor(rows)
    if states.device.type == "cpu":
        return states.index_select(0, index), None
    chosen = states.index_select(0, index.pin_memory().to(states.device, non_blocking=True))
    # Without a wait: the step goes on while the rows are copied.
    host = torch.empty(chosen.shape, dtype=chosen.dtype, pin_memory=True)
    host.copy_(chosen, non_blocking=True)
    copied = torch.Event(states.device)
    copied.record()
    return host, copied


def layer_read(vllm_config: Any) -> int:
    """Return after how many layers the state is read.

    In a pipeline that is a layer of the last stage, whose worker answers the scheduler: with more
    than three stages a later one than two thirds of the depth.
    """
    layers = int(vllm_config.model_config.hf_text_config.num_hidden_layers)
    layer, stages = layer_of(layers), vllm_config.parallel_config.pipeline_parallel_size
    if stages > 1:
        from vllm.distributed.utils import get_pp_indices

        start, _ = get_pp_indices(layers, stages - 1, stages)
        layer = max(layer, start + 1)
    return layer


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
