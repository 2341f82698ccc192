"""The import path as page 2.3 of the specification writes it."""

from sage.llm.sagellm.kv_policy.eviction import *  # noqa: F403
from sage.llm.sagellm.kv_policy.eviction import __all__  # noqa: F401
