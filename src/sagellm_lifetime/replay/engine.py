"""vLLM's real V1 scheduler, KV cache manager and block pool, built without a model."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.replay.trace import TraceRequest
from sagellm_lifetime.vllm.compat.interface import check_interface

STOP = -1
"""The token that ends a request, from which alone the scheduler learns a length."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings of a replayed engine, with the names and defaults of vLLM on an A100.

    Attributes:
        blocks: KV blocks in the pool, of which vLLM reserves one.
        block_size: tokens per block.
        max_num_seqs: largest number of running sequences.
        max_num_batched_tokens: largest number of tokens in one step.
        max_model_len: prompt and output together; ``None``: the next power of two above the longest
            request of the trace, and above what the caps allow.
        prefix_caching: True to share the blocks of equal prompts.
        watermark: share of the pool kept free when a request is admitted.
        policy: ``fcfs`` or ``priority``, vLLM's own.
    """

    blocks: int = 6000
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None
    prefix_caching: bool = False
    watermark: float = 0.0
    policy: str = "fcfs"

    def model_length(self, trace: Sequence[TraceRequest]) -> int:
        """Return the longest sequence that the engine accepts, in tokens."""
        if self.max_model_len is not None:
            return self.max_model_len
        longest = max(
            request.prompt_length + max(request.output_length, request.max_length or 0)
            for request in trace
        )
        return 1 << longest.bit_length()


def check_fits(trace: Sequence[TraceRequest], settings: EngineSettings) -> None:
    """Check that every request can run alone in this engine.

    Raises:
        RequestError: if one exceeds the model length, or needs more blocks than the pool has.
    """
    longest = max(trace, key=lambda request: request.total)
    limit = settings.model_length(trace)
    if longest.total > limit:
        raise RequestError(
            f"{longest.called} is {longest.total} tokens long (prompt and output), the model "
            f"length is {limit}: give --max-model-len {longest.total} or more, or leave it out"
        )
    need = -(-longest.total // settings.block_size)
    if need > settings.blocks - 1:
        raise RequestError(
            f"{longest.called} needs {need} blocks of {settings.block_size} tokens, the pool "
            f"has {settings.blocks - 1}: give --blocks {need + 1} or more"
        )


def build_scheduler(settings: EngineSettings, model_length: int, scheduler_cls: Any = None) -> Any:
    """Return a scheduler of the given class (vLLM's own by default), ready for ``add_request``."""
    check_interface()
    _quiet()
    import torch
    from vllm.config import CacheConfig, DeviceConfig, SchedulerConfig, VllmConfig
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = VllmConfig(
        model_config=_model_config(model_length),
        scheduler_config=SchedulerConfig(
            max_model_len=model_length,
            is_encoder_decoder=False,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_num_seqs=settings.max_num_seqs,
            async_scheduling=False,
            watermark=settings.watermark,
            policy=settings.policy,
        ),
        cache_config=CacheConfig(
            block_size=settings.block_size, enable_prefix_caching=settings.prefix_caching
        ),
        device_config=DeviceConfig("cpu"),
    )
    config.cache_config.num_gpu_blocks = settings.blocks
    # The shape of a layer only determines the bytes of a block, and no memory is allocated.
    layer = FullAttentionSpec(
        block_size=settings.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    return (scheduler_cls or Scheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(settings.blocks, [], [KVCacheGroupSpec(["layer"], layer)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=settings.block_size,
        log_stats=False,
    )


def make_requests(
    settings: EngineSettings, model_length: int, priority: Callable[[TraceRequest], int] | None
) -> Callable[[TraceRequest, float], Any]:
    """Return a function from a request of the trace and its arrival (s) to the engine's request.

    The engine's request has the fields that a client would send: the prompt, the cap (or the rest
    of the model length), and the client's features in ``extra_args`` (HTTP: ``vllm_xargs``). It
    does not contain the length.
    """
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    hasher = block_hasher(settings.block_size) if settings.prefix_caching else None

    def make(request: TraceRequest, arrival: float) -> Any:
        room = model_length - request.prompt_length
        params = SamplingParams(
            max_tokens=min(request.max_length or room, room),
            stop_token_ids=[STOP],
            detokenize=False,
            extra_args=who(request),
        )
        return Request(
            request.id,
            request.prompt_token_ids,
            params,
            None,
            arrival_time=arrival,
            priority=priority(request) if priority is not None else 0,
            block_hasher=hasher,
        )

    return make


def who(request: TraceRequest) -> dict[str, Any]:
    """Return the features that a client may send, under the names of ``prompt_features``."""
    features = {
        "model": request.model,
        "client_id": request.client_id,
        "session_id": request.session_id,
        "turn": request.turn,
        "prefix_hashes": list(request.prefix_hashes) or None,
    }
    return {name: value for name, value in features.items() if value is not None}


def block_hasher(block_size: int) -> Callable[[Any], list[bytes]]:
    """Return a function that hashes a request's new full blocks, each with the block before.

    It replaces vLLM's (SHA-256 over a pickle), which costs several times as much. Python's hash of
    a tuple of numbers is the same in every process; the 64-bit hashes of two of a million blocks
    are equal with a probability below 1e-7.
    """

    def hashes(request: Any) -> list[bytes]:
        done = len(request.block_hashes)
        start = done * block_size
        tokens = request._all_token_ids
        if len(tokens) - start < block_size:
            return []
        before = request.block_hashes[-1] if done else b""
        digests = []
        for end in range(start + block_size, len(tokens) + 1, block_size):
            chained = (int.from_bytes(before, "little"), *tokens[end - block_size : end])
            before = (hash(chained) & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
            digests.append(before)
        return digests

    return hashes


@lru_cache(maxsize=4)
def _model_config(model_length: int) -> Any:
    """Return a model that is only a ``config.json``; cached, as building it takes seconds."""
    from vllm.config import ModelConfig

    shape = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 64,
        "max_position_embeddings": model_length,
        "torch_dtype": "float32",
    }
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(shape, file)
        return ModelConfig(
            model=folder,
            tokenizer=folder,
            skip_tokenizer_init=True,
            max_model_len=model_length,
            dtype="float32",
            enforce_eager=True,
            seed=0,
        )


def _quiet() -> None:
    """Silence vLLM's advice on CPU backends and block sizes, as no engine is started."""
    logging.getLogger("vllm").setLevel(logging.ERROR)
