"""The private parts of vLLM's V1 scheduler that this package uses, and a check for them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

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


@dataclass(frozen=True)
class Part:
    """What this package uses of one class of vLLM.

    Attributes:
        module: of the class.
        name: of the class.
        methods: names of the parameters without ``self``, by method that is overridden or called.
        attributes: names that the class has or its constructor sets.
        fields: names of a plain data class.
    """

    module: str
    name: str
    methods: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


SCHEDULER: Final = Part(
    "vllm.v1.core.sched.scheduler",
    "Scheduler",
    methods={
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
    },
    attributes=(
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
    ),
)
"""Without the attributes whose names differ between releases: see :mod:`.versions`."""
_OUTPUT: Final = "vllm.v1.core.sched.output"
PARTS: Final = (
    SCHEDULER,
    Part(
        "vllm.v1.request",
        "Request",
        attributes=(
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
        ),
    ),
    Part(
        "vllm.v1.core.kv_cache_manager",
        "KVCacheManager",
        attributes=("watermark_blocks", "block_pool", "coordinator", "enable_caching"),
    ),
    Part(
        "vllm.v1.core.kv_cache_coordinator",
        "KVCacheCoordinator",
        methods={
            "get_blocks": ("request_id",),
            "find_longest_cache_hit": ("block_hashes", "max_cache_hit_length"),
        },
    ),
    Part(
        "vllm.v1.core.block_pool",
        "BlockPool",
        methods={"get_num_free_blocks": ()},
        attributes=("num_gpu_blocks",),
    ),
    Part("vllm.v1.core.kv_cache_utils", "KVCacheBlock", fields=("ref_cnt",)),
    Part(
        "vllm.v1.core.sched.request_queue",
        "FCFSRequestQueue",
        methods={"prepend_request": ("request",)},
    ),
    Part(
        _OUTPUT,
        "SchedulerOutput",
        fields=(
            "num_scheduled_tokens",
            "total_num_scheduled_tokens",
            "scheduled_new_reqs",
            "scheduled_cached_reqs",
            "scheduled_spec_decode_tokens",
            "finished_req_ids",
            "preempted_req_ids",
        ),
    ),
    Part(
        "vllm.sampling_params",
        "SamplingParams",
        fields=(
            "detokenize",
            "extra_args",
            "logprobs",
            "max_tokens",
            "min_tokens",
            "skip_special_tokens",
            "stop",
            "temperature",
        ),
    ),
    Part(
        _OUTPUT,
        "NewRequestData",
        fields=("req_id", "prompt_token_ids", "sampling_params", "num_computed_tokens"),
    ),
    Part(
        _OUTPUT,
        "CachedRequestData",
        fields=("req_ids", "resumed_req_ids", "num_computed_tokens"),
    ),
    Part("vllm.v1.outputs", "ModelRunnerOutput", fields=("req_ids",)),
)
"""All that this package uses of vLLM's private interface."""


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
    differences = []
    for part in PARTS:
        try:
            owner = getattr(importlib.import_module(part.module), part.name, None)
        except ModuleNotFoundError as error:
            if error.name == "vllm":
                raise MissingExtraError("the replay through vLLM's scheduler", "vllm") from error
            return [f"import of {error.name} fails"]
        except ImportError as error:
            return [" ".join(str(error).split())]
        if owner is None:
            differences.append(f"{part.module}.{part.name} is gone")
            continue
        names = part.attributes
        if part is SCHEDULER:
            names += fitting_file(owner).ATTRIBUTES
        differences += [_method(owner, name, wanted) for name, wanted in part.methods.items()]
        differences += _attributes(owner, names)
        differences += _fields(owner, part.fields)
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
