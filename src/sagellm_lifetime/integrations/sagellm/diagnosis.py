"""What of sageLLM is installed here, which adapters work with it, and what mends the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Final, Literal

from sagellm_lifetime.core.errors import one_line, reason_of
from sagellm_lifetime.core.extras import is_installed
from sagellm_lifetime.integrations.sagellm.packages import (
    CONTROL_PLANE,
    CORE,
    KV_CACHE,
    PACKAGES,
    WITH_CORE,
    WITHOUT_TORCH,
    Package,
    import_fault,
)

_HERE: Final = "sagellm_lifetime.integrations.sagellm"
_GROUP: Final = "sagellm.schedulers"


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        what: the package or the integration.
        state: ``ok``, ``absent`` (an optional part) or ``broken``.
        detail: versions, how it is switched on, or the line that mends it.
    """

    what: str
    state: Literal["ok", "absent", "broken"]
    detail: str


class _FaultyError(Exception):
    """A fault with the line that mends it."""


def diagnose() -> list[Check]:
    """Return the results of all checks; nothing is changed outside this process."""
    with _quiet():
        return [*map(_package, PACKAGES), *_integrations()]


def _package(package: Package) -> Check:
    installed = package.found()
    if installed is None:
        line = WITH_CORE if package is CORE else WITHOUT_TORCH
        return Check(package.distribution, "absent", f"not installed; {line}")
    if package.is_known():
        return Check(package.distribution, "ok", f"{installed}, a version known to work")
    detail = f"{installed} is not known to work; pip install '{package.distribution}=="
    return Check(package.distribution, "ok", f"{detail}{package.tested}' is")


def _integrations() -> Iterator[Check]:
    for what, package, check in (
        ("sageLLM eviction", KV_CACHE, _eviction),
        ("sageLLM KV predictor", KV_CACHE, _kv_predictor),
        ("sageLLM KV pool", KV_CACHE, _pool),
        ("sageLLM control plane", CONTROL_PLANE, _control_plane),
        ("sageLLM IR pass", CONTROL_PLANE, _ir_pass),
        ("sageLLM scheduler", CORE, _scheduler),
    ):
        if not is_installed(package.module):
            yield Check(what, "absent", f"needs {package.distribution}")
            continue
        yield _run(what, package, check)


def _run(what: str, package: Package, check: Callable[[], str]) -> Check:
    try:
        fault = import_fault(package)
        if fault is not None:
            raise _FaultyError(fault)
        return Check(what, "ok", check())
    except _FaultyError as error:
        return Check(what, "broken", one_line(str(error)))
    except Exception as error:  # noqa: BLE001 - any error of a foreign package is a finding
        return Check(what, "broken", one_line(reason_of(error)))


def _eviction() -> str:
    from sagellm_kv_cache.eviction import EvictionManager
    from sagellm_kv_cache.models import EvictionPolicy, KVHandle

    from sagellm_lifetime.integrations.sagellm.eviction import install, uninstall

    manager = EvictionManager(policy=EvictionPolicy.LIFETIME_AWARE)
    own = type(manager._strategy).__name__
    install(manager)
    handle = KVHandle.create(num_tokens=16)
    if manager.select_victims([handle], 16) != [handle]:
        raise _FaultyError("the installed strategy is not asked")
    uninstall(manager)
    return (
        f"works; not active by itself: EvictionPolicy.LIFETIME_AWARE alone is {own}. "
        f"Switch on: from {_HERE}.eviction import install; install(manager, sequences)"
    )


def _kv_predictor() -> str:
    from sagellm_kv_cache.models import KVHandle

    from sagellm_lifetime.integrations.sagellm.kv_predictor import KVLifetimePredictor, features_of

    KVLifetimePredictor().predict_batch(features_of([KVHandle.create(num_tokens=16)]))
    return f"works; from {_HERE} import KVLifetimePredictor"


def _pool() -> str:
    from sagellm_kv_cache.pool import KVPool

    from sagellm_lifetime.integrations.sagellm.pools import SageLLMPool
    from sagellm_lifetime.policies.specification import BlockAllocationRequest

    pool = SageLLMPool(KVPool(64, 16))
    pool.free(pool.allocate(BlockAllocationRequest(2, "doctor")))
    return f"works; from {_HERE} import LifetimeAllocationPlanner, SageLLMPool"


def _control_plane() -> str:
    from sagellm_control.manager import ControlPlaneManager

    from sagellm_lifetime.integrations.sagellm.control_plane import RequestLifetimePredictor
    from sagellm_lifetime.integrations.sagellm.order_policy import use_order
    from sagellm_lifetime.integrations.sagellm.orders import Order

    predictor = RequestLifetimePredictor()
    manager = ControlPlaneManager(
        scheduling_policy="lifetime_aware", predictor=predictor, enable_predictor=True
    )
    use_order(manager, Order.SHORTEST_FIRST)
    return (
        'works; ControlPlaneManager(scheduling_policy="lifetime_aware", '
        "predictor=RequestLifetimePredictor(), enable_predictor=True)"
    )


def _ir_pass() -> str:
    from sagellm_control.ir.optimizer import IROptimizer

    from sagellm_lifetime.integrations.sagellm.ir_pass import LifetimeIRPass

    optimizer = IROptimizer()
    optimizer.add_pass(LifetimeIRPass())
    if "lifetime_order" not in optimizer.list_passes():
        raise _FaultyError("the optimizer does not list the pass")
    return "works; optimizer.add_pass(LifetimeIRPass(sequences))"


def _scheduler() -> str:
    ours = [point for point in entry_points(group=_GROUP) if point.name == "lifetime"]
    if not ours:
        raise _FaultyError(
            f"silently not registered: no entry point lifetime in {_GROUP}; "
            "pip install --force-reinstall --no-deps isagellm-lifetime"
        )
    try:
        ours[0].load()
    except Exception as error:
        # The registry of the package skips a plug-in that fails to import.
        raise _FaultyError(
            f"silently not registered: {reason_of(error)}; "
            f"pip install --force-reinstall '{CORE.distribution}=={CORE.tested}'"
        ) from error
    from sagellm_core.plugin.registry import PluginRegistry

    registry = PluginRegistry.discover()
    registry.register_schedulers()
    if "lifetime" not in registry.list_schedulers():
        raise _FaultyError("silently not registered: the package's registry does not list it")
    return 'registered; ContinuousBatchingScheduler(policy_name="lifetime") uses it'


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the packages' own log messages out of the report."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
