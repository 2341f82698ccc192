"""vLLM's worker with a reader of the model's hidden state: ``--worker-cls``.

The worker that answers the scheduler (the first of the tensor-parallel ranks of the last pipeline
stage) reads, and its readings travel with its answer. In eager mode a forward hook on one decoder
layer takes the states. A compiled model, or CUDA graphs, run no hooks: the model then returns the
states itself, as for EAGLE-3 (vLLM's auxiliary hidden states).

No code of vLLM is copied or patched. The model runner's order of the requests is read from it.
"""

from __future__ import annotations

from typing import Any, Final

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

ready_for_vllm()  # before anything of vLLM is imported

import torch  # noqa: E402
from vllm.distributed.parallel_state import get_pp_group, get_tp_group  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.v1.outputs import AsyncModelRunnerOutput  # noqa: E402

from sagellm_lifetime.vllm.hidden_watch import HiddenReader, ReadStep, layer_read  # noqa: E402
from sagellm_lifetime.vllm.model_signals import REPORT  # noqa: E402

_FREE: Final = ("ngram", "suffix")
"""Speculative decoding that has no use for the states that a compiled model returns."""


def _platform_worker() -> Any:
    """Return the class that vLLM itself would use."""
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        return CPUWorker
    if current_platform.is_cuda_alike():
        from vllm.v1.worker.gpu_worker import Worker

        return Worker
    raise RequestError(f"--watch-hidden: not on {current_platform.device_name}; leave it out")


_Worker: Any = _platform_worker()


class HiddenWorker(_Worker):  # type: ignore[misc]  # vLLM is untyped here
    """A worker of vLLM that reads hidden states; only the one that answers does."""

    _reader: HiddenReader | None = None
    _step: ReadStep | None = None
    # Attributes of vLLM's worker:
    model_runner: Any
    vllm_config: Any

    def load_model(self, *args: Any, **options: Any) -> None:
        """Load the model, and hook its layer or let it return the states.

        Raises:
            RequestError: the states of this model cannot be read.
        """
        super().load_model(*args, **options)
        if not get_pp_group().is_last_rank:
            return
        reader = HiddenReader()
        if not self._is_eager:  # on all ranks, which run the same program
            return_states(self.model_runner, self.vllm_config)
        if get_tp_group().rank_in_group == 0:
            if self._is_eager:
                hook_layer(self.model_runner.get_model(), self.vllm_config, reader)
            self._reader = reader

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run one step, and read what is due."""
        reader = self._reader
        if reader is None:
            return super().execute_model(scheduler_output)
        reader.begin(scheduler_output)
        output = super().execute_model(scheduler_output)
        if reader.is_waiting:
            self._step = self._read(reader)
        return output

    def _read(self, reader: HiddenReader) -> ReadStep | None:
        try:
            runner = self.model_runner
            state = runner.execute_model_state
            # Model runner V2 makes a new batch for each step, V1 has one.
            batch = getattr(state, "input_batch", None) or runner.input_batch
            states = state.aux_hidden_states
            return reader.read(batch.req_ids, states[-1] if states and not self._is_eager else None)
        except Exception as error:  # noqa: BLE001  # any error, as the engine must go on
            reader.stop(error)
            return None

    @property
    def _is_eager(self) -> bool:
        return bool(self.vllm_config.model_config.enforce_eager)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Return the output of a step with its readings."""
        output = super().sample_tokens(grammar_output)
        reader = self._reader
        if reader is None:
            return output
        step, self._step = self._step, None
        if isinstance(output, AsyncModelRunnerOutput):
            return _WithReadings(output, reader, step) if step or reader.has_fault else output
        return with_readings(output, reader, step)


class _WithReadings(AsyncModelRunnerOutput):  # type: ignore[misc]  # vLLM is untyped here
    """An output that is copied while the next step runs, and the readings beside it."""

    def __init__(self, output: Any, reader: HiddenReader, step: ReadStep | None) -> None:
        self._output, self._reader, self._step = output, reader, step

    def get_output(self) -> Any:
        """Wait for the output; return it with the readings."""
        return with_readings(self._output.get_output(), self._reader, self._step)


def with_readings(output: Any, reader: HiddenReader, step: ReadStep | None) -> Any:
    """Return a model runner's output with the report of the reader, if there is one."""
    # vLLM's output for an empty step is one object for all of them, and stays as it is.
    if getattr(output, "req_ids", None) and (step is not None or reader.has_fault):
        report = reader.report(step)
        if report is not None:
            setattr(output, REPORT, report)
    return output


def hook_layer(model: torch.nn.Module, vllm_config: Any, reader: HiddenReader) -> None:
    """Let a reader capture what the layer at two thirds of the depth returns.

    Raises:
        RequestError: the model has no list of its decoder layers.
    """
    count = int(vllm_config.model_config.hf_text_config.num_hidden_layers)
    language = getattr(model, "get_language_model", None)  # of a model with images or sound
    for part in (language() if callable(language) else model).modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == count:
            part[layer_read(vllm_config) - 1].register_forward_hook(reader.capture)
            return
    raise RequestError(
        f"--watch-hidden: {type(model).__name__} has no list of its {count} layers; leave it out"
    )


def return_states(runner: Any, vllm_config: Any) -> None:
    """Let a model that is compiled return the states of the layer.

    Args:
        runner: vLLM's model runner with a loaded model.
        vllm_config: of the engine.

    Raises:
        RequestError: the model cannot, or speculative decoding has another use for it.
    """
    model, drafts = runner.get_model(), vllm_config.speculative_config
    if drafts is not None and drafts.method not in _FREE:
        raise RequestError(f"--watch-hidden: add --enforce-eager beside {drafts.method} drafts")
    if not callable(getattr(model, "set_aux_hidden_state_layers", None)):
        raise RequestError(
            f"--watch-hidden: add --enforce-eager: compiled, {type(model).__name__} lets nobody "
            "read its states"
        )
    model.set_aux_hidden_state_layers((layer_read(vllm_config),))
    runner.use_aux_hidden_state_outputs = True
