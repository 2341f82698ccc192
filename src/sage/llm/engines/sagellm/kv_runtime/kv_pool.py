"""The import path as the specification's page 2.2 writes it: another name of ``sage.llm.sagellm.kv_runtime.kv_pool``."""

from sage.llm.sagellm.kv_runtime.kv_pool import *  # noqa: F403
from sage.llm.sagellm.kv_runtime.kv_pool import __all__ as __all__
