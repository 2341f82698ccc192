"""The private parts of vLLM's V1 scheduler that this package uses, and a check for them."""

from __future__ import annotations

import inspect
from functools import lru_cache

from sagellm_lifetime.core.errors import LifetimeError, MissingExtraError
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm
from sagellm_lifetime.vllm.compat.versions import (
    KNOWN_GOOD,
    UNKNOWN,
    VERSIONS,
    fitting_file,
    is_tested,
    missing_attributes,
    version,
)

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
    "max_num_scheduled_tokens",
    "_inflight_prefills",
    "kv_cache_manager",
    "reset_preempted_req_ids",
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
    """Check every private part of vLLM that this package uses; warn once of an untested version.

    Raises:
        MissingExtraError: if vLLM is not installed.
        EngineInterfaceError: if a part differs; one line names the differences.
    """
    refuse_changes()
    if not _is_known():
        _warn(version())


def check_version() -> None:
    """Refuse a version outside :data:`VERSIONS` in which something is missing.

    A server reaches :func:`check_interface` only after the model is loaded. Of a version inside,
    and of a source tree, whose version is unknown, vLLM is not imported for this.

    Raises:
        EngineInterfaceError: if a part differs; one line names the differences.
    """
    if not _is_known():
        refuse_changes()


def refuse_changes() -> None:
    """Raise :class:`EngineInterfaceError` if the installed vLLM lacks what this package uses."""
    changed = changes()
    if changed:
        raise EngineInterfaceError(
            f"vLLM {version()} is not what lifetime prediction was written for ({VERSIONS}): "
            f"{'; '.join(changed)}. Install vllm=={KNOWN_GOOD}"
        )


def _is_known() -> bool:
    installed = version()
    return installed == UNKNOWN or is_tested(installed)


@lru_cache(maxsize=1)
def _warn(installed: str) -> None:
    """Log the warning of an untested version, once a process."""
    LOG.warning(
        "vLLM %s: lifetime prediction is tested with %s; all that it uses is there, so it is tried",
        installed,
        VERSIONS,
    )


def changes() -> list[str]:
    """Return what of vLLM is missing or differs from the supported releases, one phrase each."""
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
        *_attributes(Scheduler, (*ATTRIBUTES, *fitting_file(Scheduler).ATTRIBUTES)),
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
    return [f"{owner.__name__}.{name} is gone" for name in missing_attributes(owner, names)]


def _fields(owner: type, names: tuple[str, ...]) -> list[str]:
    declared = {name for base in owner.__mro__ for name in inspect.get_annotations(base)}
    return [f"{owner.__name__}.{name} is gone" for name in names if name not in declared]
