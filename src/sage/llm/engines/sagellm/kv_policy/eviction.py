"""The import path as the specification's page 2.3 writes it: another name of ``sage.llm.sagellm.kv_policy.eviction``."""

from sage.llm.sagellm.kv_policy.eviction import *  # noqa: F403
from sage.llm.sagellm.kv_policy.eviction import __all__ as __all__
