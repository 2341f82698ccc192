"""``python -m sagellm_lifetime.vllm.compat.model_inspection``: vLLM's inspection of a model class.

vLLM inspects the class of a model in a process of its own before it builds a configuration, and
caches the result. So the first start on a fresh machine would import the companions that
:mod:`.torch_companions` hides.
"""

from __future__ import annotations

import runpy

from sagellm_lifetime.vllm.compat.torch_companions import hide_broken_builds

if __name__ == "__main__":
    hide_broken_builds()
    runpy.run_module("vllm.model_executor.models.registry", run_name="__main__")
