"""Import modules by the paths they had in version 0.1.0; removed in the version after next.

Only names that are exported by :mod:`sagellm_lifetime` are public. Scripts that import a module by
its old path get the module of now, and a ``DeprecationWarning`` that names it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module, util
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

_ROOT: Final = "sagellm_lifetime."
_EMPTY: Final = ("engines", "learning")
"""Packages that are gone, while modules below them are still found."""
_PACKAGES: Final = {
    "core.convert": "history.convert",
    "core.history": "history",
    "engines.vllm": "vllm",
    "evaluation.conformance": "testing",
    "evaluation.profiles": "workloads",
    "evaluation.recorded": "workloads.recorded",
    "predictors": "predictor",
}
_MODULES: Final = {
    "core.arguments": "core.values",
    "core.child": "core.child_process",
    "core.history.endings": "history.reasons",
    "core.history.plausible": "history.times",
    "core.history.quiet": "history.parquet",
    "core.history.sift": "history.validate",
    "core.history.tally": "history.findings",
    "core.prequential": "history.prequential",
    "core.regular": "core.regular_files",
    "core.signals": "core.logit_signals",
    "core.splits": "history.splits",
    "engines.vllm.address": "vllm.launch.address",
    "engines.vllm.adopt": "vllm.guard",
    "engines.vllm.beam": "vllm.beam_search",
    "engines.vllm.breaker": "vllm.circuit_breaker",
    "engines.vllm.builds": "vllm.compat.torch_companions",
    "engines.vllm.burst": "policies.events",
    "engines.vllm.command_line": "vllm.launch.command_line",
    "engines.vllm.controller": "policies.plan_advisor",
    "engines.vllm.describe": "vllm.request_adapter",
    "engines.vllm.endings": "vllm.finish_reasons",
    "engines.vllm.eos": "vllm.logits_processor",
    "engines.vllm.feed": "vllm.token_feed",
    "engines.vllm.guarded": "vllm.guard",
    "engines.vllm.http": "vllm.observability.http",
    "engines.vllm.inspected": "vllm.compat.model_inspection",
    "engines.vllm.interface": "vllm.compat.interface",
    "engines.vllm.keeper": "vllm.periodic_thread",
    "engines.vllm.known": "policies.sequence_records",
    "engines.vllm.launch": "vllm.launch.server",
    "engines.vllm.merge": "vllm.observability.merge",
    "engines.vllm.metrics": "vllm.observability.metrics",
    "engines.vllm.pace": "vllm.step_time",
    "engines.vllm.planner": "policies.plan_advisor",
    "engines.vllm.predictor": "vllm.live_predictor",
    "engines.vllm.published": "vllm.published",
    "engines.vllm.rows": "vllm.record_rows",
    "engines.vllm.serve": "vllm.launch.serve",
    "engines.vllm.shadow": "vllm.agreement",
    "engines.vllm.signals": "vllm.logit_signals",
    "engines.vllm.state": "vllm.engine_state",
    "engines.vllm.takeover": "vllm.override",
    "engines.vllm.tally": "vllm.prediction_statistics",
    "engines.vllm.timelimit": "vllm.time_budget",
    "engines.vllm.words": "vllm.launch.vllm_args",
    "evaluation.asking": "evaluation.points",
    "evaluation.forecast": "evaluation.point_forecasts",
    "evaluation.profiles.arrivals": "workloads.draws",
    "evaluation.profiles.frame": "workloads.generate",
    "evaluation.profiles.joint": "workloads.histograms",
    "evaluation.profiles.prefixes": "workloads.generate",
    "evaluation.profiles.sequence": "workloads.draws",
    "evaluation.profiles.spread": "workloads.histograms",
    "evaluation.rivals.constant": "evaluation.rivals.simple",
    "evaluation.rivals.residual": "evaluation.rivals.simple",
    "evaluation.specification": "evaluation.specification_benchmark",
    "features.trajectory": "features.evidence",
    "learning.arrays": "core.arrays",
    "learning.breath": "core.yield_gil",
    "learning.checkpoint": "predictor.checkpoint_file",
    "learning.claim": "predictor.checkpoint_lock",
    "learning.graphs": "networks.graphs",
    "learning.habits": "models.recurring_lengths",
    "learning.head": "networks.head",
    "learning.loss": "networks.loss",
    "learning.moments": "models.moments",
    "learning.networks": "networks.modules",
    "learning.onnx_graph": "networks.onnx_graph",
    "learning.replay": "networks.samples",
    "learning.residual_life": "models.residual_life",
    "learning.serving": "networks.serving",
    "learning.shrinkage": "models.shrinkage",
    "learning.trainer": "networks.trainer",
    "predictors.baseline": "predictor.builtin",
    "predictors.courier": "predictor.supervisor",
    "predictors.elsewhere": "predictor.background_learner",
    "predictors.guards": "predictor.checks",
    "predictors.hindsight": "predictor.calibration_samples",
    "predictors.knowledge": "predictor.learned",
    "predictors.lessons": "models.history_rows",
    "predictors.linear": "predictor.builtin",
    "predictors.lstm": "predictor.builtin",
    "predictors.neural": "networks.model",
    "predictors.orca": "predictor.builtin",
    "predictors.pupil": "predictor.worker",
    "predictors.sampling": "networks.training_samples",
    "predictors.survival": "predictor.builtin",
    "predictors.transformer": "predictor.builtin",
    "replay.books": "replay.request_log",
}
_NAMES: Final = {
    "engines.vllm.breaker": {"Breaker": "CircuitBreaker"},
    "engines.vllm.describe": {"Describer": "RequestAdapter"},
    "engines.vllm.endings": {"Endings": "FinishReasons"},
    "engines.vllm.tally": {"Tally": "PredictionStatistics"},
}
"""Classes of a module that have another name now: old name, name of now."""


def path_now(old: str) -> str | None:
    """Return the present path of a module, or None if it has not moved.

    >>> path_now("core.history.read")
    'history.read'
    """
    if old in _MODULES:
        return _MODULES[old]
    for package in sorted(_PACKAGES, key=len, reverse=True):
        if old == package or old.startswith(f"{package}."):
            return _PACKAGES[package] + old[len(package) :]
    return None


class MovedModules(MetaPathFinder, Loader):
    """Find a module that has moved; asked only where no module has the name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old path, or None."""
        old = fullname.removeprefix(_ROOT)
        if old == fullname:
            return None
        if old in _EMPTY:
            return ModuleSpec(fullname, self, is_package=True)
        new = path_now(old)
        found = None if new is None else util.find_spec(_ROOT + new)
        if found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, self, is_package=is_package)

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module with the names of the one that took its place."""
        old = module.__name__.removeprefix(_ROOT)
        new = path_now(old)
        if new is None:
            return
        warnings.warn(f"{module.__name__} is now {_ROOT}{new}", DeprecationWarning, stacklevel=2)
        found = import_module(_ROOT + new)
        kept = ("__name__", "__spec__", "__loader__", "__package__", "__path__", "__file__")
        vars(module).update(
            {name: value for name, value in vars(found).items() if name not in kept}
        )
        for name, name_now in _NAMES.get(old, {}).items():
            vars(module)[name] = getattr(found, name_now)


def install() -> None:
    """Let the import system find modules by their old paths."""
    sys.meta_path.append(MovedModules())
