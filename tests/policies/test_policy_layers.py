"""Policies stand between evaluation and the predictor and know nothing of any engine."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sagellm_lifetime.policies

POLICIES = Path(sagellm_lifetime.policies.__file__).parent
FILES = sorted(POLICIES.rglob("*.py"))
BELOW = {"policies", "predictor", "networks", "models", "features", "history", "core"}
ALLOWED = {"numpy", "__future__"}
LAYERS = [
    *("cli", "assessment", "replay", "vllm", "integrations", "testing", "evaluation", "workloads"),
    *("policies", "predictor", "networks", "models", "features", "history", "core"),
]


def imported(path: Path) -> set[str]:
    """Everything a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(POLICIES)))
def test_a_policy_imports_only_what_is_below_it(path):
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "sagellm_lifetime":
            assert rest
            assert rest[0] in BELOW, name
        else:
            assert top in ALLOWED or top in sys.stdlib_module_names, name


def test_the_contract_names_the_layers_in_their_order():
    settings = tomllib.loads((POLICIES.parents[2] / "pyproject.toml").read_text())
    (contract,) = (
        each for each in settings["tool"]["importlinter"]["contracts"] if each["type"] == "layers"
    )
    names = [each.strip("()").removeprefix("sagellm_lifetime.") for each in contract["layers"]]
    assert names == LAYERS


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_deciding_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from sage.llm.sagellm.kv_policy.eviction import PredictiveEvictionWithML\n"
        "from sage.llm.sagellm.scheduler_ir import LifetimeAwarePass\n"
        "import sagellm_lifetime.policies.forecast\n"
        "print([m for m in ('torch', 'onnxruntime', 'vllm', 'lightgbm') if m in sys.modules])"
    )
    assert python(code) == "[]"


def test_the_import_paths_of_the_specification():
    from sage.llm.sagellm import scheduler_ir
    from sage.llm.sagellm.kv_policy import eviction
    from sage.llm.sagellm.kv_runtime import kv_pool
    from sagellm_lifetime.policies import specification

    named = {*eviction.__all__, *scheduler_ir.__all__, *kv_pool.__all__}
    assert named == set(specification.__all__)
    for module in (eviction, scheduler_ir, kv_pool):
        for name in module.__all__:
            assert getattr(module, name) is getattr(specification, name)
