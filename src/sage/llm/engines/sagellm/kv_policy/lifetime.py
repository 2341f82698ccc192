"""The import path as the specification's page 2.5 writes it: another name of ``sage.llm.sagellm.kv_policy.lifetime``."""

from sage.llm.sagellm.kv_policy.lifetime import *  # noqa: F403
from sage.llm.sagellm.kv_policy.lifetime import __all__ as __all__
