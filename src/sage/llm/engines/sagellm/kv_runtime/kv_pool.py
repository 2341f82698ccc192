"""The import path as page 2.2 of the specification writes it."""

from sage.llm.sagellm.kv_runtime.kv_pool import *  # noqa: F403
from sage.llm.sagellm.kv_runtime.kv_pool import __all__  # noqa: F401
