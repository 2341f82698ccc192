"""The import path as page 2.5 of the specification writes it."""

from sage.llm.sagellm.kv_policy.lifetime import *  # noqa: F403
from sage.llm.sagellm.kv_policy.lifetime import __all__  # noqa: F401
