"""``python -m sagellm_lifetime.vllm.compat.model_inspection``: vLLM's look at a model class.

vLLM looks at the class of a model in a process of its own before it builds a configuration, and
keeps what it found in its cache: the first start on a fresh machine, and no later one, would meet
the companions that :mod:`.builds` hides.
"""

from __future__ import annotations

import runpy

from sagellm_lifetime.vllm.compat.torch_companions import hide_broken_builds

if __name__ == "__main__":
    hide_broken_builds()
    runpy.run_module("vllm.model_executor.models.registry", run_name="__main__")
